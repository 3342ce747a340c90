"""Updates of critics, whose targets come from slow copies of themselves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from rlhf_jax.losses.q_learning import polyak, with_targets
from rlhf_jax.train.step import TrainState, init_state, make_step
from rlhf_jax.types import CriticFn, LossFn, Params, RewardedBatch, pytree


@pytree
class CriticState:
    """What training of critics changes: `slow` follows `train.params`, and is what decoding reads."""

    train: TrainState
    slow: Params


def start_critics(params: Params, tx: optax.GradientTransformation) -> CriticState:
    """The state before the first update; the slow copies start as the parameters."""
    return CriticState(init_state(params, tx), jax.tree.map(jnp.copy, params))


def make_critic_step(
    loss: LossFn, critics: CriticFn, tx: optax.GradientTransformation, *, rate: float, microbatches: int = 1
) -> Callable[[CriticState, RewardedBatch], tuple[CriticState, dict[str, jax.Array]]]:
    """(state, batch) -> (state, metrics), pure: one update of the loss on targets of the slow copies, which then move by `rate`."""
    step = make_step(loss, tx, microbatches=microbatches)

    def update(state: CriticState, batch: RewardedBatch):
        train, metrics = step(state.train, with_targets(state.slow, batch, critics=critics))
        # Of an update that was left out they stay as well.
        follow = partial(polyak, rate=rate)
        slow = jax.lax.cond(train.skipped == 0, follow, lambda slow, params: slow, state.slow, train.params)
        return CriticState(train, slow), metrics

    return update
