from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.config import PolicyGradient
from rlhf_jax.losses.policy import policy_loss, policy_objective, token_weights, weighted_loss
from rlhf_jax.losses.ppo import (
    clipped_value_loss,
    explained_variance,
    one_step_further,
    ppo_value_loss,
    token_rewards,
)
from rlhf_jax.losses.scores import no_moments
from rlhf_jax.models.api import TokenStats
from rlhf_jax.types import Rollout, TokenBatch, Trajectory

pytestmark = pytest.mark.usefixtures("strict_dtypes")

ONE = jnp.ones((1, 1), bool)


CONFIG = PolicyGradient(new_tokens=2, clip=0.2)


def clipped_policy_loss(logprobs, old_logprobs, advantages, mask):
    """(loss, metrics) of PPO with its defaults, each the mean over the mask."""
    objective, report = policy_objective(logprobs, old_logprobs, advantages, mask, config=CONFIG)
    weights = token_weights(mask, "token")
    return -weighted_loss(objective, weights), {name: weighted_loss(x, weights) for name, x in report.items()}


def one(value) -> jax.Array:
    """A batch of a single token."""
    return jnp.asarray(value, jnp.float32).reshape(1, 1)


def test_token_rewards_by_hand():
    logprobs, ref = jnp.array([[-1.0, -1.0, -1.0]]), jnp.array([[-1.4, -0.8, -1.2]])
    rewards = token_rewards(jnp.array([1.0]), logprobs, ref, jnp.ones((1, 3), bool), kl_coef=0.05)
    np.testing.assert_allclose(rewards, [[-0.02, 0.01, 0.99]], atol=1e-6)


def test_the_score_lands_on_the_last_response_token_of_each_row_and_stays_a_float():
    mask = jnp.array([[0, 1, 1, 0], [0, 1, 1, 1], [0, 0, 0, 0]], bool)
    same = jnp.full((3, 4), -1.0)
    rewards = token_rewards(jnp.array([0.7, -0.3, 5.0]), same, same, mask, kl_coef=jnp.float32(0.1))
    np.testing.assert_allclose(rewards, [[0, 0, 0.7, 0], [0, 0, 0, -0.3], [0, 0, 0, 0]])


def test_the_step_behind_a_response_is_padding_mask_p1():
    """N+ details: last real index 2 of 5, values keep 0..3 and the reward lands at 3; last index 4, it lands at 4."""
    mask = jnp.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 1, 0, 0, 0]], bool)
    real = mask.at[2, 0].set(True)
    positions = jnp.array([[0, 1, 2, 0, 0], [0, 1, 2, 3, 4], [0, 1, 0, 0, 0]], jnp.int32)
    further = one_step_further(TokenBatch(positions, positions, real.astype(jnp.int32), mask))
    expected = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [0, 1, 1, 0, 0]], bool)
    np.testing.assert_array_equal(further.loss_mask, expected)
    np.testing.assert_array_equal(further.segments, expected | np.asarray(real))
    np.testing.assert_array_equal(further.positions, [[0, 1, 2, 3, 0], [0, 1, 2, 3, 4], [0, 1, 2, 0, 0]])
    same = jnp.full((3, 5), -1.0)
    rewards = token_rewards(jnp.array([0.7, -0.3, 1.0]), same, same, mask, kl_coef=0.1, steps=further.loss_mask)
    np.testing.assert_allclose(rewards, [[0, 0, 0, 0.7, 0], [0, 0, 0, 0, -0.3], [0, 0, 1.0, 0, 0]])


def test_log_probs_beside_the_response_cost_nothing():
    mask, logprobs, ref = jnp.array([[False, True]]), jnp.array([[jnp.nan, -1.0]]), jnp.array([[-9.0, -2.0]])
    rewards = token_rewards(jnp.array([0.0]), logprobs, ref, mask, kl_coef=0.5)
    np.testing.assert_allclose(rewards, [[0.0, -0.5]])


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "gradient", "clipped"),
    [
        (1.0, 1.3, -1.2, 0.0, 1.0),
        (-1.0, 0.7, 0.8, 0.0, 1.0),
        (-1.0, 1.5, 1.5, 1.5, 0.0),
        (1.0, 0.5, -0.5, -0.5, 0.0),
        (1.0, 1.1, -1.1, -1.1, 0.0),
        (2.0, 1.0, -2.0, -2.0, 0.0),
    ],
)
def test_the_clipped_objective_and_its_gradient_by_hand(advantage, ratio, loss, gradient, clipped):
    def of(logprob):
        return clipped_policy_loss(one(logprob), one(-1.0), one(advantage), ONE)

    (value, metrics), slope = jax.value_and_grad(of, has_aux=True)(jnp.float32(np.log(ratio) - 1.0))
    np.testing.assert_allclose(value, loss, rtol=1e-5)
    np.testing.assert_allclose(slope, gradient, atol=1e-5)  # d ratio / d logprob = ratio
    assert float(metrics["clip_fraction"]) == clipped
    np.testing.assert_allclose(metrics["ratio"], ratio, rtol=1e-5)


