from __future__ import annotations

import dataclasses
import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from builders import LLAMA, SCORING, assert_trees_close, built, lively, played, right_padded

from rlhf_jax.config import Optim
from rlhf_jax.losses.policy import policy_loss
from rlhf_jax.losses.ppo import ppo_value_loss
from rlhf_jax.losses.sft import sft_loss
from rlhf_jax.masking import masked_mean
from rlhf_jax.models.api import TokenStats
from rlhf_jax.models.output import predicted, shift_right
from rlhf_jax.train import init_state
from rlhf_jax.train.optimizer import make_optimizer
from rlhf_jax.train.ppo import PPOState, Term, combined, make_ppo_update, minibatch_rows, select_rows, start_ppo
from rlhf_jax.types import Aux, Trajectory

SGD = optax.sgd(1.0)
ADAM = make_optimizer(Optim(lr=0.05, rows=4, steps=10, eps=1e-2))


# Most tests need no network, and compile in no time with a table of logits of the next token by the last one.
def table_stats(params, batch, temperature, last=None):
    logits = jax.nn.log_softmax(params["table"] / temperature)[batch.tokens[:, :-1]]
    taken = jnp.take_along_axis(logits, batch.tokens[:, 1:, None], axis=-1)[:, :, 0]
    entropy = -jnp.sum(jnp.exp(logits) * logits, axis=-1)
    return TokenStats(*(jnp.where(predicted(batch), jnp.pad(x, ((0, 0), (1, 0))), 0.0) for x in (taken, entropy)))


def table_values(params, batch):
    return shift_right(params["values"][batch.tokens])


POLICY_LOSS = partial(policy_loss, token_stats=table_stats, config=SCORING)
VALUE_LOSS = partial(ppo_value_loss, values=table_values, clip=0.2)
PTX_LOSS = partial(sft_loss, logprobs=lambda *of: table_stats(*of).logprobs)


@functools.cache
def table() -> dict[str, jax.Array]:
    return {"table": jnp.asarray(np.random.default_rng(0).normal(size=(32, 32)), jnp.float32)}


@functools.cache
def critic() -> dict[str, jax.Array]:
    return {"values": jnp.asarray(np.random.default_rng(1).normal(size=32), jnp.float32)}


@functools.cache
def seen_by_the_table() -> Trajectory:
    """A trajectory whose old policy is near the table, on both sides of the clip range."""
    trajectory = played()
    batch = trajectory.rollout.batch
    noise = jnp.asarray(np.random.default_rng(2).normal(0.0, 0.2, size=batch.tokens.shape), jnp.float32)
    old = table_stats(table(), batch, trajectory.rollout.temperature).logprobs + noise
    return trajectory.replace(old_logprobs=jnp.where(batch.loss_mask, old, 0.0))


def fresh(tx=SGD, params=None, *, value=False, ema=False) -> PPOState:
    policy = init_state(table() if params is None else params, tx, ema=ema)
    return start_ppo(policy, init_state(critic(), tx) if value else None, jnp.float32(0.1))


def change(after, before):
    return jax.tree.map(lambda new, old: new - old, after, before)


def gradient_of(loss, params, batch):
    return jax.jit(jax.grad(lambda params, batch: loss(params, batch)[0]))(params, batch)


def llama_loss():
    return partial(policy_loss, token_stats=built(LLAMA).token_stats, config=SCORING)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_on_the_first_minibatch_of_a_real_rollout_the_ratio_is_one_and_nothing_is_clipped(temperature):
    update = real_update()
    _, metrics = update(fresh(ADAM, lively(LLAMA)), played(temperature), jax.random.key(0))
    assert float(metrics["first_ratio"]) == pytest.approx(1.0, abs=1e-5)
    assert float(metrics["first_clip_fraction"]) == 0.0
    assert float(metrics["first_approx_kl"]) == pytest.approx(0.0, abs=1e-8)
    assert float(metrics["clip_fraction"]) > 0.0  # later minibatches have moved
    assert float(metrics["approx_kl"]) > 1e-4


