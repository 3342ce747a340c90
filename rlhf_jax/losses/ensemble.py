"""Several reward models as one: stacked parameters, one forward by vmap, and what to make of their disagreement.

Source: Coste et al. 2023 (arXiv:2310.02743), section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rlhf_jax.types import Params

Members = Float[Array, "M *S"]
Combined = Float[Array, "*S"]


def stack(members: Sequence[Params]) -> Params:
    """Parameter trees of one shape as a single tree with a leading axis of members."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)


def member_scores(scores: Callable[[Params, Any], jax.Array], stacked: Params, batch: Any) -> Float[Array, "M B"]:
    """Every member's scores of one batch."""
    return jax.vmap(scores, in_axes=(0, None))(stacked, batch)


def standardised(scores: Members, mean: Float[Array, "M"], std: Float[Array, "M"]) -> Members:
    """Each member's scores in its own unit: without it, the member of the widest scale decides. Moments of the reference's samples."""
    shape = (-1,) + (1,) * (scores.ndim - 1)
    return (scores - mean.reshape(shape)) / std.reshape(shape)


def mean_score(scores: Members) -> Combined:
    """The mean over members."""
    return jnp.mean(scores, axis=0)


def worst_case(scores: Members) -> Combined:
    """WCO: the least score that any member gives."""
    return jnp.min(scores, axis=0)


def uncertainty_weighted(scores: Members, *, coef: float) -> Combined:
    """UWO: mean - coef * population variance over members."""
    return jnp.mean(scores, axis=0) - coef * jnp.var(scores, axis=0)