def test_the_approximate_kl_is_that_of_the_old_policy_to_the_new_by_hand():
    def kl(new, old):
        return clipped_policy_loss(one(new), one(old), one(1.0), ONE)[1]["approx_kl"]

    np.testing.assert_allclose(kl(-1.5, -1.0), 0.10653, atol=1e-5)
    np.testing.assert_allclose(kl(-0.5, -1.0), 0.14872, atol=1e-5)


def test_objective_and_gradient_run_over_the_response_only():
    mask = jnp.array([[False, True, True], [False, True, False]])
    logprobs = jnp.array([[jnp.nan, -1.0, -1.0], [500.0, -1.0, -700.0]])
    old = jnp.array([[-1.0, -1.0, -1.0], [-1.0, -1.0, 500.0]])
    advantages = jnp.array([[9.0, 1.0, 2.0], [9.0, 6.0, 9.0]])
    (loss, metrics), gradient = jax.value_and_grad(clipped_policy_loss, has_aux=True)(logprobs, old, advantages, mask)
    assert float(loss) == -3.0
    np.testing.assert_allclose(gradient, [[0, -1 / 3, -2 / 3], [0, -2, 0]], rtol=1e-6)
    assert (float(metrics["approx_kl"]), float(metrics["ratio"]), float(metrics["clip_fraction"])) == (0.0, 1.0, 0.0)


def test_an_empty_mask_gives_zero_and_finite_gradients():
    nothing, x = jnp.zeros((2, 2), bool), jnp.full((2, 2), -400.0)
    for function in (
        lambda x: clipped_policy_loss(x, -x, x, nothing)[0],
        lambda x: clipped_value_loss(x, -x, x, nothing, clip=0.2)[0],
    ):
        value, gradient = jax.value_and_grad(function)(x)
        assert float(value) == 0.0
        np.testing.assert_array_equal(gradient, 0.0)


def test_on_the_policy_that_sampled_the_gradient_is_the_policy_gradient():
    logits, advantage = jnp.array([1.0, 2.0, 1.0, 1.0]), 1.0
    old = jax.nn.log_softmax(logits)[1]

    def loss(logits):
        logprob = jax.nn.log_softmax(logits)[1]
        return clipped_policy_loss(one(logprob), one(old), one(advantage), ONE)[0]

    np.testing.assert_allclose(jax.grad(loss)(logits), [0.1749, -0.5246, 0.1749, 0.1749], atol=1e-4)


@pytest.mark.parametrize(
    ("value", "old", "target", "clip", "loss", "fraction"),
    [
        (1.0, 0.5, 0.9, 0.2, 0.02, 1.0),  # .5 max(.01, .04)
        (1.0, 0.5, 0.9, None, 0.005, 0.0),
        (0.6, 0.5, 0.9, 0.2, 0.045, 0.0),  # inside the clip
        (1.0, 0.5, 0.0, 0.2, 0.5, 0.0),  # the worse of the two counts
        (0.0, 0.5, 0.1, 0.2, 0.02, 1.0),
    ],
)
def test_the_clipped_value_loss_by_hand(value, old, target, clip, loss, fraction):
    def of(value):
        return clipped_value_loss(one(value), one(old), one(target), ONE, clip=clip)

    (result, metrics), gradient = jax.value_and_grad(of, has_aux=True)(jnp.float32(value))
    np.testing.assert_allclose(result, loss, rtol=1e-5)
    assert float(metrics["value_clip_fraction"]) == fraction
    np.testing.assert_allclose(gradient, 0.0 if fraction else value - target, atol=1e-6)


def test_values_are_averaged_over_the_response_only():
    mask = jnp.array([[False, True, True]])
    loss, _ = clipped_value_loss(
        jnp.array([[9.0, 1.0, 3.0]]), jnp.array([[0.0, 1.0, 3.0]]), jnp.array([[0.0, 0.0, 0.0]]), mask, clip=None
    )
    np.testing.assert_allclose(loss, 0.5 * (1 + 9) / 2)


def test_explained_variance_by_hand():
    returns, mask = jnp.array([[1.0, 2.0, 3.0, 99.0]]), jnp.array([[True, True, True, False]])
    for values, expected in (
        ([1.0, 2.0, 3.0], 1.0),
        ([11.0, 12.0, 13.0], 1.0),  # a constant error leaves the variance explained
        ([5.0, 5.0, 5.0], 0.0),
        ([3.0, 2.0, 1.0], -3.0),
        ([1.0, 2.0, 2.0], 2 / 3),  # residuals 0, 0, 1: 2/9 of 6/9
    ):
        result = explained_variance(jnp.array([[*values, -7.0]]), returns, mask)
        np.testing.assert_allclose(result, expected, atol=1e-6)
    constant = jnp.ones((1, 4))
    assert np.isfinite(explained_variance(returns, constant, mask))


