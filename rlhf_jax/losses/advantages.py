"""Advantages: how much better a token was than expected."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def gae(
    rewards: Float[Array, "B T"], values: Float[Array, "B T"], mask: Bool[Array, "B T"], *, gamma: float, lam: float
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """Generalised advantages and the value targets (advantages + values), both 0 outside the mask.

    A_t = delta_t + gamma lam A_{t+1},  delta_t = r_t + gamma V_{t+1} - V_t,  V = 0 after the last token of the mask.

    The mask is one run of columns per row: the response. Source: Schulman et al. 2016 (arXiv:1506.02438), eq. 16.
    """
    inside = mask.astype(rewards.dtype)
    rewards, values = jnp.where(mask, rewards, 0.0), jnp.where(mask, values, 0.0)
    next_values = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))
    deltas = (rewards + gamma * next_values - values) * inside

    def backwards(following, column):
        delta, here = column
        advantage = delta + gamma * lam * following * here
        return advantage, advantage

    _, advantages = jax.lax.scan(backwards, jnp.zeros_like(deltas[:, 0]), (deltas.T, inside.T), reverse=True)
    advantages = advantages.T * inside
    return advantages, jnp.where(mask, advantages + values, 0.0)


def rewards_to_go(rewards: Float[Array, "B T"], mask: Bool[Array, "B T"], *, gamma: float = 1.0) -> Float[Array, "B T"]:
    """G_t = sum_{l >= 0} gamma^l r_{t+l} inside the mask, 0 outside: the advantages of plain REINFORCE. Source: Williams 1992."""
    return gae(rewards, jnp.zeros_like(rewards), mask, gamma=gamma, lam=1.0)[0]


def over_tokens(advantages: Float[Array, "B"], mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
    """The advantage of a whole response on each of its tokens, 0 outside the mask."""
    return jnp.where(mask, advantages[:, None], 0.0)


def minus_batch_mean(scores: Float[Array, "P K"]) -> Float[Array, "P K"]:
    """r - mean over all responses. Each response is part of its own baseline: the gradient shrinks by 1 - 1 / (P K)."""
    return scores - jnp.mean(scores)


def minus_moving_average(
    scores: Float[Array, "P K"], average: Float[Array, ""], *, decay: float
) -> tuple[Float[Array, "P K"], Float[Array, ""]]:
    """(r - average of the batches before, the average with this one in it: decay average + (1 - decay) mean r)."""
    return scores - average, decay * average + (1 - decay) * jnp.mean(scores)


def leave_one_out(scores: Float[Array, "P K"]) -> Float[Array, "P K"]:
    """RLOO: r_i - mean of the other K - 1 responses to the same prompt; the policy gradient stays unbiased.

    Source: Kool et al. 2019; Ahmadian et al. 2024 (arXiv:2402.14740), eq. 8.
    Raises: ValueError for a single response per prompt, which has no others.
    """
    count = scores.shape[1]
    if count < 2:
        raise ValueError("leave-one-out needs at least 2 responses to each prompt; there is 1")
    return minus_group_mean(scores) * (count / (count - 1))


def minus_group_mean(scores: Float[Array, "P K"]) -> Float[Array, "P K"]:
    """Dr. GRPO: r - mean over the responses to the same prompt, which is (K - 1) / K of RLOO.

    Source: Liu et al. 2025 (arXiv:2503.20783), section 3.2.
    """
    return scores - jnp.mean(scores, axis=1, keepdims=True)


def best_of_group(scores: Float[Array, "P K"]) -> Float[Array, "P K"]:
    """K for the best response to each prompt (of equal ones the first), 0 for the others: times log pi, fine-tuning on the best of K.

    A mean over all responses is then the mean over the best ones. Source: Dong et al. 2023, RAFT (arXiv:2304.06767), algorithm 1.
    """
    return jax.nn.one_hot(jnp.argmax(scores, axis=1), scores.shape[1], dtype=scores.dtype) * scores.shape[1]


def preferred(
    scores: Float[Array, "P K"],
    log_ratio: Float[Array, "P K"],
    *,
    beta: Float[Array, ""] | float,
    labels: Literal["higher", "bradley_terry"],
) -> Float[Array, "P K"]:
    """+-K beta (p - sigmoid(beta h)) for the best and the worst response to each prompt, 0 for the others and where all score alike.

    `log_ratio` is log(pi / ref) of each response and h that of the best less that of the worst; p is how probably the best is preferred:
    always, or with sigmoid of the difference in score. Times log pi, and averaged over all responses, its gradient at the policy that
    sampled is that of DPO's loss averaged over these pairs, under the expected label.

    Source: Guo et al. 2024, online DPO (arXiv:2402.04792), eq. 4.
    """
    best, worst = (
        jax.nn.one_hot(pick(scores, axis=1), scores.shape[1], dtype=scores.dtype) for pick in (jnp.argmax, jnp.argmin)
    )
    sign = best - worst  # of equal responses best and worst are the same one

    def difference(x):
        return jnp.sum(sign * x, axis=1, keepdims=True)

    wins = jax.nn.sigmoid(difference(scores)) if labels == "bradley_terry" else 1.0
    return scores.shape[1] * beta * (wins - jax.nn.sigmoid(beta * difference(log_ratio))) * sign


def group_normalised(scores: Float[Array, "P K"], *, ddof: int, eps: float = 1e-4) -> Float[Array, "P K"]:
    """GRPO: (r - mean) / (std + eps) over the responses to the same prompt; 0 where all responses score alike.

    ddof 0 divides by K under the root, ddof 1 by K - 1, as torch's `std` does; the paper does not say. Weighs prompts by 1 / std, so
    it is no gradient of the expected reward. Source: Shao et al. 2024 (arXiv:2402.03300), section 4.1.2.
    Raises: ValueError where K - ddof is not positive.
    """
    if scores.shape[1] <= ddof:
        raise ValueError(f"{scores.shape[1]} responses to a prompt have no standard deviation with ddof={ddof}")
    return minus_group_mean(scores) / (jnp.std(scores, axis=1, keepdims=True, ddof=ddof) + eps)
