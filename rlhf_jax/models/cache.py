"""What a decoder has read, kept so that the next token costs one column."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.config import ModelConfig
from rlhf_jax.models.visible import Visible
from rlhf_jax.sharding import constrain
from rlhf_jax.types import pytree

KeysAndValues = tuple[Float[Array, "*N B K S H"], Float[Array, "*N B K S H"]]
"""Of one layer, or of all."""
OfLayer = tuple[Float[Array, "B K T H"], Float[Array, "B K T H"]]


@pytree
class Cache:
    """Keys and values of the tokens read so far. S columns in all; `filled` marks those that may be attended to.

    Columns need not stand in the order of their tokens: `positions` says where in its text each token is. Where layers run one by one each
    has arrays of its own.
    """

    layers: tuple[KeysAndValues, ...]
    filled: Bool[Array, "B S"]
    positions: Int[Array, "B S"]

    def read(self, layers: tuple[KeysAndValues, ...]) -> Cache:
        """The cache after the layers have written, its parts where they belong on the mesh."""
        return dataclasses.replace(self, layers=jax.tree.map(lambda x: constrain(x, *names_of(x.ndim)), layers))


def empty_cache(config: ModelConfig, rows: int, length: int) -> Cache:
    """A cache of `length` columns with nothing in it."""
    c, columns = config, jnp.zeros((rows, length), jnp.int32)
    shape, dtype = (rows, c.kv_heads, length, c.head_size), jnp.dtype(c.dtype)
    if c.unroll:
        part, parts = jnp.zeros(shape, dtype), c.layers
    else:
        part, parts = jnp.zeros((c.layers, *shape), dtype), 1
    return Cache(((part, part),) * parts, columns.astype(bool), columns)


def written(cache: KeysAndValues, new: OfLayer, layer: jax.Array, column: Any) -> KeysAndValues:
    """The cache with keys and values of this layer from this column on."""

    def put(whole: jax.Array, new: jax.Array) -> jax.Array:
        alone = whole.ndim == new.ndim
        new, where = (new, (0, 0, column, 0)) if alone else (new[None], (layer, 0, 0, column, 0))
        return jax.lax.dynamic_update_slice(whole, new.astype(whole.dtype), where)

    return put(cache[0], new[0]), put(cache[1], new[1])


def at_layer(cache: KeysAndValues, layer: jax.Array) -> OfLayer:
    """Keys and values of this layer."""
    if cache[0].ndim == 4:
        return cache
    keys, values = (jax.lax.dynamic_index_in_dim(whole, layer, keepdims=False) for whole in cache)
    return keys, values


def with_column(cache: Cache, column: jax.Array, positions: jax.Array, filled: jax.Array) -> tuple[Cache, Visible]:
    """(the cache with a place for one token of each row in this column, what these tokens see of it)."""
    filled = jax.lax.dynamic_update_slice(cache.filled, filled[:, None], (0, column))
    places = jax.lax.dynamic_update_slice(cache.positions, positions[:, None], (0, column))
    queries = jnp.ones_like(positions)[:, None]
    visible = Visible(queries, filled.astype(jnp.int32), column, (positions[:, None] - places)[:, None])
    return dataclasses.replace(cache, filled=filled, positions=places), visible


def names_of(ndim: int) -> tuple[str | None, ...]:
    """The logical axes of an array of any cache by how many it has: keys and values of all layers or of one, or something of each row."""
    names = ("layers", "batch", "kv", None, "head_dim")
    return names[-ndim:] if ndim >= 4 else ("batch",) + (None,) * (ndim - 1)
