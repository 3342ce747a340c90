"""From rewards to advantages by every baseline, and what a trajectory says of weights and KL."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from builders import LLAMA, SCORING, built, jitted, lively, nearby, sampled

from rlhf_jax.config import PolicyGradient
from rlhf_jax.rollout.score import advantages_of, final_scores, make_trajectory

# Two prompts, two responses each; the rewards of a response add up to 1, 3, 5 and -1.
REWARDS = jnp.array([[9.0, 0.5, 0.5], [9.0, 3.0, 9.0], [9.0, 1.0, 4.0], [9.0, -1.0, 9.0]])
MASK = jnp.array([[0, 1, 1], [0, 1, 0], [0, 1, 1], [0, 1, 0]], bool)
CRITIC_FREE = PolicyGradient(new_tokens=2, samples=2, baseline="none", whiten_advantages=False)


def of(average=2.0, **parts):
    config = dataclasses.replace(CRITIC_FREE, **parts)
    log_ratio = jnp.asarray([0.5, -0.5, 1.0, 0.0])[: len(REWARDS)]
    return advantages_of(
        REWARDS, jnp.zeros_like(REWARDS), MASK, jnp.float32(average), log_ratio, jnp.float32(0.5), config=config
    )


@pytest.mark.parametrize(
    ("baseline", "relative"),
    [
        ("none", [1.0, 3.0, 5.0, -1.0]),
        ("moving_average", [-1.0, 1.0, 3.0, -3.0]),
        ("batch_mean", [-1.0, 1.0, 3.0, -3.0]),
        ("leave_one_out", [-2.0, 2.0, 6.0, -6.0]),
        ("group_mean", [-1.0, 1.0, 3.0, -3.0]),
        ("group_normalised", [-1 / (2**0.5 + 1e-4), 1 / (2**0.5 + 1e-4), 3 / (18**0.5 + 1e-4), -3 / (18**0.5 + 1e-4)]),
        ("best", [0.0, 2.0, 2.0, 0.0]),
        # beta .5, h -1 and 1: 2 * .5 * sigmoid(.5) and 2 * .5 * sigmoid(-.5)
        ("preferred", [-0.622459, 0.622459, 0.377541, -0.377541]),
    ],
)
def test_every_baseline_by_hand(baseline, relative):
    kl_in = "preference" if baseline == "preferred" else "reward"
    advantages, returns, average = of(baseline=baseline, credit="sequence", kl_in=kl_in, objective="score")
    np.testing.assert_allclose(advantages, np.where(MASK, np.array(relative)[:, None], 0.0), rtol=1e-5)
    np.testing.assert_array_equal(returns, 0.0)
    np.testing.assert_allclose(average, 2.0)  # .9 * 2 + .1 * 2: the batch's mean is 2 as well


def test_the_moving_average_is_of_earlier_batches_and_moves_on():
    advantages, _, average = of(average=0.0, baseline="moving_average", credit="sequence", decay=0.75)
    np.testing.assert_allclose(advantages[:, 1], [1.0, 3.0, 5.0, -1.0])
    np.testing.assert_allclose(average, 0.5)
    assert float(of(average=7.0, baseline="batch_mean")[2]) == 7.0


@pytest.mark.parametrize("baseline", ["none", "leave_one_out", "group_mean"])
def test_token_credit_leaves_out_what_came_before_a_token(baseline):
    whole, _, _ = of(baseline=baseline, credit="sequence")
    later, _, _ = of(baseline=baseline, credit="token")
    before = jnp.array([[0.0, 0.0, 0.5], [0.0] * 3, [0.0, 0.0, 1.0], [0.0] * 3])
    np.testing.assert_allclose(later, whole - before, atol=1e-6)


def test_discounts_reach_back_from_the_reward():
    advantages, _, _ = of(baseline="none", credit="token", gamma=0.5)
    np.testing.assert_allclose(advantages, [[0, 0.75, 0.5], [0, 3, 0], [0, 3, 4], [0, -1, 0]])


def trajectory_of(config, coef=0.1):
    make = jitted(program(config))
    scores = jnp.arange(8, dtype=jnp.float32)
    return make(lively(LLAMA), nearby(), None, sampled(LLAMA, 0.7), scores, jnp.float32(coef))


def program(config):
    return partial(make_trajectory, policy=built(LLAMA), values=None, config=config)


def test_kl_in_the_loss_leaves_the_rewards_alone_and_travels_with_the_trajectory():
    base = dataclasses.replace(CRITIC_FREE, new_tokens=6)
    inside, _ = trajectory_of(dataclasses.replace(base, kl_in="loss", kl_estimator="k3"))
    before, seen = trajectory_of(base)
    np.testing.assert_allclose(jnp.sum(inside.rewards, axis=1), np.arange(8.0))
    np.testing.assert_allclose([inside.loss_kl_coef, before.loss_kl_coef], [0.1, 0.0])
    difference = jnp.mean(jnp.sum(inside.rewards - before.rewards, axis=1))
    np.testing.assert_allclose(difference, 0.1 * seen["kl_sampled"], rtol=1e-3, atol=1e-6)
    assert "explained_variance" not in seen


def test_the_overlong_filter_takes_the_weight_of_what_was_cut_and_nothing_else():
    base = dataclasses.replace(CRITIC_FREE, new_tokens=6)
    plain, _ = trajectory_of(base)
    filtered, _ = trajectory_of(dataclasses.replace(base, overlong_filter=True))
    finished = np.asarray(plain.rollout.finished)
    assert 0 < finished.sum() < 8
    np.testing.assert_array_equal(filtered.weights.token, np.where(finished[:, None], plain.weights.token, 0.0))
    np.testing.assert_array_equal(filtered.weights.row, np.where(finished, plain.weights.row, 0.0))
    np.testing.assert_array_equal(filtered.advantages, plain.advantages)


def test_weights_divide_by_the_longest_response_or_by_the_tokens_of_a_prompt():
    base = dataclasses.replace(CRITIC_FREE, new_tokens=6)
    mask = np.asarray(sampled(LLAMA, 0.7).batch.loss_mask)
    constant, _ = trajectory_of(dataclasses.replace(base, normaliser="constant"))
    np.testing.assert_allclose(constant.weights.token, mask / 6, rtol=1e-6)
    # Rows 0 and 1 answer the first prompt, rows 2 and 3 the second ...
    group, _ = trajectory_of(dataclasses.replace(base, normaliser="group"))
    tokens = mask.sum(axis=1).reshape(4, 2).sum(axis=1).repeat(2)
    np.testing.assert_allclose(group.weights.token, mask / tokens[:, None], rtol=1e-6)


def test_the_soft_penalty_counts_response_tokens():
    rollout = sampled(LLAMA, 0.7)
    length = np.asarray(rollout.batch.loss_mask).sum(axis=1)
    config = dataclasses.replace(SCORING, overlong_cache=4)
    found = final_scores(jnp.zeros(8), rollout, config)
    np.testing.assert_allclose(found, np.clip((6 - 4 - length) / 4, -1, 0))
    assert set(np.asarray(found)) > {0.0, -1.0}
