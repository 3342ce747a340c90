from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from builders import (
    LLAMA,
    VALUE,
    assert_trees_close,
    built,
    jitted,
    lively,
    played,
    right_padded,
)

from rlhf_jax.config import Optim
from rlhf_jax.losses.ppo import ppo_policy_loss, ppo_value_loss
from rlhf_jax.losses.sft import sft_loss
from rlhf_jax.masking import masked_mean
from rlhf_jax.train import init_state
from rlhf_jax.train.optimizer import make_optimizer
from rlhf_jax.train.ppo import PPOState, Term, combined, make_ppo_update, minibatch_rows, select_rows
from rlhf_jax.types import Aux

POLICY_LOSS = partial(ppo_policy_loss, token_stats=built(LLAMA).token_stats, clip=0.2)
VALUE_LOSS = partial(ppo_value_loss, values=built(VALUE).values, clip=0.2)
PTX_LOSS = partial(sft_loss, logprobs=built(LLAMA).logprobs)
SGD = optax.sgd(1.0)
ADAM = make_optimizer(Optim(lr=0.05, rows=4, steps=10, eps=1e-2))


def fresh(tx=SGD, *, value=False, ema=False) -> PPOState:
    return PPOState(
        policy=init_state(lively(LLAMA), tx, ema=ema),
        value=init_state(lively(VALUE, seed=2), tx) if value else None,
        kl_coef=jnp.float32(0.1),
        iteration=jnp.int32(0),
    )


def change(state: PPOState):
    return jax.tree.map(lambda new, old: new - old, state.policy.params, lively(LLAMA))


def gradient_of(loss, params, batch):
    return jax.jit(jax.grad(lambda params, batch: loss(params, batch)[0]))(params, batch)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_on_the_first_minibatch_of_a_real_rollout_the_ratio_is_one_and_nothing_is_clipped(temperature):
    update = jax.jit(make_ppo_update(POLICY_LOSS, ADAM, None, None, epochs=2, minibatch=4))
    _, metrics = update(fresh(ADAM), played(temperature), jax.random.key(0))
    assert float(metrics["first_ratio"]) == pytest.approx(1.0, abs=1e-5)
    assert float(metrics["first_clip_fraction"]) == 0.0
    assert float(metrics["first_approx_kl"]) == pytest.approx(0.0, abs=1e-8)
    assert float(metrics["clip_fraction"]) > 0.0  # later minibatches have moved
    assert float(metrics["approx_kl"]) > 1e-4


def test_at_another_temperature_than_that_of_the_rollout_the_ratio_is_not_one():
    wrong = played(0.7)
    wrong = wrong.replace(rollout=wrong.rollout.replace(temperature=jnp.float32(1.0)))
    update = jax.jit(make_ppo_update(POLICY_LOSS, SGD, None, None, epochs=1, minibatch=8))
    _, metrics = update(fresh(), wrong, jax.random.key(0))
    assert abs(float(metrics["first_ratio"]) - 1.0) > 0.01


def test_the_first_update_is_the_policy_gradient():
    trajectory = played()

    def reinforce(params):
        logprobs = built(LLAMA).logprobs(params, trajectory.rollout.batch, trajectory.rollout.temperature)
        return masked_mean(trajectory.advantages * logprobs, trajectory.rollout.batch.loss_mask)

    update = jax.jit(make_ppo_update(POLICY_LOSS, SGD, None, None, epochs=1, minibatch=8))
    state, _ = update(fresh(), trajectory, jax.random.key(0))
    assert_trees_close(change(state), jax.jit(jax.grad(reinforce))(lively(LLAMA)), atol=2e-5)


def test_demonstrations_add_their_gradient_times_their_coefficient():
    trajectory, demonstrations = played(), right_padded([9, 4, 6], 9)
    stacked = jax.tree.map(lambda x: x[None], demonstrations)
    update = make_ppo_update(POLICY_LOSS, SGD, None, None, epochs=1, minibatch=8, ptx=Term(PTX_LOSS, 3.0))
    state, metrics = jax.jit(update)(fresh(), trajectory, jax.random.key(0), stacked)
    ppo, ptx = gradient_of(POLICY_LOSS, lively(LLAMA), trajectory), gradient_of(PTX_LOSS, lively(LLAMA), demonstrations)
    expected = jax.tree.map(lambda a, b: -(a + 3.0 * b), ppo, ptx)
    assert_trees_close(change(state), expected, atol=5e-5)
    np.testing.assert_allclose(metrics["grad_norm"], optax.global_norm(expected), rtol=1e-5)
    np.testing.assert_allclose(metrics["ptx_nll"], PTX_LOSS(lively(LLAMA), demonstrations)[0], rtol=1e-5)


