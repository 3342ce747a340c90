"""What PPO adds to a policy objective: rewards per token, and a critic with its clipped loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rlhf_jax.losses.kl import k1
from rlhf_jax.masking import last_index, mask_weight, masked_mean
from rlhf_jax.types import Aux, Params, TokenBatch, Trajectory

Metrics = dict[str, Float[Array, ""]]
RewardAt = Literal["eos", "eos_plus_1"]


def token_rewards(
    scores: Float[Array, "B"],
    logprobs: Float[Array, "B T"],
    ref_logprobs: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    kl_coef: Float[Array, ""] | float,
    steps: Bool[Array, "B T"] | None = None,
) -> Float[Array, "B T"]:
    """r_t = -kl_coef (log pi - log ref)_t, plus the score on the last token of the mask (eos, where there is one), or on that of `steps`.

    Source: Ziegler et al. 2019, section 2.2; the sign as in their code.
    """
    penalty = jnp.where(mask, -kl_coef * k1(logprobs, ref_logprobs), 0.0)
    earned = mask if steps is None else steps
    columns = jnp.arange(mask.shape[1])
    last = (columns[None, :] == last_index(earned)[:, None]) & earned
    return penalty + jnp.where(last, scores[:, None], 0.0)


def one_step_further(batch: TokenBatch) -> TokenBatch:
    """The batch with the padding right behind each response as one more of its tokens, where the row has room: V of the state after eos.

    Source: Huang et al. 2024 (arXiv:2403.17031), released code, padding_mask_p1.
    """

    def before(x: jax.Array) -> jax.Array:
        return jnp.pad(x[:, :-1], ((0, 0), (1, 0)))

    behind = before(batch.loss_mask) & (batch.segments == 0)
    return dataclasses.replace(
        batch,
        positions=jnp.where(behind, before(batch.positions) + 1, batch.positions),
        segments=jnp.where(behind, before(batch.segments), batch.segments),
        loss_mask=batch.loss_mask | behind,
    )


def value_steps(batch: TokenBatch, reward_at: RewardAt) -> TokenBatch:
    """What a critic reads, and the steps that it has values of: the response, or one more."""
    return one_step_further(batch) if reward_at == "eos_plus_1" else batch


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
    reward_at: RewardAt = "eos",
) -> tuple[jax.Array, Aux]:
    """The clipped squared error of the critic on a minibatch, per response token, and per step behind one where that has the reward."""
    batch = value_steps(trajectory.rollout.batch, reward_at)
    mask = batch.loss_mask
    predictions = jnp.where(mask, values(params, batch), 0.0)
    loss, metrics = clipped_value_loss(predictions, trajectory.values, trajectory.returns, mask, clip=clip)
    return loss, Aux(weight=mask_weight(mask), metrics={"value_loss": loss, **metrics})
