"""Dynamic sampling: groups of responses that all score alike teach a group baseline nothing, and are replaced from further rollouts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.train.ppo import select_rows
from rlhf_jax.types import Rollout, pytree


@pytree
class Scored:
    """Responses, those to one prompt side by side, with their scores and the number of the prompt that each answers."""

    rollout: Rollout
    scores: Float[Array, "B"]
    index: Int[Array, "B"]


def has_signal(scores: Float[Array, "B"], *, samples: int) -> Bool[Array, "P"]:
    """Which prompts have responses that differ in score."""
    table = scores.reshape(-1, samples)
    return jnp.max(table, axis=1) > jnp.min(table, axis=1)


def signal_share(scores: Float[Array, "B"], *, samples: int) -> Float[Array, ""]:
    """The share of prompts that have a signal."""
    return jnp.mean(has_signal(scores, samples=samples), dtype=jnp.float32)


def refill(kept: Scored, new: Scored, *, samples: int) -> Scored:
    """As many groups as `kept` has: those with a signal, of `kept` first, and where they do not suffice others after them.

    Source: Yu et al. 2025, DAPO (arXiv:2503.14476), section 3.2.
    """
    both = jax.tree.map(lambda a, b: a if a.ndim == 0 else jnp.concatenate([a, b]), kept, new)
    order = jnp.argsort(~has_signal(both.scores, samples=samples), stable=True)
    groups = order[: kept.scores.shape[0] // samples]
    return select_rows(both, (groups[:, None] * samples + jnp.arange(samples)[None, :]).reshape(-1))