def small_trajectory() -> Trajectory:
    """Two rows of two prompt tokens and up to two response tokens, at temperature .7."""
    mask = jnp.array([[0, 0, 1, 1], [0, 0, 1, 0]], bool)
    zeros, ints = jnp.zeros((2, 4)), jnp.zeros((2, 4), jnp.int32)
    batch = TokenBatch(ints, ints, ints + 1, mask)
    return Trajectory(
        rollout=Rollout(batch, zeros, jnp.ones(2, bool), jnp.float32(0.7)),
        old_logprobs=jnp.where(mask, -1.0, 0.0),
        ref_logprobs=zeros,
        values=jnp.where(mask, 0.5, 0.0),
        rewards=zeros,
        advantages=jnp.array([[0, 0, 1.0, 2.0], [0, 0, -3.0, 0]]),
        returns=jnp.where(mask, 0.9, 0.0),
        scores=jnp.zeros(2),
        weights=token_weights(mask, "token"),
        loss_kl_coef=jnp.float32(0.0),
        average=jnp.float32(0.0),
        moments=no_moments(),
    )


def test_the_policy_loss_uses_the_temperature_of_the_rollout_and_reports_without_rewarding_entropy():
    seen = []

    def token_stats(params, batch, temperature, last):
        seen.append(float(temperature))
        return TokenStats(logprobs=jnp.full((2, 4), -1.0), entropy=params * jnp.ones((2, 4)))

    run = jax.value_and_grad(partial(policy_loss, token_stats=token_stats, config=CONFIG), has_aux=True)
    (loss, aux), gradient = run(jnp.float32(0.4), small_trajectory())
    assert seen == [pytest.approx(0.7)]
    np.testing.assert_allclose(loss, -(1 + 2 - 3) / 3, atol=1e-6)
    assert float(aux.weight) == 3.0
    assert float(gradient) == 0.0
    np.testing.assert_allclose(aux.metrics["entropy"], 0.4, rtol=1e-6)
    assert {"policy_loss", "clip_fraction", "approx_kl", "ratio"} < set(aux.metrics)


def test_an_entropy_bonus_is_a_mean_over_the_response():
    def token_stats(params, batch, temperature, last):
        return TokenStats(logprobs=jnp.full((2, 4), -1.0), entropy=params * jnp.where(batch.loss_mask, 2.0, 9.0))

    config = dataclasses.replace(CONFIG, entropy_coef=0.1)
    run = jax.value_and_grad(partial(policy_loss, token_stats=token_stats, config=config), has_aux=True)
    (loss, aux), gradient = run(jnp.float32(0.4), small_trajectory())
    np.testing.assert_allclose(loss, -0.1 * 0.8, rtol=1e-5)  # the advantages 1, 2 and -3 cancel
    np.testing.assert_allclose(aux.metrics["entropy"], 0.8, rtol=1e-6)
    np.testing.assert_allclose(gradient, -0.2, rtol=1e-5)


@pytest.mark.parametrize(
    ("how", "loss", "slope"),
    [
        ({}, -2 / 3, -2 / 3),
        # k3 of ratios ref / pi = e^-.5 to the reference: e^-.5 - 1 + .5, and its slope 1 - e^-.5
        ({"kl_in": "loss", "kl_estimator": "k3"}, -2 / 3 + 0.5 * 0.106531, -2 / 3 + 0.5 * 0.393469),
    ],
)
def test_the_policy_loss_falls_with_the_advantages_and_rises_with_the_kl_by_hand(how, loss, slope):
    def token_stats(params, batch, temperature, last):
        return TokenStats(logprobs=params * jnp.ones((2, 4)), entropy=jnp.zeros((2, 4)))

    trajectory = dataclasses.replace(
        small_trajectory(),
        advantages=jnp.array([[0, 0, 1.0, 2.0], [0, 0, -1.0, 0]]),
        ref_logprobs=jnp.full((2, 4), -1.5),
        loss_kl_coef=jnp.float32(0.5),
    )
    config = dataclasses.replace(CONFIG, **how)
    run = jax.value_and_grad(partial(policy_loss, token_stats=token_stats, config=config), has_aux=True)
    (found, _), gradient = run(jnp.float32(-1.0), trajectory)
    np.testing.assert_allclose([found, gradient], [loss, slope], rtol=1e-5)


def test_the_value_loss_clips_around_the_values_of_the_rollout():
    def values(params, batch):
        return params + jnp.where(batch.loss_mask, 0.0, jnp.inf)  # whose gradient would be nan

    run = jax.value_and_grad(partial(ppo_value_loss, values=values, clip=0.2), has_aux=True)
    (loss, aux), gradient = run(jnp.float32(1.0), small_trajectory())
    np.testing.assert_allclose(loss, 0.02, rtol=1e-5)
    assert float(aux.weight) == 3.0
    assert float(gradient) == 0.0
    (loss, _), gradient = run(jnp.float32(0.6), small_trajectory())
    np.testing.assert_allclose([loss, gradient], [0.045, -0.3], rtol=1e-5)
