"""Adafactor: second moments of a matrix kept as one number for each of its inputs and one for each of its outputs.

A matrix is what `sharding.sides` says: kernels of several dimensions are those of inputs x outputs; each layer of a stack has its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rlhf_jax.sharding import keys_of, sides
from rlhf_jax.types import pytree

DECAY, CLIP = 0.8, 1.0
EPS, SMALLEST = 1e-30, 1e-3
"""The paper's constants, of its algorithm 4: exponent of the decay, d, eps_1 and eps_2."""


@pytree
class Factored:
    """Means of squared gradients of a matrix: over its outputs, and over its inputs."""

    row: jax.Array  # [*layers, *inputs]
    col: jax.Array  # [*layers, *outputs]


class FactoredState(NamedTuple):
    """What the optimiser remembers."""

    count: jax.Array
    nu: Any  # as the parameters, with a Factored in place of each matrix


def scale_by_factored_moments() -> optax.GradientTransformation:
    """G_t / sqrt(V_t), where V_t = row_t col_t / mean(row_t), and of what is no matrix the mean itself.

    row_t = b_t row_{t-1} + (1 - b_t) mean(G_t^2 + eps_1) over the outputs, col_t in the same way over the inputs, b_t = 1 - t^-0.8.

    Source: Shazeer & Stern 2018 (arXiv:1804.04235), algorithms 4 and 5.
    """

    def init(params) -> FactoredState:
        def zeros(path, leaf):
            split = sides(keys_of(path), leaf.ndim)
            if split is None:
                return jnp.zeros(leaf.shape, jnp.float32)
            first, outputs = split
            row, col = leaf.shape[:outputs], leaf.shape[:first] + leaf.shape[outputs:]
            return Factored(jnp.zeros(row, jnp.float32), jnp.zeros(col, jnp.float32))

        return FactoredState(jnp.zeros((), jnp.int32), jax.tree_util.tree_map_with_path(zeros, params))

    def update(updates, state: Any, params=None):
        count = jnp.asarray(optax.safe_increment(state.count))
        decay = 1.0 - count.astype(jnp.float32) ** -DECAY

        def one(path, g, nu):
            squared = jnp.square(g.astype(jnp.float32)) + EPS
            split = sides(keys_of(path), g.ndim)
            if split is None:
                nu = decay * nu + (1.0 - decay) * squared
                return (g * jax.lax.rsqrt(nu)).astype(g.dtype), nu
            first, outputs = split
            ins, outs = tuple(range(first, outputs)), tuple(range(outputs, g.ndim))
            row = decay * nu.row + (1.0 - decay) * jnp.mean(squared, axis=outs)
            col = decay * nu.col + (1.0 - decay) * jnp.mean(squared, axis=ins)
            by_row = jax.lax.rsqrt(row / jnp.mean(row, axis=ins, keepdims=True))
            scaled = g * jnp.expand_dims(by_row, outs) * jnp.expand_dims(jax.lax.rsqrt(col), ins)
            return scaled.astype(g.dtype), Factored(row, col)

        return _pairs(one, state, count, updates)

    return optax.GradientTransformation(init, update)


def _pairs(one: Callable[..., Any], state: FactoredState, count: jax.Array, updates: Any) -> tuple[Any, FactoredState]:
    leaves, tree = jax.tree_util.tree_flatten_with_path(updates)
    pairs = [one(path, g, nu) for (path, g), nu in zip(leaves, tree.flatten_up_to(state.nu), strict=True)]
    scaled, nu = ([pair[side] for pair in pairs] for side in (0, 1))
    return tree.unflatten(scaled), FactoredState(count, tree.unflatten(nu))


def clip_and_scale_by_size() -> optax.GradientTransformationExtraArgs:
    """max(eps_2, rms(X)) U / max(1, rms(U) / d) of each parameter X, a layer of a stack being one: steps in shares of its size.

    Source: Shazeer & Stern 2018, algorithm 4.
    """

    def update(updates, state, params=None, **_):
        if params is None:
            raise ValueError("Adafactor's steps are shares of the parameters' size; give update(..., params)")

        def one(path, u, x):
            apart = tuple(range(int("layers" in keys_of(path) and u.ndim > 0), u.ndim))
            clipped = u / jnp.maximum(1.0, _rms(u, apart) / CLIP)
            return (clipped * jnp.maximum(SMALLEST, _rms(x, apart))).astype(u.dtype)

        return jax.tree_util.tree_map_with_path(one, updates, params), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def _rms(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32)), axis=axes, keepdims=True))
