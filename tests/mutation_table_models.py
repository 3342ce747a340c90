"""The mistakes of `mutations.py` in what is under rlhf_jax/models/; as in mutation_table.py."""

from __future__ import annotations

MODELS: dict[tuple[str, str], list[tuple[str, str]]] = {
    ("models/convert/llama2c.py", "models/test_llama2c.py"): [
        ("np.stack(np.split(x, 2, axis=2), axis=3).reshape(x.shape)", "x"),
        ("c.vocab if c.tied else -c.vocab", "c.vocab"),
        (
            '"o": np.asarray(attention["o"]["kernel"]).transpose(0, 3, 1, 2)',
            '"o": np.asarray(attention["o"]["kernel"])',
        ),
        ("    _check_params(config, params)\n", ""),
        ('"unroll", "logit_chunk", "gather_once")', '"unroll", "logit_chunk", "rope_base")'),
    ],
    ("models/output.py", "models/test_output.py"): [
        ("jnp.pad(x[:, :-1], ((0, 0), (1, 0))", "jnp.pad(x[:, 1:], ((0, 0), (0, 1))"),
        (" & (batch.segments[:, 1:] != 0)", ""),
        ("return logits if kept is None else kept, back", "return logits, back"),
        ("(batch.segments[:, 1:] == batch.segments[:, :-1]) & ", ""),
        ("return unembed(h) / temperature", "return unembed(h)"),
        ("grad[:, :, None] * share", "share"),
        ("grads.entropy[:, :, None] * (logp + entropy[:, :, None])", "grads.entropy[:, :, None] * logp"),
        ("_described(unembed(h) / temperature", "_described(unembed(h)"),
        ("(batch.tokens.shape[1] - last, 0)", "(batch.tokens.shape[1] - last + 1, 0)"),
        ("entropy = norm - jnp.sum", "entropy = norm + jnp.sum"),
        ("jnp.exp(p) * (p - q)", "jnp.exp(q) * (p - q)"),
    ],
    ("models/params.py", "models/test_lora.py"): [
        ('SCORING = ("score", "pool", "classify")', "SCORING = ()"),
        ('INPUTS = {"o": 2}', "INPUTS = {}"),
    ],
    ("models/kernels.py", "models/test_columns.py"): [("rows <= FEW and", "rows < FEW and")],
    ("models/layers.py", "models/test_columns.py"): [
        ("jax.lax.optimization_barrier(columns @ x.T).T", "(columns @ x.T).T")
    ],
    ("models/visible.py", "models/test_encoder.py"): [
        ("(self.queries[:, :, None] == self.keys[:, None, :]) & (", "("),
        (" & (self.queries[:, :, None] != 0)", ""),
        ("        if not self.causal:\n            return seen\n", ""),
    ],
    ("models/visible.py", "models/test_decoder.py"): [
        ("seen & (apart >= 0)", "seen & (apart > 0)"),
    ],
    ("models/cache.py", "models/test_decoder.py"): [
        ("jnp.dtype(c.kept_dtype)", "jnp.dtype(c.dtype)"),
        ("(cache.filled, filled[:, None], (0, column))", "(cache.filled, jnp.ones_like(filled[:, None]), (0, column))"),
        ("apart = (positions[:, None] - places)", "apart = (places - positions[:, None])"),
    ],
    ("models/attention.py", "models/test_decoder.py"): [
        (
            "scores = softcap(scores.reshape(rows, groups, length, heads // groups, -1).astype(jnp.float32), cap)\n    if bias",
            "scores = scores.reshape(rows, groups, length, heads // groups, -1).astype(jnp.float32)\n    if bias",
        ),
    ],
    ("models/attention.py", "models/test_attention.py"): [
        ("slice(max(column + first - before, 0), column + end)", "slice(max(first - before + 1, 0), column + end)"),
        ("slice(max(column + first - before, 0), column + end)", "slice(max(column + first - before, 0), end)"),
        ("not isinstance(column, int) or", "False or"),
        ("bias[:, :, own, seen]", "bias[:, :, own, :]"),
        ("window if local is True else None", "window"),
    ],
    ("models/visible.py", "models/test_attention.py"): [("(apart < window)", "(apart <= window)")],
    ("models/layers.py", "plan/test_collectives.py"): [
        ('len(leading) > 1 and pieces("length", leading[1]) > 1', "False"),
    ],
    ("models/decoder.py", "plan/test_collectives.py"): [
        ('constrain(constrain(x, "replicas", "length", "shards"), "batch"', 'constrain(x, "batch"'),
    ],
    ("models/cache.py", "rollout/test_shared_cache.py"): [
        ("jnp.repeat(x, rows, axis=0) for x in (cache", "jnp.tile(x, (rows, 1)) for x in (cache"),
        ("column = column - there.shape[1]", "pass"),
        ("apart=(positions[:, None] - places)[:, None])", "apart=(places * 0)[:, None])"),
    ],
    ("models/attention.py", "rollout/test_shared_cache.py"): [
        ("visible.shared.mask(window, local), visible", "visible.shared.mask(), visible"),
        ("each, x.shape[-1]).transpose(0, 2, 3, 1, 4)", "each, x.shape[-1]).swapaxes(1, 2)"),
        ("together(weights[..., :width])", "together(weights[..., -width:])"),
    ],
    ("models/visible.py", "rollout/test_shared_cache.py"): [
        ("(0 if self.shared is None else self.shared.keys.shape[1])", "0"),
    ],
    ("rollout/generate.py", "rollout/test_shared_cache.py"): [
        ("if slots == rows and model.fork is not None else 1", "if False else 1"),
    ],
    ("models/decoder.py", "rollout/test_shared_cache.py"): [
        ("given.shared[number : number + 1]", "given.shared[:1]"),
    ],
    ("models/groups.py", "models/test_groups.py"): [
        ("x[:: self.rows, : -self.last]", "x[: x.shape[0] // self.rows, : -self.last]"),
        ("self.last, size).swapaxes(1, 2)", "self.last, size)"),
        ("jnp.repeat(x[:, :width], self.rows, axis=0)", "jnp.tile(x[:, :width], (self.rows, 1, 1))"),
        ("jnp.repeat(x[:, :, :width], self.rows, axis=0)", "jnp.tile(x[:, :, :width], (self.rows, 1, 1, 1))"),
        ("return self if whole_groups(rows, self.rows) else None", "return self"),
        ("any(pieces", "not any(pieces"),
    ],
    ("models/attention.py", "models/test_groups.py"): [
        ("keys=seen, column=width)", "keys=seen, column=width - 1)"),
        ("jnp.repeat(segments[:, :width], group.rows, axis=0)", "jnp.tile(segments[:, :width], (group.rows, 1))"),
        ("before = column + length if window", "before = length if window"),
    ],
    ("models/build.py", "models/test_groups.py"): [
        ("if takes_parts(length, group.last) else None", ""),
    ],
    ("models/visible.py", "models/test_groups.py"): [
        ("columns = self.first + jnp.arange", "columns = jnp.arange"),
    ],
    ("models/lora.py", "models/test_groups.py"): [
        ("with_lora(model.in_groups(*group), config)", "with_lora(model, config)"),
        ("with_lora(model.in_groups(*group), config)", "model.in_groups(*group)"),
    ],
    ("models/kernels.py", "models/test_attention.py"): [
        ("interpret, visible.first)", "interpret, 0)"),
        ("columns if of > 1 else None", "None"),
        ("if visible.causal else ((length // parts, keys.shape[2]), 1)", "if True else ((0, 0), 1)"),
        ("(window - 1, 0)", "(window, 0)"),
        ("q = q * (size**-0.5 if scale is None else scale)", "q = q * size**-0.5"),
        ("attn_logits_soft_cap=cap", "attn_logits_soft_cap=None"),
        ("jax.lax.cond(local, by(window), by(None)", "jax.lax.cond(local, by(None), by(window)"),
        ("by(window if local else None)", "by(window)"),
        ("SegmentIds(queries, columns)", "SegmentIds(columns * 0 + 1, columns * 0 + 1)"),
        ("    if not causal:\n", "    if False:\n"),
        ("jnp.repeat(x, heads // x.shape[1], axis=1)", "jnp.tile(x, (1, heads // x.shape[1], 1, 1))"),
        ("mask=mask[:, None]", "mask=None"),
        ("        scale=scale,\n        is_causal", "        is_causal"),
    ],
    ("models/attention.py", "models/test_encoder_decoder.py"): [
        ("scores = scores + bias.reshape(-1, ", "scores = scores - bias.reshape(-1, "),
    ],
    ("models/encoder_decoder.py", "models/test_encoder_decoder.py"): [
        ("~(prompt & jnp.pad(follows, ((0, 0), (0, 1))))", "~prompt"),
        ("jnp.where(prompt, c.start, batch.tokens), decoded", "batch.tokens, decoded"),
        ("sources = jnp.where(prompt, batch.segments, 0)", "sources = batch.segments"),
        ("Visible(segments, sources, causal=False)", "Visible(segments, batch.segments, causal=False)"),
        ("Visible(segments, sources, causal=False)", "Visible(segments, sources)"),
        ("jnp.where(begins, c.start, before)", "batch.tokens"),
        ("column - (cache.prompt.shape[1] - 1)", "column - cache.prompt.shape[1]"),
        ("batch.positions[:, -1], jnp.ones((rows,), bool)", "batch.positions[:, -1] + 1, jnp.ones((rows,), bool)"),
        ("c.width**-0.5 / c.output_scale if c.tied", "c.width**-0.5 if c.tied"),
    ],
    ("models/layers.py", "models/test_encoder_decoder.py"): [
        ("jnp.where(apart < 0, buckets, 0)", "jnp.where(apart > 0, buckets, 0)"),
        ("np.minimum(grown, buckets - 1)", "grown"),
        ("jnp.minimum(behind, c.relative_distance)", "jnp.minimum(behind, c.relative_distance - 1)"),
    ],
    ("models/convert/t5.py", "models/test_t5_files.py"): [
        ("""fields.get("scale_decoder_outputs", tied)""", """fields.get("scale_decoder_outputs", True)"""),
        ("own_output=True", "own_output=False"),
    ],
    ("models/encoder.py", "models/test_encoder.py"): [
        ("first_index(batch.segments != 0)", "jnp.zeros_like(batch.segments[:, 0])"),
        ("first_index(batch.segments != 0)", "jnp.sum(batch.segments != 0, axis=1) - 1"),
        ("jnp.tanh(cast(", "(cast("),
    ],
    ("models/encoder.py", "parity/test_encoders.py"): [
        ('name="norm")(ACTIVATIONS[c.activation](x))', 'name="norm")(x)'),
        (' + params["unembed"]["bias"][None]', ""),
    ],
    ("models/decoder.py", "models/test_encoder.py"): [
        ('name="types")(jnp.zeros_like(tokens))', 'name="types")(jnp.ones_like(tokens))'),
    ],
    ("models/convert/bert.py", "parity/test_encoders.py"): [
        ("skip=offset)", "skip=0)"),
        ("max_length=places - offset", "max_length=places"),
        ('square, vector = "e d -> d e"', 'square, vector = "d e -> d e"'),
        ('"c d -> d c"', '"d c -> d c"'),
    ],
    ("models/critics.py", "models/test_critics.py"): [
        ("values_before(trunk.scalar", "(lambda x, _: x)(trunk.scalar"),
        ("for one in (first, second)", "for one in (first, first)"),
    ],
    ("models/convert/table.py", "models/test_table.py"): [
        ("(self._skip if place == 0 else 0)", "0"),
        ("if stop - start != 1)", "if stop - start == 1)"),
        ("[(*(self._part,) * self._numbered, ...)]", "[(*(0,) * self._numbered, ...)]"),
    ],
    ("models/lora.py", "models/test_lora.py"): [
        ('adapter["lora_b"] * (config.alpha / config.rank)', 'adapter["lora_b"] * config.alpha'),
        ("BASE: Frozen(without_scores(params))", "BASE: without_scores(params)"),
    ],
    ("models/convert/peft.py", "models/test_peft.py"): [
        ("not _transposed(family, config, path) for path", "_transposed(family, config, path) for path"),
        ('ends = {module.partition("{}.")[2]', 'ends = {module.rpartition(".")[2]'),
        ("    if any(other.endswith(", "    if False and any(other.endswith("),
        ("side, lora.rank).T", "side, lora.rank)"),
    ],
    ("models/convert/fields.py", "models/test_fields.py"): [
        ("given = scaling | given", "given = given"),
        ("for value in (own, beside)", "for value in (beside, own)"),
        ('if kind == "full_attention")', 'if kind == "sliding_attention")'),
    ],
    ("models/convert/llama.py", "models/test_fields.py"): [
        ("heads if grouped is None else ", "kv_heads or heads if grouped is None else "),
        ("tuple(range(min(first, layers)))", "tuple(range(min(first, layers), layers))"),
    ],
    ("models/convert/gemma.py", "models/test_fields.py"): [("if (n + 1) % every", "if n % every")],
    ("models/convert/neox.py", "models/test_fields.py"): [('("rotary_pct", 0.25)', '("rotary_pct", 1.0)')],
    ("models/convert/load.py", "models/test_load.py"): [
        ("same = same and np.array_equal", "same = np.array_equal"),
        (" and original in found:", ":"),
    ],
    ("models/convert/save.py", "models/test_save.py"): [
        ('float(np.asarray(params["score"]["bias"]))', "0.0"),
        ("leaf if layer is None else leaf[layer]", "leaf if layer is None else leaf[0]"),
    ],
    ("models/convert/store.py", "models/test_store.py models/test_save.py"): [
        (" or found.tobytes() != array.tobytes()", ""),
        ("filled + count > limit", "filled > limit"),
        ("if name in self._where:", "if name == self._where:"),
    ],
}