def test_at_another_temperature_than_that_of_the_rollout_the_ratio_is_not_one():
    wrong = played(0.7)
    wrong = wrong.replace(rollout=wrong.rollout.replace(temperature=jnp.float32(1.0)))
    _, metrics = real_update()(fresh(ADAM, lively(LLAMA)), wrong, jax.random.key(0))
    assert abs(float(metrics["first_ratio"]) - 1.0) > 0.01


@functools.cache
def real_update():
    return jax.jit(make_ppo_update(llama_loss(), ADAM, None, None, epochs=2, minibatch=4))


def test_on_the_policy_that_sampled_the_gradient_is_the_policy_gradient():
    trajectory = played()

    def reinforce(params):
        logprobs = built(LLAMA).logprobs(params, trajectory.rollout.batch, trajectory.rollout.temperature)
        return -masked_mean(trajectory.advantages * logprobs, trajectory.rollout.batch.loss_mask)

    expected = jax.jit(jax.grad(reinforce))(lively(LLAMA))
    assert_trees_close(gradient_of(llama_loss(), lively(LLAMA), trajectory), expected, atol=2e-5)


def test_one_minibatch_goes_down_the_gradient_of_the_loss():
    update = jax.jit(make_ppo_update(POLICY_LOSS, SGD, None, None, epochs=1, minibatch=8))
    state, metrics = update(fresh(), seen_by_the_table(), jax.random.key(0))
    gradient = gradient_of(POLICY_LOSS, table(), seen_by_the_table())
    assert_trees_close(change(state.policy.params, table()), jax.tree.map(jnp.negative, gradient), atol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(gradient), rtol=1e-5)
    assert 0.0 < float(metrics["clip_fraction"]) < 0.5


def test_demonstrations_add_their_gradient_times_their_coefficient():
    trajectory, demonstrations = seen_by_the_table(), right_padded([9, 4, 6], 9)
    stacked = jax.tree.map(lambda x: x[None], demonstrations)
    update = make_ppo_update(POLICY_LOSS, SGD, None, None, epochs=1, minibatch=8, ptx=Term(PTX_LOSS, 3.0))
    state, metrics = jax.jit(update)(fresh(), trajectory, jax.random.key(0), stacked)
    ppo, ptx = gradient_of(POLICY_LOSS, table(), trajectory), gradient_of(PTX_LOSS, table(), demonstrations)
    expected = jax.tree.map(lambda a, b: -(a + 3.0 * b), ppo, ptx)
    assert_trees_close(change(state.policy.params, table()), expected, atol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(expected), rtol=1e-5)
    np.testing.assert_allclose(metrics["ptx_nll"], PTX_LOSS(table(), demonstrations)[0], rtol=1e-5)


def test_both_gradients_are_clipped_as_one():
    tx = optax.chain(optax.clip_by_global_norm(0.1), SGD)
    stacked = jax.tree.map(lambda x: x[None], right_padded([9, 4, 6], 9))
    update = make_ppo_update(POLICY_LOSS, tx, None, None, epochs=1, minibatch=8, ptx=Term(PTX_LOSS, 3.0))
    state, _ = jax.jit(update)(fresh(tx), seen_by_the_table(), jax.random.key(0), stacked)
    np.testing.assert_allclose(optax.tree.norm(change(state.policy.params, table())), 0.1, rtol=1e-4)


def test_every_epoch_sees_every_row_once_in_an_order_of_its_own():
    rows = np.asarray(minibatch_rows(jax.random.key(0), 12, 3, 4))
    assert rows.shape == (9, 4)
    epochs = rows.reshape(3, 12)
    for epoch in epochs:
        assert sorted(epoch) == list(range(12))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert tuple(epochs[0]) != tuple(range(12))
    other = np.asarray(minibatch_rows(jax.random.key(1), 12, 3, 4))
    assert not np.array_equal(rows, other)
    np.testing.assert_array_equal(rows, minibatch_rows(jax.random.key(0), 12, 3, 4))


