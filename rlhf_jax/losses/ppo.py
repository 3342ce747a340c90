"""PPO: the rewards it sees, its clipped objectives, and the two losses as functions of (params, trajectory)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rlhf_jax.losses.kl import k1, k3
from rlhf_jax.masking import last_index, mask_weight, masked_mean
from rlhf_jax.models.api import TokenStats
from rlhf_jax.types import Aux, Params, TokenBatch, Trajectory

Metrics = dict[str, Float[Array, ""]]


def token_rewards(
    scores: Float[Array, "B"],
    logprobs: Float[Array, "B T"],
    ref_logprobs: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    kl_coef: Float[Array, ""] | float,
) -> Float[Array, "B T"]:
    """r_t = -kl_coef (log pi - log ref)_t, plus the score on the last token of the mask (eos, where there is one).

    Source: Ziegler et al. 2019, section 2.2; the sign as in their code.
    """
    penalty = jnp.where(mask, -kl_coef * k1(logprobs, ref_logprobs), 0.0)
    columns = jnp.arange(mask.shape[1])
    last = (columns[None, :] == last_index(mask)[:, None]) & mask
    return penalty + jnp.where(last, scores[:, None], 0.0)


def clipped_policy_loss(
    logprobs: Float[Array, "B T"],
    old_logprobs: Float[Array, "B T"],
    advantages: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    clip: float,
) -> tuple[Float[Array, ""], Metrics]:
    """-mean min(r A, clip(r, 1 - clip, 1 + clip) A),  r = pi / pi_old.

    Source: Schulman et al. 2017 (arXiv:1707.06347), eq. 7.
    """
    log_ratio = jnp.where(mask, logprobs - old_logprobs, 0.0)
    ratio = jnp.exp(log_ratio)
    unclipped, clipped = ratio * advantages, jnp.clip(ratio, 1 - clip, 1 + clip) * advantages
    metrics = {
        "clip_fraction": masked_mean((clipped < unclipped).astype(jnp.float32), mask),
        "approx_kl": masked_mean(k3(jnp.where(mask, old_logprobs, 0.0), jnp.where(mask, logprobs, 0.0)), mask),
        "ratio": masked_mean(ratio, mask),
    }
    return -masked_mean(jnp.minimum(unclipped, clipped), mask), metrics


def clipped_value_loss(
    values: Float[Array, "B T"],
    old_values: Float[Array, "B T"],
    returns: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    clip: float | None,
) -> tuple[Float[Array, ""], Metrics]:
    """mean max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2) / 2; without clip, the plain squared error.

    Source: Ziegler et al. 2019, released code.
    """
    error = jnp.square(values - returns)
    if clip is not None:
        near = old_values + jnp.clip(values - old_values, -clip, clip)
        clipped = jnp.square(near - returns)
        fraction = masked_mean((clipped > error).astype(jnp.float32), mask)
        error = jnp.maximum(error, clipped)
    else:
        fraction = jnp.zeros(())
    return 0.5 * masked_mean(error, mask), {"value_clip_fraction": fraction}


def explained_variance(
    values: Float[Array, "B T"], returns: Float[Array, "B T"], mask: Bool[Array, "B T"]
) -> Float[Array, ""]:
    """1 - Var(returns - values) / Var(returns) over the mask: 1 is a perfect critic, 0 a constant one."""
    residual = returns - values
    rest = masked_mean(jnp.square(residual - masked_mean(residual, mask)), mask)
    whole = masked_mean(jnp.square(returns - masked_mean(returns, mask)), mask)
    return 1.0 - rest / jnp.maximum(whole, 1e-12)


def ppo_policy_loss(
    params: Params,
    trajectory: Trajectory,
    *,
    token_stats: Callable[[Params, TokenBatch, jax.Array], TokenStats],
    clip: float,
) -> tuple[jax.Array, Aux]:
    """The clipped objective of a minibatch, per response token; entropy is reported, not rewarded."""
    rollout = trajectory.rollout
    mask = rollout.batch.loss_mask
    stats = token_stats(params, rollout.batch, rollout.temperature)
    loss, metrics = clipped_policy_loss(stats.logprobs, trajectory.old_logprobs, trajectory.advantages, mask, clip=clip)
    metrics = {"policy_loss": loss, "entropy": masked_mean(stats.entropy, mask), **metrics}
    return loss, Aux(weight=mask_weight(mask), metrics=metrics)


def ppo_value_loss(
    params: Params,
    trajectory: Trajectory,
    *,
    values: Callable[[Params, TokenBatch], jax.Array],
    clip: float | None,
) -> tuple[jax.Array, Aux]:
    """The clipped squared error of the critic on a minibatch, per response token."""
    batch = trajectory.rollout.batch
    mask = batch.loss_mask
    predictions = jnp.where(mask, values(params, batch), 0.0)
    loss, metrics = clipped_value_loss(predictions, trajectory.values, trajectory.returns, mask, clip=clip)
    return loss, Aux(weight=mask_weight(mask), metrics={"value_loss": loss, **metrics})
