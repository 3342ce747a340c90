"""Losses and advantages against numbers computed by hand (PPO: Huang et al. 2023; the rest from each paper's equations)."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.doctor.report import Check, at_most
from rlhf_jax.losses import preference
from rlhf_jax.losses.advantages import gae, group_normalised, leave_one_out, minus_group_mean
from rlhf_jax.losses.kl import adapt_kl_coef, k1, k2, k3
from rlhf_jax.losses.policy import clipped_surrogate, overlong_penalty, token_weights, weighted_loss
from rlhf_jax.losses.ppo import clipped_value_loss, token_rewards
from rlhf_jax.losses.q_learning import expectile
from rlhf_jax.losses.ranking import best_of_k, k_wise
from rlhf_jax.losses.reward import bradley_terry
from rlhf_jax.masking import whiten


def by_hand() -> Iterator[Check]:
    """Numbers computed by hand."""
    with jax.numpy_dtype_promotion("standard"):
        for name, (computed, expected) in {**on_policy(), **from_preferences()}.items():
            error = np.max(np.abs(np.subtract(np.asarray(computed, np.float64), expected)))
            yield at_most(f"{name}: difference from the value by hand", error, 1e-4)


def on_policy() -> dict[str, tuple]:
    """What PPO and its relatives are made of: name -> (computed, expected)."""
    three, rewards = jnp.ones((1, 3), bool), jnp.array([[-0.02, 0.01, 0.99]])
    values, scores = jnp.array([[0.5, 0.6, 0.8]]), jnp.array([[1.0, 2.0, 5.0, 8.0]])
    log_ratio = jnp.array([[0.4, -0.2, 0.2]])
    ramp = jnp.array([[1.2, 1.3, 1.4], [1.5, 1.6, 1.7], [1.8, 1.9, 2.0]])
    two_and_four = jnp.array([[1, 1, 0, 0], [1, 1, 1, 1]], bool)
    losses = jnp.array([[1.0, 1.0, jnp.nan, jnp.nan], [3.0, 3.0, 3.0, 3.0]])

    def average(kind, **how):
        return weighted_loss(losses, token_weights(two_and_four, kind, **how))

    ratio, advantage = jnp.array([1.3, 0.7, 1.5]), jnp.array([1.0, -1.0, -1.0])
    new, old, target = (jnp.array([[x]]) for x in (1.0, 0.5, 0.9))
    value_loss, _ = clipped_value_loss(new, old, target, jnp.ones((1, 1), bool), clip=0.2)
    half, zero = jnp.array(0.5), jnp.array(0.0)
    return {
        "rewards per token, -beta (log pi - log ref) and the score": (
            token_rewards(jnp.array([1.0]), log_ratio, jnp.zeros((1, 3)), three, kl_coef=0.05),
            [[-0.02, 0.01, 0.99]],
        ),
        "GAE, lambda .95": (gae(rewards, values, three, gamma=1.0, lam=0.95)[0], [[0.45098, 0.3905, 0.19]]),
        "GAE, lambda 1": (gae(rewards, values, three, gamma=1.0, lam=1.0)[0], [[0.48, 0.40, 0.19]]),
        "whitening by the population variance": (
            whiten(ramp, jnp.ones((3, 3), bool), shift_mean=False)[0],
            [0.0508, 0.4381, 0.8254],
        ),
        "PPO's clipped objective": (clipped_surrogate(ratio, advantage, clip=0.2), [1.2, -0.8, -1.5]),
        "clipped value loss": (value_loss, 0.02),
        "k1, k2, k3": ([float(k(half, zero)) for k in (k1, k2, k3)], [0.5, 0.125, 0.10653]),
        "adaptive KL coefficient": (
            [adapt_kl_coef(jnp.array(0.15), jnp.array(kl), target=6.0, horizon=1e4, episodes=512) for kl in (9.0, 5.4)],
            [0.151536, 0.149232],
        ),
        "leave one out": (leave_one_out(scores), [[-4.0, -8 / 3, 4 / 3, 16 / 3]]),
        "group mean": (minus_group_mean(scores), [[-3.0, -2.0, 1.0, 4.0]]),
        "group mean and standard deviation, ddof 0 and 1": (
            [group_normalised(scores, ddof=ddof, eps=0.0)[0, 0] for ddof in (0, 1)],
            [-1.0954, -0.9487],
        ),
        "a group of equal scores": (group_normalised(jnp.ones((1, 4)), ddof=1), [[0.0] * 4]),
        "means over sequences, tokens, a constant": (
            [average("sequence"), average("token"), average("constant", constant=5.0)],
            [2.0, 14 / 6, 1.4],
        ),
        "penalty for long responses": (
            overlong_penalty(jnp.array([18432.0, 16384.0, 20481.0]), longest=20480, cache=4096),
            [-0.5, 0.0, -1.0],
        ),
        "expectile": (expectile(jnp.array([1.0, -1.0]), tau=0.7), [0.7, 0.3]),
    }


def from_preferences() -> dict[str, tuple]:
    """Losses of comparisons: name -> (computed, expected)."""
    pair = preference.PairLogprobs(*(jnp.array([x]) for x in (-4.0, -10.0, -6.0, -9.0, 4.0, 5.0)))  # h = 3
    wanted = preference.kto(jnp.array([1.0, -2.0]), jnp.array([1.0, 0.0]), jnp.array(0.2), beta=0.1)
    mean_lengths = preference.PairLogprobs(*(jnp.array([x]) for x in (-4.0, -10.0, 0.0, 0.0, 4.0, 5.0)))
    three_ranks, _, _ = k_wise(jnp.array([[2.0, 1.0, 0.0]]), jnp.array([[0, 1, 2]]))
    return {
        "Bradley-Terry": (bradley_terry(jnp.array([1.2, 0.4]), jnp.array([0.4, 1.2])), [0.37110, 1.17110]),
        "K-wise comparison": (three_ranks, [0.25115]),
        "best of 4": (best_of_k(jnp.array([[1.0, 0.0, 0.0, 0.0]]), jnp.array([0])), [0.74367]),
        "DPO, beta .1": (preference.dpo(pair, beta=0.1), [0.55436]),
        "cDPO, label smoothing .1": (preference.dpo(pair, beta=0.1, label_smoothing=0.1), [0.58436]),
        "IPO, tau .1": (preference.ipo(pair, tau=0.1), [4.0]),
        "SimPO": (preference.simpo(mean_lengths, beta=2.0, margin=1.0), [0.31326]),
        "KTO": (wanted, [0.48001, 0.44522]),
    }


EXAMINATIONS = (by_hand,)