def test_both_gradients_are_clipped_as_one():
    tx = optax.chain(optax.clip_by_global_norm(0.1), SGD)
    stacked = jax.tree.map(lambda x: x[None], right_padded([9, 4, 6], 9))
    update = make_ppo_update(POLICY_LOSS, tx, None, None, epochs=1, minibatch=8, ptx=Term(PTX_LOSS, 3.0))
    state, _ = jax.jit(update)(fresh(tx), played(), jax.random.key(0), stacked)
    np.testing.assert_allclose(optax.global_norm(change(state)), 0.1, rtol=1e-4)


def counting(params, batch):
    """A policy loss whose gradient says which rows it saw, in which order: each update turns the number by one digit."""
    loss = params["seen"] * 0.0 + jnp.sum(params["rows"] * batch.scores)
    zero = jnp.zeros(())
    metrics = {"ratio": zero, "clip_fraction": zero, "approx_kl": zero, "sum": jnp.sum(batch.scores)}
    return loss, Aux(weight=jnp.float32(batch.scores.shape[0]), metrics=metrics)


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


def test_chosen_rows_are_those_of_every_array_and_scalars_stay():
    trajectory = played()
    chosen = select_rows(trajectory, jnp.array([5, 0]))
    np.testing.assert_array_equal(chosen.scores, np.asarray(trajectory.scores)[[5, 0]])
    np.testing.assert_array_equal(chosen.rollout.batch.tokens, np.asarray(trajectory.rollout.batch.tokens)[[5, 0]])
    assert chosen.rollout.temperature.shape == ()


def test_a_minibatch_is_one_update_and_metrics_are_their_mean():
    tx = optax.sgd(1.0)
    update = make_ppo_update(counting, tx, None, None, epochs=3, minibatch=2)
    params = {"seen": jnp.float32(0.0), "rows": jnp.float32(0.0)}
    state = PPOState(init_state(params, tx), None, jnp.float32(0.1), jnp.int32(4))
    trajectory = played().replace(scores=jnp.arange(8.0))
    state, metrics = jax.jit(update)(state, trajectory, jax.random.key(0))
    assert int(state.policy.step) == 3 * 4
    assert float(state.policy.params["rows"]) == -3 * 28.0
    assert float(metrics["sum"]) == 28 / 4
    assert (float(state.kl_coef), int(state.iteration)) == (pytest.approx(0.1), 4)  # the loop's business


def test_each_minibatch_has_demonstrations_of_its_own():
    def ptx(params, batch):
        return jnp.sum(params["seen"] * batch), Aux(weight=jnp.float32(1.0), metrics={})

    params = {"seen": jnp.float32(0.0), "rows": jnp.float32(0.0)}
    update = make_ppo_update(counting, SGD, None, None, epochs=2, minibatch=4, ptx=Term(ptx, 1.0))
    state = PPOState(init_state(params, SGD), None, jnp.float32(0.1), jnp.int32(0))
    demonstrations = jnp.array([[1.0], [10.0], [100.0], [1000.0]])
    state, _ = jax.jit(update)(state, played(), jax.random.key(0), demonstrations)
    assert float(state.policy.params["seen"]) == -1111.0


@pytest.mark.parametrize("ptx", [False, True], ids=["alone", "with demonstrations"])
def test_any_number_of_microbatches_makes_the_same_updates_of_policy_and_value(ptx):
    stacked = jax.tree.map(lambda x: jnp.stack([x, x[::-1]]), right_padded([9, 4, 6, 3], 9)) if ptx else None

    def run(microbatches):
        update = make_ppo_update(
            POLICY_LOSS,
            ADAM,
            VALUE_LOSS,
            ADAM,
            epochs=1,
            minibatch=4,
            microbatches=microbatches,
            ptx=Term(PTX_LOSS, 2.0) if ptx else None,
        )
        return jax.jit(update)(fresh(ADAM, value=True), played(), jax.random.key(0), stacked)

    one = run(1)
    for microbatches in (2, 4):
        assert_trees_close(one, run(microbatches), atol=1e-5, rtol=1e-5)


