"""Encoder-decoders: what each half sees, and that they are the same model however they are read. The function itself is held to T5's in
tests/parity/test_families.py.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import built, critics_of, jitted, left_padded, lively, lively_critics, moved_left, right_padded
from checkpoints import T5

from rlhf_jax.config import LoRA
from rlhf_jax.models.encoder_decoder import decoded
from rlhf_jax.models.layers import RelativeBias
from rlhf_jax.models.lora import targets_of
from rlhf_jax.rollout.generate import generate
from rlhf_jax.rollout.guided import guided
from rlhf_jax.types import TokenBatch

LENGTHS, WIDTH, PROMPT = [9, 6, 7], 9, 4
FLAN = dataclasses.replace(T5, activation="geglu", tied=False, output_scale=1.0, embedding_scale=0.5, kv_heads=2)
both = pytest.mark.parametrize("config", [T5, FLAN], ids=["T5", "Flan-T5, grouped heads"])


def rows(prompt: int = PROMPT) -> TokenBatch:
    return right_padded(LENGTHS, WIDTH, prompt=prompt, vocab=T5.vocab)


def logprobs(config, batch, params=None):
    return np.asarray(jitted(built(config).logprobs)(lively(config) if params is None else params, batch, 1.0))


def changed(batch: TokenBatch, row: int, column: int) -> TokenBatch:
    return dataclasses.replace(
        batch, tokens=batch.tokens.at[row, column].set((batch.tokens[row, column] + 1) % T5.vocab)
    )


def test_a_decoder_sees_the_reply_and_the_last_token_of_the_prompt():
    packed = TokenBatch(
        jnp.zeros((1, 9), jnp.int32),
        jnp.zeros((1, 9), jnp.int32),
        jnp.array([[1, 1, 1, 2, 2, 2, 2, 3, 0]], jnp.int32),
        jnp.array([[False, False, True, False, False, True, True, False, False]]),
    )
    np.testing.assert_array_equal(decoded(packed).segments, [[0, 1, 1, 0, 2, 2, 2, 3, 0]])
    left = left_padded([2, 4], 5, prompt=2)
    np.testing.assert_array_equal(decoded(left).segments, [[0, 0, 0, 0, 1], [0, 0, 1, 1, 1]])


@both
def test_replies_have_probabilities_and_prompts_do_not(config):
    batch = rows()
    found = logprobs(config, batch)
    learned = np.asarray(batch.loss_mask)
    assert (found[~learned] == 0).all()
    assert (found[learned] < 0).all()
    # Over all tokens that could stand there the probabilities sum to 1.
    tokens = jnp.arange(config.vocab, dtype=jnp.int32)
    one = jax.tree.map(lambda x: jnp.repeat(x[:1], config.vocab, axis=0), batch)
    one = dataclasses.replace(one, tokens=one.tokens.at[:, PROMPT + 2].set(tokens))
    np.testing.assert_allclose(np.exp(logprobs(config, one)[:, PROMPT + 2]).sum(), 1.0, atol=1e-5)


@both
def test_a_reply_token_depends_on_all_of_the_prompt_and_on_the_reply_before_it(config):
    batch = rows()
    before = logprobs(config, batch)
    for column in range(
        PROMPT
    ):  # the encoder reads both ways, and the decoder reads its start token, not the prompt's last
        moved = logprobs(config, changed(batch, 0, column))
        assert (np.abs(moved - before)[0, PROMPT:9] > 1e-6).all(), column
    moved = logprobs(config, changed(batch, 0, 6))
    np.testing.assert_allclose(moved[0, :6], before[0, :6], atol=1e-6)
    assert (np.abs(moved - before)[0, 6:9] > 1e-6).all()
    np.testing.assert_allclose(moved[1:], before[1:], atol=1e-6)


@both
def test_padding_on_either_side_and_other_texts_in_the_row_change_nothing(config):
    batch = rows()
    found = logprobs(config, batch)
    left = moved_left(batch)
    np.testing.assert_allclose(logprobs(config, left)[left.loss_mask], found[batch.loss_mask], atol=2e-5)
    filler = jnp.where(batch.segments == 0, 5, batch.tokens)
    np.testing.assert_array_equal(logprobs(config, dataclasses.replace(batch, tokens=filler)), found)
    texts = [[np.asarray(leaf)[row, :length] for leaf in jax.tree.leaves(batch)] for row, length in enumerate(LENGTHS)]
    tokens, positions, segments, learned = (np.concatenate(leaves)[None] for leaves in zip(*texts, strict=True))
    segments = segments * np.repeat([1, 2, 3], LENGTHS)[None]
    together = TokenBatch(*map(jnp.asarray, (tokens, positions, segments.astype(np.int32), learned)))
    np.testing.assert_allclose(logprobs(config, together)[learned], found[batch.loss_mask], atol=2e-5)


@both
def test_reading_with_the_cache_gives_the_hidden_states_of_the_whole_forward_pass(config):
    model, params = built(config), lively(config)
    prompts = left_padded([3, 5, 1], 5, prompt=5, seed=1, vocab=config.vocab)
    more = np.random.default_rng(2).integers(0, config.vocab, (3, 4)).astype(np.int32)
    hidden, cache = jax.jit(model.prefill, static_argnums=2)(params, prompts, 9)
    assert cache.decoder.layers[0][0].shape[3] == 5, (
        "the prompt is in the encoder; the decoder keeps the start token and the reply"
    )
    seen = [hidden]
    for column in range(4):
        tokens, place = jnp.asarray(more[:, column]), jnp.array([3, 5, 1], jnp.int32) + column
        hidden, cache = jitted(model.decode)(params, tokens, place, 5 + column, jnp.ones(3, bool), cache)
        seen.append(hidden)
    whole = TokenBatch(
        jnp.concatenate([prompts.tokens, more], axis=1),
        jnp.pad(prompts.positions, ((0, 0), (0, 4))),
        jnp.pad(prompts.segments, ((0, 0), (0, 4)), constant_values=1),
        jnp.pad(jnp.zeros((3, 5), bool), ((0, 0), (0, 4)), constant_values=True),
    )
    expected = np.asarray(jitted(model.hidden)(params, whole))[:, 4:]
    np.testing.assert_allclose(np.stack(seen, axis=1), expected, atol=2e-5)


@pytest.mark.parametrize("unroll", [False, True])
def test_what_both_sides_keep_is_in_the_dtype_of_the_cache(unroll):
    config = dataclasses.replace(T5, unroll=unroll)
    params = jax.tree.map(lambda x: 0.5 * x, lively(config))
    prompts = left_padded([3, 5], 5, prompt=5, vocab=T5.vocab)
    read = []
    for dtype in (None, "bfloat16"):
        model = built(dataclasses.replace(config, cache_dtype=dtype))
        _, cache = jax.jit(model.prefill, static_argnums=2)(params, prompts, 7)
        tokens, places = jnp.array([4, 4], jnp.int32), jnp.array([3, 5], jnp.int32)
        hidden, cache = jitted(model.decode)(params, tokens, places, 5, jnp.ones(2, bool), cache)
        kept = jax.tree.leaves((cache.decoder.layers, cache.keys, cache.values))
        assert {leaf.dtype.name for leaf in kept} == {model.config.kept_dtype}
        read.append(hidden)
    exact, rounded = read
    assert rounded.dtype == jnp.float32 and 0 < np.abs(exact - rounded).max() < 0.02


def test_a_row_that_has_ended_leaves_nothing_to_attend_to():
    model, params = built(T5), lively(T5)
    prompts = left_padded([3, 5], 5, prompt=5, vocab=T5.vocab)
    _, cache = jax.jit(model.prefill, static_argnums=2)(params, prompts, 7)
    np.testing.assert_array_equal(cache.decoder.filled, [[True, False, False]] * 2)
    alive, tokens = jnp.array([True, False]), jnp.array([4, 4], jnp.int32)
    _, cache = jitted(model.decode)(params, tokens, jnp.array([3, 5], jnp.int32), 5, alive, cache)
    np.testing.assert_array_equal(cache.decoder.filled, [[True, True, False], [True, False, False]])


@both
def test_samples_have_the_log_probs_that_the_training_graph_gives_them(config):
    prompts = left_padded([1, 4, 3, 2], 4, prompt=4, seed=7, vocab=config.vocab)
    run = jitted(partial(generate, model=built(config), new_tokens=6, stop=(0, 1)))
    rollout = run(lively(config), prompts, jax.random.split(jax.random.key(5), 4), 0.7)
    again = np.asarray(jitted(built(config).logprobs)(lively(config), rollout.batch, 0.7))
    mask = np.asarray(rollout.batch.loss_mask)
    assert mask.sum() > 8
    np.testing.assert_allclose(again[mask], np.asarray(rollout.logprobs)[mask], atol=2e-5)


def test_critics_guide_an_encoder_decoder_too():
    policy, critics = built(T5), critics_of(T5)
    model = guided(policy, critics)
    params = {"policy": lively(T5), "critics": lively_critics(T5), "beta": jnp.float32(0.5)}
    prompts = left_padded([1, 4, 3, 2], 4, prompt=4, seed=7, vocab=T5.vocab)
    run = jax.jit(partial(generate, model=model, new_tokens=5))
    rollout = run(params, prompts, jax.random.split(jax.random.key(5), 4), 1.0)
    again = np.asarray(jax.jit(model.logprobs)(params, rollout.batch, 1.0))
    np.testing.assert_allclose(again, rollout.logprobs, atol=5e-5)


def test_a_score_is_of_the_whole_text_and_values_of_what_stands_before_a_token():
    config = dataclasses.replace(T5, head="scalar")
    model, params = built(config), lively(config)
    batch = rows()
    scores = jitted(model.scores)(params, batch)
    np.testing.assert_allclose(jitted(model.scores)(params, rows(prompt=2)), scores, atol=1e-6)
    np.testing.assert_allclose(jitted(model.scores)(params, moved_left(batch)), scores, atol=1e-5)
    assert float(jnp.std(scores)) > 0.01
    # A reply that repeats the prompt without its end is what the decoder reads.
    text = batch.tokens[:1]
    twice = jnp.concatenate([text, text[:, :-1]], axis=1)
    columns = jnp.arange(twice.shape[1], dtype=jnp.int32)[None]
    repeated = TokenBatch(twice, columns, jnp.ones_like(twice), columns >= WIDTH)
    by_hand = model.scalar(params, jitted(model.hidden)(params, repeated)[:, -1])
    np.testing.assert_allclose(scores[:1], by_hand, atol=1e-5)
    for column in range(WIDTH):
        assert abs(jitted(model.scores)(params, changed(batch, 0, column)) - scores)[0] > 1e-6, column
    values = np.asarray(jitted(model.values)(params, batch))
    assert (values[~np.asarray(batch.loss_mask)] == 0).all()
    moved = np.asarray(jitted(model.values)(params, changed(batch, 0, 6)))
    np.testing.assert_allclose(moved[0, :7], values[0, :7], atol=1e-6)
    assert (np.abs(moved - values)[0, 7:9] > 1e-6).all()


def test_a_value_head_on_a_policy_starts_at_zero():
    model = built(dataclasses.replace(T5, head="lm+scalar"))
    params = model.init(jax.random.key(0))
    np.testing.assert_array_equal(jitted(model.values)(params, rows()), 0.0)
    assert float(jnp.abs(jitted(built(dataclasses.replace(T5, head="scalar")).scores)(
        built(dataclasses.replace(T5, head="scalar")).init(jax.random.key(0)), rows())).max()) > 0.01  # fmt: skip


@pytest.mark.parametrize("tied", [True, False])
def test_logits_of_a_fresh_model_have_about_unit_spread(tied):
    config = dataclasses.replace(T5, tied=tied, width=64, vocab=200, output_scale=0.125 if tied else 1.0)
    model = built(config)
    logits = jax.jit(model.logits)(model.init(jax.random.key(0)), rows())
    assert 0.5 < float(jnp.std(logits[:, PROMPT])) < 2.0


def test_layers_are_computed_again_in_the_backward_pass_without_changing_a_gradient():
    batch = rows()

    def gradient(config):
        return jax.jit(jax.grad(lambda params: jnp.sum(built(config).logprobs(params, batch, 1.0))))(lively(T5))

    plain, again = gradient(T5), gradient(dataclasses.replace(T5, remat="layers"))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5, rtol=1e-4), plain, again)


def test_bfloat16_is_close_and_its_probabilities_are_float32():
    half = built(dataclasses.replace(T5, dtype="bfloat16"))
    params = jax.tree.map(lambda x: 0.5 * x, lively(T5))
    rough = jitted(half.logprobs)(params, rows(), 1.0)
    assert rough.dtype == jnp.float32
    gap = np.abs(np.asarray(rough) - logprobs(T5, rows(), params))
    assert 0 < gap.max() < 0.1


@pytest.mark.parametrize(("buckets", "longest"), [(32, 128), (16, 128), (8, 5), (12, 14), (64, 1000)])
@pytest.mark.parametrize("both_ways", [True, False])
def test_distances_fall_into_the_buckets_of_transformers(buckets, longest, both_ways):
    import torch
    from transformers.models.t5.modeling_t5 import T5Attention

    config = dataclasses.replace(T5, relative_buckets=buckets, relative_distance=longest)
    apart = jnp.array([0, 2 * longest])[:, None] - jnp.arange(3 * longest)[None, :]
    theirs = T5Attention._relative_position_bucket(
        torch.tensor(-np.asarray(apart)),
        bidirectional=both_ways,
        num_buckets=buckets,
        max_distance=longest,
    )
    table = jnp.tile(jnp.arange(buckets, dtype=jnp.float32)[:, None], (1, config.heads))
    found = RelativeBias(config, both_ways).apply({"params": {"embedding": table}}, apart[None])
    for head in np.asarray(found)[0]:
        np.testing.assert_array_equal(head, theirs.numpy())


def test_patterns_of_adapters_name_one_stack_or_both():
    def found(*targets):
        return ["/".join(path) for path in targets_of(lively(T5), LoRA(targets=targets))]

    queries = ["decoder/layers/attention/q", "decoder/layers/cross/attention/q", "encoder/layers/attention/q"]
    assert found("attention/q") == queries
    assert found("cross/attention/q") == queries[1:2]
    assert found("encoder/*") == [f"encoder/layers/{name}" for name in (
        *(f"attention/{part}" for part in "koqv"), "mlp/down", "mlp/up")]  # fmt: skip
    with pytest.raises(ValueError, match=r"no kernel matches 'layers/\*'; there are decoder/attention/k, "):
        found("layers/*")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position": "rope"}, "position='rope': an encoder-decoder .* has position='relative'"),
        ({"causal": False}, "causal=False: the decoder behind encoder_layers is causal"),
        ({"norm_at": "after"}, "norm_at='after': an encoder-decoder .* has norm_at='before'"),
        ({"window": 3}, "window=3: an encoder-decoder .* has window=None"),
        ({"token_types": 2}, "token_types=2: .* has token_types=0"),
        ({"start": 24}, "start=24 is no token: vocab=24"),
        ({"relative_buckets": 6}, "relative_buckets=6 must be a multiple of 4"),
        ({"relative_distance": 4}, "relative_distance=4 above half as many"),
        ({"encoder_layers": None}, "position='relative' is of encoder-decoders; set encoder_layers"),
        ({"encoder_layers": 0}, "encoder_layers is 0"),
        ({"head": "classes", "classes": 2}, "head='classes' is for encoders"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(T5, **changes)