def test_rows_that_stay_together_are_dealt_as_one():
    rows = np.asarray(minibatch_rows(jax.random.key(0), 24, 5, 8, 4)).reshape(5, 6, 4)
    assert np.array_equal(rows - rows[:, :, :1], np.broadcast_to(np.arange(4), rows.shape))
    for epoch in rows[:, :, 0]:
        assert sorted(epoch) == list(range(0, 24, 4))
    assert len({tuple(epoch) for epoch in rows[:, :, 0]}) == 5


@pytest.mark.parametrize("together", [2, 4])
def test_microbatches_have_whole_groups_and_make_the_same_update(together):
    seen = []

    def loss(params, batch):
        jax.debug.callback(lambda scores: seen.append(np.asarray(scores)), batch.scores)
        return POLICY_LOSS(params, batch)

    trajectory = dataclasses.replace(seen_by_the_table(), scores=jnp.arange(8.0))
    update = make_ppo_update(loss, SGD, None, None, epochs=1, minibatch=8, microbatches=2, together=together)
    state, _ = jax.jit(update)(fresh(), trajectory, jax.random.key(0))
    jax.effects_barrier()
    assert {len(scores) for scores in seen} == {4}
    for scores in seen:
        first = scores.reshape(-1, together)[:, :1]
        assert np.array_equal(scores.reshape(-1, together), first + np.arange(together)) and not np.any(
            first % together
        )
    alone = jax.tree.map(jnp.negative, gradient_of(POLICY_LOSS, table(), seen_by_the_table()))
    assert_trees_close(change(state.policy.params, table()), alone, atol=1e-6)


def test_chosen_rows_are_those_of_every_array_and_scalars_stay():
    trajectory = played()
    chosen = select_rows(trajectory, jnp.array([5, 0]))
    np.testing.assert_array_equal(chosen.scores, np.asarray(trajectory.scores)[[5, 0]])
    np.testing.assert_array_equal(chosen.rollout.batch.tokens, np.asarray(trajectory.rollout.batch.tokens)[[5, 0]])
    assert chosen.rollout.temperature.shape == ()


def counting(params, batch):
    """A policy loss whose gradient is the sum of the scores of the rows it saw."""
    total, zero = jnp.sum(batch.scores), jnp.zeros(())
    metrics = {"ratio": zero, "clip_fraction": zero, "approx_kl": zero, "sum": total}
    return params["rows"] * total, Aux(weight=jnp.float32(batch.scores.shape[0]), metrics=metrics)


def test_a_minibatch_is_one_update_and_metrics_are_their_mean():
    update = make_ppo_update(counting, SGD, None, None, epochs=3, minibatch=2)
    trajectory = played().replace(scores=jnp.arange(8.0))
    start = fresh(params={"rows": jnp.float32(0.0)}).replace(iteration=jnp.int32(4))
    state, metrics = jax.jit(update)(start, trajectory, jax.random.key(0))
    assert int(state.policy.step) == 3 * 4
    assert float(state.policy.params["rows"]) == -3 * 28.0
    assert float(metrics["sum"]) == 28 / 4
    assert (float(state.kl_coef), int(state.iteration)) == (pytest.approx(0.1), 4)  # the loop's business


def test_each_minibatch_has_demonstrations_of_its_own():
    def ptx(params, batch):
        return jnp.sum(params["ptx"] * batch.tokens), Aux(weight=jnp.float32(1.0), metrics={})

    update = make_ppo_update(counting, SGD, None, None, epochs=2, minibatch=4, ptx=Term(ptx, 1.0))
    tokens = jnp.array([1, 10, 100, 1000], jnp.int32).reshape(4, 1, 1)
    demonstrations = jax.tree.map(lambda x: jnp.ones((4, 1, 1), x.dtype), right_padded([1], 1)).replace(tokens=tokens)
    start = fresh(params={"rows": jnp.float32(0.0), "ptx": jnp.float32(0.0)})
    state, _ = jax.jit(update)(start, played(), jax.random.key(0), demonstrations)
    assert float(state.policy.params["ptx"]) == -1111.0