def test_a_value_model_of_its_own_learns_its_own_loss():
    trajectory = played()
    update = jax.jit(make_ppo_update(POLICY_LOSS, SGD, VALUE_LOSS, SGD, epochs=1, minibatch=8))
    state, metrics = update(fresh(value=True), trajectory, jax.random.key(0))
    alone, _ = jax.jit(make_ppo_update(POLICY_LOSS, SGD, None, None, epochs=1, minibatch=8))(
        fresh(), trajectory, jax.random.key(0)
    )
    assert_trees_close(state.policy.params, alone.policy.params, atol=1e-5)
    moved = jax.tree.map(lambda new, old: old - new, state.value.params, lively(VALUE, seed=2))
    gradient = gradient_of(VALUE_LOSS, lively(VALUE, seed=2), trajectory)
    assert_trees_close(moved, gradient, atol=5e-5)
    np.testing.assert_allclose(metrics["value_grad_norm"], optax.global_norm(gradient), rtol=1e-4)


def test_a_value_head_on_the_policy_adds_its_loss_times_the_coefficient():
    config = dataclasses.replace(LLAMA, head="lm+scalar")
    model, trajectory = built(config), played()
    policy = partial(ppo_policy_loss, token_stats=model.token_stats, clip=0.2)
    value = partial(ppo_value_loss, values=model.values, clip=0.2)
    both = combined(policy, value, 0.3)
    params = lively(config)
    loss, aux = jax.jit(both)(params, trajectory)
    (a, first), (b, second) = jax.jit(policy)(params, trajectory), jax.jit(value)(params, trajectory)
    np.testing.assert_allclose(loss, a + 0.3 * b, rtol=1e-5)
    assert float(aux.weight) == float(first.weight) == float(second.weight)
    assert set(aux.metrics) == {*first.metrics, *second.metrics}
    gradient = gradient_of(both, params, trajectory)
    parts = [gradient_of(loss, params, trajectory) for loss in (policy, value)]
    assert_trees_close(gradient, jax.tree.map(lambda x, y: x + 0.3 * y, *parts), atol=2e-5)
    assert float(jnp.abs(parts[1]["tokens"]["embedding"]).max()) > 1e-4  # the trunk learns from it too


def test_the_average_of_the_policy_follows_every_minibatch():
    update = jax.jit(make_ppo_update(POLICY_LOSS, SGD, None, None, epochs=1, minibatch=4, ema=0.75))
    state, _ = update(fresh(ema=True), played(), jax.random.key(0))
    step = make_ppo_update(POLICY_LOSS, SGD, None, None, epochs=1, minibatch=4)
    rows = minibatch_rows(jax.random.key(0), 8, 1, 4)
    del step
    params, average = lively(LLAMA), lively(LLAMA)
    for chosen in rows:
        gradient = gradient_of(POLICY_LOSS, params, select_rows(played(), chosen))
        params = jax.tree.map(lambda p, g: p - g, params, gradient)
        average = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, average, params)
    assert_trees_close(state.policy.params, params, atol=1e-4)
    assert_trees_close(state.policy.ema, average, atol=1e-4)


def test_what_stands_outside_the_responses_changes_no_update():
    trajectory = played()
    outside = ~np.asarray(trajectory.rollout.batch.loss_mask)
    noise = jnp.asarray(np.random.default_rng(0).normal(size=outside.shape), jnp.float32)
    changed = trajectory.replace(
        **{
            name: jnp.where(outside, noise, getattr(trajectory, name))
            for name in ("old_logprobs", "ref_logprobs", "values", "rewards", "advantages", "returns")
        }
    )
    update = jitted(make_ppo_update(POLICY_LOSS, SGD, VALUE_LOSS, SGD, epochs=1, minibatch=8))
    one, other = (update(fresh(value=True), t, jax.random.key(0)) for t in (trajectory, changed))
    assert_trees_close(one, other, atol=1e-6)
