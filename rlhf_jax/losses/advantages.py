"""Advantages: how much better a token was than expected."""

from __future__ import annotations

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
