from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.losses.advantages import (
    best_of_group,
    gae,
    group_normalised,
    leave_one_out,
    minus_batch_mean,
    minus_group_mean,
    minus_moving_average,
    over_tokens,
    preferred,
    rewards_to_go,
)
from rlhf_jax.losses.preference import PairLogprobs, dpo

pytestmark = pytest.mark.usefixtures("strict_dtypes")

REWARDS, VALUES = [-0.02, 0.01, 0.99], [0.5, 0.6, 0.8]


@pytest.mark.parametrize(("lam", "expected"), [(0.95, [0.45098, 0.3905, 0.19]), (1.0, [0.48, 0.40, 0.19])])
def test_gae_by_hand(lam, expected):
    mask = jnp.ones((1, 3), bool)
    advantages, returns = gae(jnp.array([REWARDS]), jnp.array([VALUES]), mask, gamma=1.0, lam=lam)
    np.testing.assert_allclose(advantages, [expected], atol=1e-5)
    np.testing.assert_allclose(returns, [np.add(expected, VALUES)], atol=1e-5)


def test_gae_discounts_by_hand():
    mask = jnp.ones((1, 2), bool)
    advantages, _ = gae(jnp.array([[1.0, 2.0]]), jnp.array([[0.5, 0.25]]), mask, gamma=0.5, lam=0.5)
    # delta_2 = 2 - .25 = 1.75; delta_1 = 1 + .5 * .25 - .5 = .625; A_1 = .625 + .25 * 1.75
    np.testing.assert_allclose(advantages, [[1.0625, 1.75]])


@pytest.mark.parametrize("outside", [0.0, 9.0, float("nan")])
def test_what_stands_beside_the_response_changes_nothing(outside):
    rewards, values = ([[outside, outside, *x, outside]] for x in (REWARDS, VALUES))
    mask = jnp.array([[False, False, True, True, True, False]])
    advantages, returns = gae(jnp.array(rewards), jnp.array(values), mask, gamma=1.0, lam=0.95)
    np.testing.assert_allclose(advantages, [[0, 0, 0.45098, 0.3905, 0.19, 0]], atol=1e-5)
    np.testing.assert_allclose(returns, [[0, 0, 0.95098, 0.9905, 0.99, 0]], atol=1e-5)


def test_a_row_without_response_has_no_advantage():
    advantages, returns = gae(jnp.ones((1, 3)), jnp.ones((1, 3)), jnp.zeros((1, 3), bool), gamma=0.9, lam=0.9)
    np.testing.assert_array_equal(advantages, 0.0)
    np.testing.assert_array_equal(returns, 0.0)


def sums_by_hand(rewards, values, mask, gamma, lam):
    """A_t = sum_l (gamma lam)^l delta_{t+l}, written out row by row."""
    out = np.zeros(rewards.shape)
    for row in range(len(rewards)):
        columns = np.flatnonzero(mask[row])
        r, v = rewards[row, columns], np.append(values[row, columns], 0.0)
        deltas = r + gamma * v[1:] - v[:-1]
        for t in range(len(columns)):
            out[row, columns[t]] = sum((gamma * lam) ** n * delta for n, delta in enumerate(deltas[t:]))
    return out


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 0.0), (0.99, 1.0)])
def test_the_recursion_is_the_sum_over_future_errors(gamma, lam):
    noise = np.random.default_rng(0)
    rewards, values = noise.normal(size=(2, 3, 7)).astype(np.float32)
    mask = np.array([[0, 0, 1, 1, 1, 1, 1], [0, 0, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 0, 0]], bool)
    advantages, returns = gae(jnp.asarray(rewards), jnp.asarray(values), jnp.asarray(mask), gamma=gamma, lam=lam)
    expected = sums_by_hand(rewards, values, mask, gamma, lam)
    np.testing.assert_allclose(advantages, expected, atol=1e-5)
    np.testing.assert_allclose(returns, np.where(mask, expected + values, 0.0), atol=1e-5)


def test_with_lam_one_the_return_of_a_token_is_the_reward_still_to_come():
    rewards = jnp.array([REWARDS])
    _, returns = gae(rewards, jnp.array([VALUES]), jnp.ones((1, 3), bool), gamma=1.0, lam=1.0)
    np.testing.assert_allclose(returns[0], np.cumsum(REWARDS[::-1])[::-1], atol=1e-6)


def test_gae_traces():
    run = jax.jit(lambda r, v, m: gae(r, v, m, gamma=1.0, lam=0.95))
    advantages, _ = run(jnp.array([REWARDS]), jnp.array([VALUES]), jnp.ones((1, 3), bool))
    np.testing.assert_allclose(advantages, [[0.45098, 0.3905, 0.19]], atol=1e-5)


# --- scores of whole responses ---------------------------------------------------------------------------------------

GROUP = jnp.array([[1.0, 2.0, 5.0, 8.0]])


def test_rewards_to_go_by_hand_inside_the_response_alone():
    rewards, mask = jnp.array([[7.0, 1.0, 2.0, 4.0, 9.0]]), jnp.array([[False, True, True, True, False]])
    np.testing.assert_allclose(rewards_to_go(rewards, mask, gamma=0.5), [[0, 1 + 1 + 1, 2 + 2, 4, 0]])
    np.testing.assert_allclose(rewards_to_go(rewards, mask), [[0, 7, 6, 4, 0]])


