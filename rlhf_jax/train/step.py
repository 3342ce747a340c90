"""One update from any loss: gradients summed with their weights over microbatches, divided once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rlhf_jax.frozen import join_frozen, split_frozen
from rlhf_jax.sharding import deal
from rlhf_jax.types import LossFn, Params, pytree


@pytree
class TrainState:
    """What training changes."""

    step: jax.Array  # updates done
    params: Params
    opt_state: Any
    ema: Params | None  # averaged parameters, where the run keeps them
    skipped: jax.Array  # updates in a row, up to the last, that were left out as their loss or gradient was not finite


class Gradients(NamedTuple):
    """What a loss gives over a whole batch."""

    grads: Params
    metrics: dict[str, jax.Array]
    weight: jax.Array
    loss: jax.Array


def init_state(params: Params, tx: optax.GradientTransformation, *, ema: bool = False) -> TrainState:
    """The state before the first update. Parameters that change are copied: the step donates its state, the caller keeps its tree."""
    live, frozen = split_frozen(params)
    live = jax.tree.map(jnp.copy, live)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=join_frozen(live, frozen),
        opt_state=tx.init(live),
        ema=join_frozen(jax.tree.map(jnp.copy, live), frozen) if ema else None,
        skipped=jnp.zeros((), jnp.int32),
    )


def gradients(loss: LossFn, params: Params, batch: Any, microbatches: int = 1, together: int = 1) -> Gradients:
    """Gradient, metrics, weight and value of the loss over the whole batch; independent of the number of microbatches, to which rows go in
    groups of so many that stand `together`.

    Frozen parameters have no gradient: in its tree stand empty marks for them.

    grad = sum_i w_i grad_i / sum_i w_i: a mean of means would weigh short microbatches too much.
    """
    live, frozen = split_frozen(params)
    value_and_grad = jax.value_and_grad(lambda live, piece: loss(join_frozen(live, frozen), piece), has_aux=True)

    def one(piece):
        (value, aux), grads = value_and_grad(live, piece)
        grads, metrics, value = jax.tree.map(lambda x: x * aux.weight.astype(x.dtype), (grads, aux.metrics, value))
        return Gradients(grads, metrics, aux.weight, value)

    if microbatches == 1:
        (value, aux), grads = value_and_grad(live, batch)
        return Gradients(grads, aux.metrics, aux.weight, value)
    pieces = deal(batch, microbatches, together)
    shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], pieces))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, _ = jax.lax.scan(lambda sums, piece: (jax.tree.map(jnp.add, sums, one(piece)), None), zeros, pieces)
    scale = 1.0 / jnp.maximum(total.weight, 1e-9)
    grads, metrics, value = jax.tree.map(lambda x: x * scale.astype(x.dtype), (total.grads, total.metrics, total.loss))
    return Gradients(grads, metrics, total.weight, value)


def apply_gradients(
    state: TrainState,
    grads: Params,
    tx: optax.GradientTransformation,
    *,
    ema: float | None = None,
    loss: jax.Array | float = 0.0,
) -> TrainState:
    """The state after one update of the optimiser, with the averaged parameters following at decay `ema`.

    Where the loss or the gradient is not finite, nothing changes but `skipped`: one such update would leave nothing of the parameters
    and of the optimiser's moments.
    """
    live, frozen = split_frozen(state.params)
    averaged, _ = split_frozen(state.ema)

    def apply(kept, grads):
        step, live, opt_state, averaged = kept
        updates, opt_state = tx.update(grads, opt_state, live)
        live = optax.apply_updates(live, updates)
        if ema is not None:
            averaged = jax.tree.map(lambda old, new, ema=ema: ema * old + (1 - ema) * new, averaged, live)
        return step + 1, live, opt_state, averaged

    finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(grads))
    # A branch writes into the memory of the state; a choice between new and old would need both moments twice.
    kept = (state.step, live, state.opt_state, averaged)
    step, live, opt_state, averaged = jax.lax.cond(finite, apply, lambda kept, grads: kept, kept, grads)
    return TrainState(
        step=step,
        params=join_frozen(live, frozen),
        opt_state=opt_state,
        ema=None if state.ema is None else join_frozen(averaged, frozen),
        skipped=jnp.where(finite, 0, state.skipped + 1),
    )


def skips(*states: TrainState) -> dict[str, jax.Array]:
    """Metrics of states that were updated together: `skipped`, 1 where the update of any was left out, and the longest row of such."""
    row = jnp.max(jnp.stack([state.skipped for state in states])).astype(jnp.float32)
    return {"skipped": jnp.minimum(row, 1.0), "skipped_in_a_row": row}


def make_step(
    loss: LossFn, tx: optax.GradientTransformation, *, microbatches: int = 1
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]:
    """(state, batch) -> (state, metrics), pure; `compile_step` puts it on devices.

    The loss is any function (params, batch) -> (mean, Aux). Metrics gain `loss`, `grad_norm`, before clipping, and those of `skips`.
    """

    def step(state: TrainState, batch: Any):
        found = gradients(loss, state.params, batch, microbatches)
        state = apply_gradients(state, found.grads, tx, loss=found.loss)
        return state, {"loss": found.loss, **found.metrics, "grad_norm": optax.tree.norm(found.grads), **skips(state)}

    return step