def test_any_number_of_microbatches_makes_the_same_updates_of_policy_and_value():
    stacked = jax.tree.map(lambda x: jnp.stack([x, x[::-1]]), right_padded([9, 4, 6, 3], 9))

    def run(microbatches):
        update = make_ppo_update(
            POLICY_LOSS,
            ADAM,
            VALUE_LOSS,
            ADAM,
            epochs=1,
            minibatch=4,
            microbatches=microbatches,
            ptx=Term(PTX_LOSS, 2.0),
        )
        return jax.jit(update)(fresh(ADAM, value=True), seen_by_the_table(), jax.random.key(0), stacked)

    one = run(1)
    for microbatches in (2, 4):
        assert_trees_close(one, run(microbatches), atol=1e-5, rtol=1e-5)


def test_a_value_model_of_its_own_learns_its_own_loss_and_leaves_the_policy_alone():
    trajectory = seen_by_the_table()
    update = jax.jit(make_ppo_update(POLICY_LOSS, SGD, VALUE_LOSS, SGD, epochs=1, minibatch=8))
    state, metrics = update(fresh(value=True), trajectory, jax.random.key(0))
    alone = jax.tree.map(jnp.negative, gradient_of(POLICY_LOSS, table(), trajectory))
    assert_trees_close(change(state.policy.params, table()), alone, atol=1e-6)
    gradient = gradient_of(VALUE_LOSS, critic(), trajectory)
    assert_trees_close(change(state.value.params, critic()), jax.tree.map(jnp.negative, gradient), atol=1e-6)
    np.testing.assert_allclose(metrics["value_grad_norm"], optax.tree.norm(gradient), rtol=1e-4)
    np.testing.assert_allclose(metrics["value_loss"], VALUE_LOSS(critic(), trajectory)[0], rtol=1e-5)


def test_a_value_head_on_the_policy_adds_its_loss_times_the_coefficient():
    config = dataclasses.replace(LLAMA, head="lm+scalar")
    model, trajectory, params = built(config), played(), lively(config)
    policy = partial(policy_loss, token_stats=model.token_stats, config=SCORING)
    value = partial(ppo_value_loss, values=model.values, clip=0.2)

    def run(loss):
        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params, trajectory)

    ((loss, aux), gradient), ((a, first), one), ((b, second), other) = (
        run(loss) for loss in (combined(policy, value, 0.3), policy, value)
    )
    np.testing.assert_allclose(loss, a + 0.3 * b, rtol=1e-5)
    assert float(aux.weight) == float(first.weight) == float(second.weight)
    assert set(aux.metrics) == {*first.metrics, *second.metrics}
    assert_trees_close(gradient, jax.tree.map(lambda x, y: x + 0.3 * y, one, other), atol=2e-5)
    assert float(jnp.abs(other["tokens"]["embedding"]).max()) > 1e-4  # the trunk learns from it too


def test_while_the_value_model_warms_up_the_policy_and_its_optimiser_stand_still():
    trajectory = seen_by_the_table()

    def run(warmup, iteration):
        update = make_ppo_update(
            POLICY_LOSS, ADAM, VALUE_LOSS, ADAM, epochs=1, minibatch=4, ema=0.9, value_warmup=warmup
        )
        start = fresh(ADAM, value=True, ema=True).replace(iteration=jnp.int32(iteration))
        return start, jax.jit(update)(start, trajectory, jax.random.key(0))[0]

    (start, waiting), (_, after), (_, without) = run(2, 1), run(2, 2), run(0, 2)
    assert_trees_close(waiting.policy, start.policy, atol=0.0)
    assert_trees_close(waiting.value, without.value, atol=1e-6)
    assert_trees_close(after, without, atol=1e-6)
    assert int(after.policy.step) == int(after.value.step) == int(waiting.value.step) == 2


