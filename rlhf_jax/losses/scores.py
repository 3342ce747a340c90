"""The unit of scores: moments of all that were seen so far, and scores measured and bounded by them.

Source: Zheng et al. 2023, "Secrets of RLHF" (arXiv:2307.04964), section 5.3.1.
"""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from rlhf_jax.types import Moments

Unit = Literal["raw", "scaled", "normalised"]


def no_moments() -> Moments:
    """The moments of nothing."""
    return Moments(jnp.zeros(()), jnp.zeros(()), jnp.zeros(()))


def with_batch(moments: Moments, x: Float[Array, "B"]) -> Moments:
    """The moments of all numbers before and of these, exact whatever the sizes of the batches.

    Squared deviations add up, and the distance d of the two means adds d^2 n m / (n + m). Source: Chan et al. 1979.
    """
    size = jnp.float32(x.shape[0])
    count = moments.count + size
    distance = jnp.mean(x) - moments.mean
    squares = moments.count * moments.variance + size * jnp.var(x) + distance**2 * moments.count * size / count
    return Moments(count, moments.mean + distance * size / count, squares / count)


def in_unit(scores: Float[Array, "B"], moments: Moments, *, unit: Unit, clip: float | None) -> Float[Array, "B"]:
    """Scores over the standard deviation ("scaled"), less the mean before ("normalised"), or as they are; then within +-clip.

    Where all scores so far are the same there is no deviation to divide by: their unit stays 1.
    """
    spread = moments.variance > 1e-8  # rounding leaves a little of equal scores
    deviation = jnp.sqrt(jnp.where(spread, moments.variance, 1.0))
    shift = moments.mean if unit == "normalised" else 0.0
    measured = (scores - shift) / (1.0 if unit == "raw" else deviation)
    return measured if clip is None else jnp.clip(measured, -clip, clip)
