"""The mistakes that `mutations.py` makes: by file and its tests, what stands there and what it becomes."""

from __future__ import annotations

from mutation_table_models import MODELS
from mutation_table_runs import RUNS

# (file in rlhf_jax/, its tests in tests/): what stands there, and the mistake.
MUTATIONS: dict[tuple[str, str], list[tuple[str, str]]] = (
    {
        ("losses/classification.py", "losses/test_classification_loss.py"): [
            ("jnp.argmax(logits, axis=-1) == actual", "jnp.argmin(logits, axis=-1) == actual"),
            ("losses = -jnp.take", "losses = jnp.take"),
            ("weighted_mean(losses, batch.weight)", "jnp.mean(losses)"),
        ],
        ("masking.py", "test_masking.py"): [
            ("masked_sum(x, mask) / jnp.maximum(mask_weight(mask), 1.0)", "masked_sum(x, mask) / x.size"),
            (
                "return masked_mean(jnp.square(x - masked_mean(x, mask)), mask)",
                "return masked_sum(jnp.square(x - masked_mean(x, mask)), mask) / jnp.maximum(mask_weight(mask) - 1.0, 1.0)",
            ),
            ("whitened if shift_mean else whitened + mean", "whitened + mean if shift_mean else whitened"),
            ("jnp.max(jnp.where(mask, columns[None, :], 0), axis=1)", "jnp.sum(mask, axis=1, dtype=jnp.int32) - 1"),
            ("return counts - mask.astype(jnp.int32)", "return counts"),
        ],
        ("losses/advantages.py", "losses/test_advantages.py"): [
            ("rewards + gamma * next_values - values", "rewards + next_values - values"),
            ("delta + gamma * lam * following", "delta + lam * following"),
            ("jnp.pad(values[:, 1:], ((0, 0), (0, 1)))", "jnp.pad(values[:, :-1], ((0, 0), (1, 0)))"),
            (", jnp.where(mask, values, 0.0)", ", values"),
            ("jnp.where(mask, advantages + values, 0.0)", "jnp.where(mask, advantages + rewards, 0.0)"),
            (" * (count / (count - 1))", ""),
            ("jax.nn.one_hot(jnp.argmax(scores, axis=1)", "jax.nn.one_hot(jnp.argmin(scores, axis=1)"),
            ("sign = best - worst", "sign = worst - best"),
            ("jax.nn.sigmoid(beta * difference(log_ratio))", "jax.nn.sigmoid(difference(log_ratio))"),
            ("scores - jnp.mean(scores, axis=1, keepdims=True)", "scores - jnp.mean(scores)"),
            ("keepdims=True, ddof=ddof)", "keepdims=True, ddof=0)"),
            ("decay * average + (1 - decay) * jnp.mean(scores)", "(1 - decay) * average + decay * jnp.mean(scores)"),
            ("return scores - average, ", "return scores - jnp.mean(scores), "),
        ],
        ("losses/ensemble.py", "losses/test_ensemble.py"): [
            ("jnp.min(scores, axis=0)", "jnp.max(scores, axis=0)"),
            ("jnp.var(scores, axis=0)", "jnp.var(scores, axis=0, ddof=1)"),
        ],
        ("losses/kl.py", "losses/test_kl.py"): [
            ("return logprobs - other_logprobs", "return other_logprobs - logprobs"),
            ("log_ratio = other_logprobs - logprobs", "log_ratio = logprobs - other_logprobs"),
            ("jnp.cumsum(x[:, ::-1], axis=1)[:, ::-1]", "jnp.cumsum(x, axis=1)"),
            ("return fixed(log_ratio) + ", "return log_ratio + "),
            ("fixed(to_go(log_ratio, mask)) * score", "fixed(log_ratio) * score"),
            ("later = to_go(token_kl, mask) - token_kl", "later = to_go(token_kl, mask)"),
            ("jnp.clip(kl / target - 1.0, ", "jnp.clip(1.0 - kl / target, "),
            ("jnp.clip(kl / target - 1.0, -0.2, 0.2)", "(kl / target - 1.0)"),
            ("error * episodes / horizon", "error / horizon"),
        ],
        ("losses/policy.py", "losses/test_policy.py"): [
            ("jnp.sum(log_ratio, axis=1, keepdims=True) / length", "jnp.sum(log_ratio, axis=1, keepdims=True)"),
            ("jnp.clip(ratio, 1 - clip, 1 + high)", "jnp.clip(ratio, 1 - clip, 1 + clip)"),
            ("jnp.minimum(ratio * advantages, ", "jnp.maximum(ratio * advantages, "),
            ("jnp.where(advantages < 0, ", "jnp.where(advantages > 0, "),
            ("jax.lax.stop_gradient(jnp.minimum(ratio, cap))", "jnp.minimum(ratio, cap)"),
            ("inside / jnp.maximum(length, 1.0)[:, None], present", "inside, length"),
            ("jnp.ones_like(length)", "present"),
            ("inside * share[:, None], length * share", "inside * share[:, None], present"),
            ("jnp.where(weights.token > 0, weights.token * losses, 0.0)", "weights.token * losses"),
            ("mask & finished[:, None]", "mask & ~finished[:, None]"),
            ("longest - cache - length", "longest - length"),
        ],
        ("losses/policy.py", "losses/test_ppo.py"): [
            ("k3(old_logprobs, logprobs)", "k3(logprobs, old_logprobs)"),
            ("rollout.batch, rollout.temperature)", "rollout.batch, jnp.float32(1.0))"),
            ("losses = -objective", "losses = objective"),
            ("losses + trajectory.loss_kl_coef * penalty", "losses - trajectory.loss_kl_coef * penalty"),
            ("kl_loss(stats.logprobs, trajectory.ref_logprobs, ", "kl_loss(stats.logprobs, trajectory.old_logprobs, "),
        ],
        ("losses/ppo.py", "losses/test_ppo.py"): [
            ("-kl_coef * k1(", "kl_coef * k1("),
            ("last_index(earned)[:, None])", "last_index(earned)[:, None] - 1)"),
            ("before(batch.positions) + 1", "before(batch.positions)"),
            ("jnp.where(last, scores[:, None], 0.0)", "jnp.where(last, jnp.trunc(scores)[:, None], 0.0)"),
            ("near = old_values + ", "near = values + "),
            ("jnp.maximum(error, clipped)", "jnp.minimum(error, clipped)"),
            ("0.5 * masked_mean(error, mask)", "0.5 * jnp.mean(error)"),
            ("jnp.square(residual - masked_mean(residual, mask))", "jnp.square(residual)"),
            ("trajectory.values, trajectory.returns, ", "trajectory.returns, trajectory.values, "),
        ],
        ("losses/preference.py", "losses/test_preference_losses.py"): [
            ("self.chosen_ratio - self.rejected_ratio", "self.rejected_ratio - self.chosen_ratio"),
            ("(1 - flip) * right - flip * wrong", "(1 - flip) * right + flip * wrong"),
            ("pair.rejected_ratio / pair.rejected_length", "pair.rejected_ratio / pair.chosen_length"),
            ("1 / (2 * tau)", "1 / tau"),
            ("beta * difference - margin", "beta * difference + margin"),
            ("pair.chosen / pair.chosen_length, pair.rejected / pair.rejected_length", "pair.chosen, pair.rejected"),
            ("jax.lax.stop_gradient(jnp.maximum(baseline, 0.0))", "jnp.maximum(baseline, 0.0)"),
            ("jnp.maximum(baseline, 0.0)", "baseline"),
            ("jnp.where(wanted, gain, -gain)", "gain"),
            (
                "jnp.sum(jnp.where(batch.loss_mask, per_token, 0.0)",
                "jnp.mean(jnp.where(batch.loss_mask, per_token, 0.0)",
            ),
            ("jnp.where(batch.loss_mask, per_token, 0.0)", "per_token"),
            ("accuracy_of(pair.chosen_ratio, pair.rejected_ratio)", "accuracy_of(pair.chosen, pair.rejected)"),
            ("weighted_mean(now - before, weight)", "weighted_mean(before - now, weight)"),
            ("reply_logprobs(p, batch.mismatched, ", "reply_logprobs(p, batch.labels.text, "),
            ("reply_logprobs(reference, batch.labels.text, ", "reply_logprobs(reference, batch.mismatched, "),
            ("ratio = logp - batch.ref", "ratio = batch.ref - logp"),
            ("ratio - jnp.maximum(batch.baseline, 0.0)", "ratio - batch.baseline"),
        ],
        ("data/batching/unpaired.py", "data/test_unpaired.py"): [
            ("(last + noise.integers", "(first + noise.integers"),
            ("EncodedLabel(short.rejected, 0, example.weight)", "EncodedLabel(short.rejected, 1, example.weight)"),
            ("default_rng((STREAM, self.seed, step))", "default_rng((STREAM, self.seed))"),
            ("prompt = example.chosen.prompt if pair", "prompt = example.chosen.reply if pair"),
        ],
        ("loops/preference.py", "loops/test_kto.py"): [
            ("kto_baseline(params, reference, batch, ", "kto_baseline(reference, params, batch, "),
            ("kto_baseline(p[0], p[1], batch, ", "kto_baseline(p[0], p[0], batch, "),
        ],
        ("losses/q_learning.py", "losses/test_q_learning.py"): [
            ("[:, 1:], ((0, 0), (0, 1)))", "[:, :-1], ((0, 0), (1, 0)))"),
            ("rewards + gamma * following(values, mask)", "gamma * (rewards + following(values, mask))"),
            ("rewards + gamma * following(values, mask)", "rewards + gamma * values"),
            ("loss = masked_mean(jnp.square(target - q), mask)", "loss = masked_mean(jnp.abs(target - q), mask)"),
            (
                "one_step_targets(batch.rewards, batch.target_q, mask, ",
                "one_step_targets(batch.rewards, 0 * batch.target_q, mask, ",
            ),
            ('"q": masked_mean(q, mask)', '"q": jnp.mean(q)'),
            ("jnp.where(u < 0, 1 - tau, tau)", "jnp.where(u < 0, tau, 1 - tau)"),
            ("incremental_update(online, target, rate)", "incremental_update(target, online, rate)"),
            ("batch.rewards, jax.lax.stop_gradient(v), mask", "batch.rewards, v, mask"),
            ("masked_mean(norm - q, mask)", "masked_mean(q - norm, mask)"),
            ("taken += 0.5 * masked_mean", "taken += masked_mean"),
            ("jnp.minimum(q1, q2)", "jnp.maximum(q1, q2)"),
            ("jnp.minimum(seen.q1, seen.q2)", "seen.q1"),
            ("at_end = text.loss_mask & (", "at_end = ("),
            ("== last_index(text.loss_mask)", "== last_index(text.segments != 0)"),
        ],
        ("masking.py", "test_masking.py models/test_encoder_decoder.py"): [
            ("learned == jax.lax.cummax(before, axis=1)", "learned == 0"),
            ("learned - loss_mask.astype(jnp.int32), 0)", "learned, 0)"),
        ],
        ("eval/classification.py", "eval/test_classification.py"): [
            ("(actual, predicted), 1", "(predicted, actual), 1"),
            ("2 * right / np.maximum(found + support, 1)", "right / np.maximum(found + support, 1)"),
            ("return float(self.f1.mean())", "return 2 / (1 / self.macro_precision + 1 / self.macro_recall)"),
        ],
        ("losses/ranking.py", "losses/test_ranking.py"): [
            ("rank[:, :, None] < rank[:, None, :]", "rank[:, :, None] <= rank[:, None, :]"),
            ("-difference - threshold", "-difference + threshold"),
        ],
        ("losses/rating.py", "losses/test_rating.py"): [
            ("low, high = rising[grade] - scores, ", "low, high = rising[grade] + scores, "),
            ("masked_mean(losses, batch.mask)", "masked_mean(losses, batch.text.loss_mask)"),
        ],
        ("losses/reward.py", "losses/test_reward.py"): [
            ("(chosen - rejected - margin, ", "(chosen - rejected + margin, "),
            ("chosen == rejected, 0.5, ", "chosen == rejected, 1.0, "),
            ("float(np.std(scores))", "float(np.std(scores, ddof=1))"),
            ("return 1 / std, -mean / std", "return 1 / std, -mean"),
            ("jnp.sum(weight * x) / jnp.maximum(jnp.sum(weight), 1e-9)", "jnp.mean(weight * x)"),
        ],
        ("losses/reward.py", "losses/test_ranking.py"): [
            ("(1 - label_smoothing) * right + label_smoothing", "label_smoothing * right + (1 - label_smoothing)"),
        ],
        ("losses/sft.py", "losses/test_sft.py"): [
            ("logprobs(params, batch, 1.0), batch.loss_mask)", "logprobs(params, batch, 1.0), batch.segments != 0)"),
            ("weight=mask_weight(batch.loss_mask)", "weight=mask_weight(batch.segments != 0)"),
        ],
        ("rollout/generate.py", "rollout/test_generate.py"): [
            ("keys, column, temperature)", "keys, column, 1.0)"),
            ("keys, column, temperature)", "keys, 0, temperature)"),
            ("place = next_position + column - 1", "place = next_position + column"),
            ("width + column - 1, alive", "width + column - 2, alive"),
            ('put(s["written"], column, alive)', 'put(s["written"], column, alive & ~stopped)'),
            ('s["finished"] | stopped', "stopped"),
            ("[jnp.zeros_like(prompts.loss_mask), written]", "[prompts.loss_mask, written]"),
        ],
        ("rollout/generate.py", "rollout/test_truncate.py"): [
            ("place >= after", "place > after"),
            ("stops = mask & (rollout", "stops = (rollout"),
            ("jnp.cumsum(stops, axis=1) - stops.astype(jnp.int32) > 0", "jnp.cumsum(stops, axis=1) > 0"),
            ("real = (rollout.batch.segments != 0)", "real = (rollout.batch.tokens != 0)"),
        ],
        ("rollout/guided.py", "rollout/test_guided.py"): [
            ('policy.unembed(params["policy"], x[..., :width])', 'policy.unembed(params["policy"], x[..., -width:])'),
            (
                'theirs = critics.trunk.decode(params["critics"]["trunk"], *read, cache[1])',
                'theirs = critics.trunk.decode(params["critics"]["trunk"], *read, cache[0])',
            ),
        ],
        ("rollout/sampling.py", "rollout/test_sampling.py"): [
            ("jax.random.fold_in(run_key, step)", "run_key"),
            ("jax.random.fold_in(jax.random.fold_in(at_step, prompt), sample)", "jax.random.fold_in(at_step, prompt)"),
            ("gumbel(jax.random.fold_in(key, column), ", "gumbel(key, "),
            ("jnp.argmax(logits + noise, ", "jnp.argmax(logits - noise, "),
            ("jnp.argmax(logits + noise, ", "jnp.argmax(logits * temperature + noise, "),
        ],
        ("rollout/replies.py", "rollout/test_replies.py"): [
            ("if ids and ids[-1] == tokenizer.eos", "if ids"),
            ("row_keys(key, 0, index, ", "row_keys(key, 0, np.arange(len(index)), "),
        ],
        ("losses/scores.py", "losses/test_scores.py"): [
            ("distance**2 * moments.count * size / count", "distance**2 * size / count"),
            ("distance * size / count, squares", "distance, squares"),
            ("scores - shift", "scores + shift"),
        ],
        ("rollout/refill.py", "rollout/test_refill.py"): [
            ("jnp.argsort(~has_signal", "jnp.argsort(has_signal"),
            ("groups[:, None] * samples + ", "groups[:, None] + "),
            ("jnp.max(table, axis=1) > jnp.min(table, axis=1)", "jnp.max(table, axis=1) > 0"),
        ],
        ("rollout/score.py", "rollout/test_score.py"): [
            ("token_stats(first, hidden, batch, rollout.temperature", "token_stats(first, hidden, batch, 1.0"),
            (
                "token_stats(second, ref_hidden, batch, rollout.temperature",
                "token_stats(second, ref_hidden, batch, 1.0",
            ),
            ("hidden, second, ref_hidden, batch, rollout.temperature", "hidden, second, ref_hidden, batch, 1.0"),
            (
                "rollout.finished, scores, config.missing_stop_score",
                "rollout.finished, config.missing_stop_score, scores",
            ),
            ("whiten(rewards, steps, shift_mean=False)", "whiten(rewards, steps)"),
            ("whiten(advantages, mask)", "whiten(advantages, jnp.ones_like(mask))"),
            ("jnp.mean(jnp.sum(jnp.where(mask, kl, 0.0), axis=1))", "jnp.mean(jnp.where(mask, kl, 0.0))"),
            ("jnp.abs(rollout.logprobs - old.logprobs)", "rollout.logprobs - old.logprobs"),
        ],
        ("rollout/score.py", "rollout/test_advantages_of.py"): [
            ("scores = scores + overlong_penalty", "scores = scores - overlong_penalty"),
            ("totals.reshape(-1, config.samples)", "totals.reshape(config.samples, -1).T"),
            ("to_go + (relative - totals)[:, None]", "to_go + relative[:, None]"),
            ("penalised = kl_coef if in_reward else 0.0", "penalised = kl_coef"),
            ("k1(old.logprobs, ref.logprobs)", "k1(ref.logprobs, old.logprobs)"),
            ("constant=float(config.new_tokens)", "constant=float(mask.shape[1])"),
            ("jnp.arange(rows) // config.samples", "jnp.arange(rows) % (rows // config.samples)"),
        ],
        ("train/optimizer.py", "train/test_optimizer.py"): [
            ("max(config.total - config.warmup, 1)", "max(config.total, 1)"),
            ("linear_schedule(config.lr / config.warmup, ", "linear_schedule(0.0, "),
            ("[warmup, decay], [config.warmup]", "[warmup, decay], [config.warmup + 1]"),
            ("eps=config.eps", "eps_root=config.eps"),
            ("(config.weight_decay, is_matrix)", "(config.weight_decay)"),
            ("jnp.sqrt(1 - b2**count) / (1 - b1**count)", "1.0 / (1 - b1**count)"),
            (
                "optax.clip_by_global_norm(config.max_grad_norm), adam",
                "adam, optax.clip_by_global_norm(config.max_grad_norm)",
            ),
        ],
        ("train/critics.py", "train/test_critic_step.py"): [
            ("with_targets(state.slow, batch", "with_targets(state.train.params, batch"),
            ("polyak(state.slow, train.params", "polyak(state.slow, state.train.params"),
        ],
        ("train/ppo.py", "train/test_ppo_update.py"): [
            (
                "average, moments = if_finite((trajectory.average, trajectory.moments), (state.average, state.moments))",
                "average, moments = trajectory.average, trajectory.moments",
            ),
            ("skips(policy) if value is None else skips(policy, value)", "skips(policy)"),
            ("jax.random.split(key, epochs)", "jnp.stack([key] * epochs)"),
            ("return a + coef * b, ", "return a + b, "),
            ("g + coef * e", "g + e"),
            ("policy_tx, ema=ema, loss", "policy_tx, ema=None, loss"),
            ("((trajectory.average, trajectory.moments)", "((state.average, trajectory.moments)"),
            ("metrics[name][0]", "metrics[name][-1]"),
        ],
        ("train/step.py", "train/test_step.py"): [
            ("finite = jnp.isfinite(loss) & ", "finite = "),
            ("& jnp.isfinite(optax.tree.norm(grads))", ""),
            ("skipped=jnp.where(finite, 0, state.skipped + 1)", "skipped=state.skipped"),
            (
                "(state.step + 1, new, opt_state, newly_averaged), kept",
                "(state.step + 1, new, opt_state, averaged), kept",
            ),
            (
                "x.reshape(x.shape[0] // microbatches, microbatches, *x.shape[1:]).swapaxes(0, 1)",
                "x.reshape(microbatches, x.shape[0] // microbatches, *x.shape[1:])",
            ),
            ("x * aux.weight.astype(x.dtype), (grads, aux.metrics, value))", "x, (grads, aux.metrics, value))"),
            ("scale = 1.0 / jnp.maximum(total.weight, 1e-9)", "scale = jnp.float32(1 / microbatches)"),
            ("ema * old + (1 - ema) * new", "(1 - ema) * old + ema * new"),
            ("(1 - ema) * new, averaged, new)", "(1 - ema) * new, averaged, live)"),
        ],
        ("train/optimizer.py", "models/test_lora.py"): [
            ('("kernel", "embedding", "lora_a", "lora_b")', '("kernel", "embedding")'),
        ],
        ("loops/adapters.py", "loops/test_lora_runs.py"): [
            ("elif kept.get(stage) != found:", "elif False:"),
            ("jnp.sum(words * place[None]", "jnp.sum(words"),
        ],
        ("data/tokens/encode.py", "data/test_encode.py"): [
            ("len(ending(end)) <= limit", "len(ending(end)) <= limit + 1"),
            ("if count and text[: places[count - 1]].strip():", "if count:"),
        ],
        ("data/batching/padding.py", "data/test_encode.py"): [
            ("starts[row], ends[row] = len(short.prompt), ", "starts[row], ends[row] = len(short.prompt) + 1, "),
        ],
        ("loops/sources.py", "loops/test_stage_data.py"): [
            ("else min(examples, mixture.cap)", "else max(examples, mixture.cap)"),
            ("capped ** (1 / (mixture", "capped ** (1.0 * (mixture"),
        ],
        ("eval/preference.py", "eval/test_preference.py"): [
            ("(raw - chance) / (100.0 - chance)", "(raw - chance) / 100.0"),
        ],
        ("sharding.py", "plan/test_collectives.py"): [
            ('(jax.lax.pcast(leaf, axes, to="varying") for leaf in given)', "iter(given)"),
        ],
        ("plan/hlo.py", "plan/test_hlo.py"): [
            ("times * self._trips(each, condition)", "times"),
            ("share = (self.group - 1) / self.group", "share = 1.0"),
            ("_shapes(text) if not shape[2])", "_shapes(text))"),
        ],
        ("plan/flops.py", "plan/test_roofline.py"): [
            ('parameters["length"] * matmul_flops', "matmul_flops"),
            ("max(matmul_flops(branch, turns=turns)", "min(matmul_flops(branch, turns=turns)"),
        ],
        ("data/readers/parallel.py", "data/test_sources.py"): [
            (
                "            raise DataError(place, reason,",
                "            return\n            raise DataError(place, reason,",
            ),
        ],
    }
    | MODELS
    | RUNS
)