def test_policy_and_average_follow_every_minibatch():
    update = jax.jit(make_ppo_update(POLICY_LOSS, SGD, None, None, epochs=2, minibatch=4, ema=0.75))
    trajectory = seen_by_the_table().replace(average=jnp.float32(2.5))
    state, _ = update(fresh(ema=True), trajectory, jax.random.key(0))
    assert float(state.average) == 2.5  # that of the rewards, which the next trajectory starts from
    params = average = table()
    for rows in minibatch_rows(jax.random.key(0), 8, 2, 4):
        gradient = gradient_of(POLICY_LOSS, params, select_rows(seen_by_the_table(), rows))
        params = jax.tree.map(lambda p, g: p - g, params, gradient)
        average = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, average, params)
    assert_trees_close(state.policy.params, params, atol=1e-5)
    assert_trees_close(state.policy.ema, average, atol=1e-5)


def test_what_stands_outside_the_responses_changes_no_update():
    trajectory = seen_by_the_table()
    outside = ~np.asarray(trajectory.rollout.batch.loss_mask)
    noise = jnp.asarray(np.random.default_rng(0).normal(size=outside.shape), jnp.float32)
    names = ("old_logprobs", "ref_logprobs", "values", "rewards", "advantages", "returns")
    changed = trajectory.replace(**{name: jnp.where(outside, noise, getattr(trajectory, name)) for name in names})
    update = jax.jit(make_ppo_update(POLICY_LOSS, SGD, VALUE_LOSS, SGD, epochs=1, minibatch=8))
    one, other = (update(fresh(value=True), t, jax.random.key(0)) for t in (trajectory, changed))
    assert_trees_close(one, other, atol=1e-6)


def test_a_score_that_is_no_number_leaves_the_state_as_it_was_but_for_the_count():
    trajectory = seen_by_the_table()
    broken = trajectory.replace(
        advantages=trajectory.advantages * jnp.nan,
        returns=trajectory.returns * jnp.nan,
        average=jnp.float32(jnp.nan),
        moments=trajectory.moments.replace(mean=jnp.float32(jnp.nan)),
    )
    update = jax.jit(make_ppo_update(POLICY_LOSS, SGD, VALUE_LOSS, SGD, epochs=2, minibatch=4))
    before = fresh(value=True)
    after, metrics = update(before, broken, jax.random.key(0))
    assert (float(metrics["skipped"]), float(metrics["skipped_in_a_row"])) == (4, 4)
    assert after.value is not None and int(after.policy.skipped) == int(after.value.skipped) == 4
    for part in ("policy", "value"):
        assert_trees_close(getattr(after, part).params, getattr(before, part).params, atol=0)
    assert_trees_close((after.average, after.moments), (before.average, before.moments), atol=0)
    going_on, metrics = update(after, trajectory, jax.random.key(0))
    assert (float(metrics["skipped"]), float(metrics["skipped_in_a_row"])) == (0, 0)
    assert float(jnp.abs(going_on.policy.params["table"] - after.policy.params["table"]).max()) > 0


def test_of_policy_and_value_either_may_be_left_out_alone():
    trajectory = seen_by_the_table()
    trajectory = trajectory.replace(returns=trajectory.returns * jnp.inf)
    update = jax.jit(make_ppo_update(POLICY_LOSS, SGD, VALUE_LOSS, SGD, epochs=1, minibatch=8))
    after, metrics = update(fresh(value=True), trajectory, jax.random.key(0))
    assert after.value is not None
    assert (int(after.policy.skipped), int(after.value.skipped), float(metrics["skipped"])) == (0, 1, 1)
