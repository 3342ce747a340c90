"""One update from any loss: gradients summed with their weights over microbatches, divided once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rlhf_jax.frozen import join_frozen, split_frozen
from rlhf_jax.types import LossFn, Params, pytree


@pytree
class TrainState:
    """What training changes."""

    step: jax.Array  # updates done
    params: Params
    opt_state: Any
    ema: Params | None  # averaged parameters, where the run keeps them


def init_state(params: Params, tx: optax.GradientTransformation, *, ema: bool = False) -> TrainState:
    """The state before the first update. Parameters that change are copied: the step donates its state, the caller keeps its tree."""
    live, frozen = split_frozen(params)
    live = jax.tree.map(jnp.copy, live)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=join_frozen(live, frozen),
        opt_state=tx.init(live),
        ema=join_frozen(jax.tree.map(jnp.copy, live), frozen) if ema else None,
    )


def deal(batch: Any, microbatches: int) -> Any:
    """[rows, ...] -> [microbatches, rows / microbatches, ...].

    Row r goes to microbatch r % microbatches, so that every device keeps its own rows; scalars go to all.
    """

    def split(x):
        if x.ndim == 0:
            return jnp.broadcast_to(x, (microbatches,))
        return x.reshape(x.shape[0] // microbatches, microbatches, *x.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(split, batch)


def gradients(
    loss: LossFn, params: Params, batch: Any, microbatches: int = 1
) -> tuple[Params, dict[str, jax.Array], jax.Array]:
    """Gradient and metrics of the loss over the whole batch, and its weight; independent of the number of microbatches.

    Frozen parameters have no gradient: in its tree stand empty marks for them.

    grad = sum_i w_i grad_i / sum_i w_i: a mean of means would weigh short microbatches too much.
    """
    live, frozen = split_frozen(params)
    value_and_grad = jax.value_and_grad(lambda live, piece: loss(join_frozen(live, frozen), piece), has_aux=True)

    def one(piece):
        (_, aux), grads = value_and_grad(live, piece)
        weighted = jax.tree.map(lambda x: x * aux.weight.astype(x.dtype), (grads, aux.metrics))
        return (*weighted, aux.weight)

    if microbatches == 1:
        (_, aux), grads = value_and_grad(live, batch)
        return grads, aux.metrics, aux.weight
    pieces = deal(batch, microbatches)
    shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], pieces))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    total, _ = jax.lax.scan(lambda sums, piece: (jax.tree.map(jnp.add, sums, one(piece)), None), zeros, pieces)
    grads, metrics, weight = total
    scale = 1.0 / jnp.maximum(weight, 1e-9)
    grads, metrics = jax.tree.map(lambda x: x * scale.astype(x.dtype), (grads, metrics))
    return grads, metrics, weight


def apply_gradients(
    state: TrainState, grads: Params, tx: optax.GradientTransformation, *, ema: float | None = None
) -> TrainState:
    """The state after one update of the optimiser, with the averaged parameters following at decay `ema`."""
    live, frozen = split_frozen(state.params)
    updates, opt_state = tx.update(grads, state.opt_state, live)
    live = optax.apply_updates(live, updates)
    averaged = state.ema
    if ema is not None:
        old, _ = split_frozen(state.ema)
        averaged = join_frozen(jax.tree.map(lambda old, new: ema * old + (1 - ema) * new, old, live), frozen)
    return TrainState(step=state.step + 1, params=join_frozen(live, frozen), opt_state=opt_state, ema=averaged)


def make_step(
    loss: LossFn, tx: optax.GradientTransformation, *, microbatches: int = 1
) -> Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]:
    """(state, batch) -> (state, metrics), pure; `compile_step` puts it on devices.

    The loss is any function (params, batch) -> (mean, Aux). Metrics gain `grad_norm`, before clipping.
    """

    def step(state: TrainState, batch: Any):
        grads, metrics, _ = gradients(loss, state.params, batch, microbatches)
        return apply_gradients(state, grads, tx), {**metrics, "grad_norm": optax.tree.norm(grads)}

    return step
