"""What PPO adds to a policy objective: rewards per token, and a critic with its clipped loss."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rlhf_jax.losses.kl import k1
from rlhf_jax.masking import last_index, mask_weight, masked_mean
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
