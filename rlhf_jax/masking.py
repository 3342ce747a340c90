"""Means over masks: the only way this library averages over tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def masked_sum(x: Float[Array, "*S"], mask: Bool[Array, "*S"]) -> Float[Array, ""]:
    """Sum of x where mask is True; what stands elsewhere (even nan) does not count, nor do its gradients."""
    return jnp.sum(jnp.where(mask, x, 0.0), dtype=jnp.float32)


def mask_weight(mask: Bool[Array, "*S"]) -> Float[Array, ""]:
    """How many entries a masked mean runs over, as a float."""
    return jnp.sum(mask, dtype=jnp.float32)


def masked_mean(x: Float[Array, "*S"], mask: Bool[Array, "*S"]) -> Float[Array, ""]:
    """Mean of x where mask is True; 0 for an empty mask."""
    return masked_sum(x, mask) / jnp.maximum(mask_weight(mask), 1.0)


def masked_var(x: Float[Array, "*S"], mask: Bool[Array, "*S"]) -> Float[Array, ""]:
    """Population variance of x where mask is True (divides by the count, not by count - 1)."""
    x = jnp.where(mask, x, 0.0)  # before the square, whose gradient would pass a nan on
    return masked_mean(jnp.square(x - masked_mean(x, mask)), mask)


def whiten(x: Float[Array, "*S"], mask: Bool[Array, "*S"], *, shift_mean: bool = True) -> Float[Array, "*S"]:
    """x scaled to unit population variance over the mask, zero mean too unless `shift_mean` is False; 0 outside the mask.

    Source: Ziegler et al. 2019, released code (population variance, eps 1e-8 inside the root).
    """
    x = jnp.where(mask, x, 0.0)
    mean = masked_mean(x, mask)
    whitened = (x - mean) * jax.lax.rsqrt(masked_var(x, mask) + 1e-8)
    return jnp.where(mask, whitened if shift_mean else whitened + mean, 0.0)


def last_index(mask: Bool[Array, "B T"]) -> Int[Array, "B"]:
    """Column of the last True of each row; 0 for a row without one."""
    columns = jnp.arange(mask.shape[1], dtype=jnp.int32)
    return jnp.max(jnp.where(mask, columns[None, :], 0), axis=1)


def first_index(mask: Bool[Array, "B T"]) -> Int[Array, "B"]:
    """Column of the first True of each row; 0 for a row without one."""
    return jnp.argmax(mask, axis=1).astype(jnp.int32)


def in_prompt(segments: Int[Array, "B T"], loss_mask: Bool[Array, "B T"]) -> Bool[Array, "B T"]:
    """Which real tokens stand in front of the first token to learn of their segment; all, where a segment has none to learn."""
    learned = jnp.cumsum(loss_mask, axis=1)
    begins = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    before = jnp.where(begins, learned - loss_mask.astype(jnp.int32), 0)
    return (segments != 0) & (learned == jax.lax.cummax(before, axis=1))


def positions_of(mask: Bool[Array, "B T"]) -> Int[Array, "B T"]:
    """Position ids that count the real tokens from 0, wherever the padding stands: exclusive cumulative sum of the mask."""
    counts = jnp.cumsum(mask.astype(jnp.int32), axis=1)
    return counts - mask.astype(jnp.int32)