def test_the_advantage_of_a_response_stands_on_its_tokens():
    mask = jnp.array([[False, True, True], [True, False, False]])
    np.testing.assert_array_equal(over_tokens(jnp.array([2.0, -1.0]), mask), [[0, 2, 2], [-1, 0, 0]])


def test_baselines_of_one_group_by_hand():
    np.testing.assert_allclose(leave_one_out(GROUP), [[1 - 5, 2 - 14 / 3, 5 - 11 / 3, 8 - 8 / 3]], rtol=1e-6)
    np.testing.assert_allclose(minus_group_mean(GROUP), [[-3, -2, 1, 4]])
    np.testing.assert_allclose(minus_group_mean(GROUP), 0.75 * leave_one_out(GROUP), rtol=1e-6)
    np.testing.assert_allclose(group_normalised(GROUP, ddof=0)[0, 0], -1.0954, atol=5e-5)
    np.testing.assert_allclose(group_normalised(GROUP, ddof=1)[0, 0], -0.9487, atol=5e-5)


def test_groups_do_not_see_each_other_and_the_batch_mean_sees_all():
    scores = jnp.concatenate([GROUP, 100 + 2 * GROUP])
    for baseline in (leave_one_out, minus_group_mean):
        np.testing.assert_allclose(baseline(scores)[:1], baseline(GROUP), rtol=1e-5)
        np.testing.assert_allclose(baseline(scores)[1:], 2 * baseline(GROUP), rtol=1e-5)
    np.testing.assert_allclose(group_normalised(scores, ddof=0)[1:], group_normalised(GROUP, ddof=0), rtol=1e-4)
    np.testing.assert_allclose(minus_batch_mean(scores), scores - 56)


@pytest.mark.parametrize("ddof", [0, 1])
def test_a_group_that_scores_alike_has_no_advantage_and_a_finite_gradient(ddof):
    alike = jnp.full((2, 3), 0.1)
    np.testing.assert_allclose(group_normalised(alike, ddof=ddof), 0, atol=1e-3)
    np.testing.assert_array_equal(group_normalised(jnp.ones((2, 3)), ddof=ddof), 0)


def test_the_moving_average_is_of_the_batches_before():
    advantages, average = minus_moving_average(GROUP, jnp.float32(2.0), decay=0.9)
    np.testing.assert_allclose(advantages, [[-1, 0, 3, 6]])
    np.testing.assert_allclose(average, 0.9 * 2 + 0.1 * 4, rtol=1e-6)


def test_the_best_of_a_group_by_hand():
    scores = jnp.array([[1.0, 5.0, 5.0, 0.0], [2.0, 0.0, 1.0, -3.0]])
    np.testing.assert_array_equal(best_of_group(scores), [[0, 4, 0, 0], [4, 0, 0, 0]])


def test_best_and_worst_of_a_group_are_weighed_as_dpo_does():
    scores, beta = jnp.array([[1.0, 5.0, 2.0], [2.0, 0.0, 1.0], [3.0, 3.0, 3.0]]), 0.5
    log_ratio = jnp.array([[0.5, -1.5, 9.0], [1.0, 1.0, 9.0], [1.0, 2.0, 3.0]])
    advantages = preferred(scores, log_ratio, beta=beta, labels="higher")
    # h is -2 and 0: 3 * .5 * sigmoid(1) and 3 * .5 / 2; nothing is preferred where all score alike
    np.testing.assert_allclose(advantages, [[-1.09659, 1.09659, 0], [0.75, -0.75, 0], [0, 0, 0]], atol=1e-5)

    def loss(log_ratio):
        best, worst = log_ratio[[0, 1], [1, 0]], log_ratio[[0, 1], [0, 1]]
        zero, one = jnp.zeros(2), jnp.ones(2)
        return jnp.sum(dpo(PairLogprobs(best, worst, zero, zero, one, one), beta=beta)) / 3

    np.testing.assert_allclose(-advantages / scores.size, jax.grad(loss)(log_ratio), atol=1e-6)
    # preferred with probability sigmoid(4) and sigmoid(2): 3 * .5 * (.98201 - sigmoid(-1)) and 3 * .5 * (.88080 - .5)
    softly = preferred(scores, log_ratio, beta=beta, labels="bradley_terry")
    np.testing.assert_allclose(softly, [[-1.069611, 1.069611, 0], [0.571196, -0.571196, 0], [0, 0, 0]], atol=1e-5)


def test_under_bradley_terry_labels_the_optimum_has_no_advantage_left():
    scores = jnp.array([[1.0, 5.0, 2.0]])
    optimum = scores / 0.5  # log(pi / ref) = r / beta, up to a constant
    np.testing.assert_allclose(preferred(scores, optimum, beta=0.5, labels="bradley_terry"), 0.0, atol=1e-6)
    assert float(preferred(scores, optimum, beta=0.5, labels="higher")[0, 1]) > 0


def test_groups_too_small_for_their_baseline_are_refused():
    with pytest.raises(ValueError, match="at least 2 responses to each prompt; there is 1"):
        leave_one_out(jnp.ones((3, 1)))
    with pytest.raises(ValueError, match="1 responses to a prompt have no standard deviation with ddof=1"):
        group_normalised(jnp.ones((3, 1)), ddof=1)
