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

KeysAndValues = tuple[jax.Array, jax.Array]
"""Of all layers, [N, B, K, S, H] both; or of one, keys [B, K, H, S], which a CPU reads three times as fast, and values [B, K, S, H]."""
OfLayer = tuple[Float[Array, "B K S H"], Float[Array, "B K S H"]]


@pytree
class Cache:
    """Keys and values of the tokens read so far. S columns in all; `filled` marks those that may be attended to.

    Columns need not stand in the order of their tokens: `positions` says where in its text each token is. Where layers run one by one each
    has arrays of its own.
    """

    layers: tuple[KeysAndValues, ...]
    filled: Bool[Array, "B S"]
    positions: Int[Array, "B S"]
    shared: Cache | None = None  # of fewer rows, each of which several rows side by side go on from; only read

    def read(self, layers: tuple[KeysAndValues, ...]) -> Cache:
        """The cache after the layers have written, its parts where they belong on the mesh."""
        return dataclasses.replace(self, layers=jax.tree.map(lambda x: constrain(x, *names_of(x.ndim)), layers))


def empty_cache(config: ModelConfig, rows: int, length: int) -> Cache:
    """A cache of `length` columns with nothing in it."""
    c, columns = config, jnp.zeros((rows, length), jnp.int32)
    rest, dtype = (c.layers, rows, c.kv_heads), jnp.dtype(c.kept_dtype)
    keys = values = jnp.zeros((*rest, length, c.head_size), dtype)
    if c.unroll:
        keys, values = keys[0].swapaxes(2, 3), values[0]
    return Cache(((keys, values),) * (c.layers if c.unroll else 1), columns.astype(bool), columns)


def forked(config: ModelConfig, cache: Cache, rows: int, columns: int) -> Cache:
    """A cache in which so many rows, side by side, go on from each row of this one, each with so many columns of its own, and empty.

    Raises: ValueError for a cache whose rows go on from another's already.
    """
    if cache.shared is not None:
        raise ValueError("the rows of this cache go on from those of another already; fork that one into more rows")
    own = empty_cache(config, cache.filled.shape[0] * rows, columns)
    return dataclasses.replace(own, shared=cache).read(own.layers)


def written(cache: KeysAndValues, new: OfLayer, layer: jax.Array, column: Any) -> KeysAndValues:
    """The cache with keys and values of this layer from this column on."""
    put = jax.lax.dynamic_update_slice
    keys, values = (x.astype(whole.dtype) for x, whole in zip(new, cache, strict=True))
    if cache[0].ndim == 4:
        return put(cache[0], keys.swapaxes(2, 3), (0, 0, 0, column)), put(cache[1], values, (0, 0, column, 0))
    where = (layer, 0, 0, column, 0)
    return put(cache[0], keys[None], where), put(cache[1], values[None], where)


def at_layer(cache: KeysAndValues, layer: jax.Array) -> OfLayer:
    """Keys and values of this layer."""
    if cache[0].ndim == 4:
        return cache[0].swapaxes(2, 3), cache[1]
    keys, values = (jax.lax.dynamic_index_in_dim(whole, layer, keepdims=False) for whole in cache)
    return keys, values


def with_column(cache: Cache, column: jax.Array, positions: jax.Array, filled: jax.Array) -> tuple[Cache, Visible]:
    """(the cache with a place for one token of each row in this column, what these tokens see of it); shared columns count too."""
    queries, shared = jnp.ones_like(positions)[:, None], None
    if cache.shared is not None:
        rows = positions.shape[0] // cache.shared.filled.shape[0]
        there, places = (jnp.repeat(x, rows, axis=0) for x in (cache.shared.filled, cache.shared.positions))
        shared = Visible(queries, there.astype(jnp.int32), apart=(positions[:, None] - places)[:, None])
        column = column - there.shape[1]
    filled = jax.lax.dynamic_update_slice(cache.filled, filled[:, None], (0, column))
    places = jax.lax.dynamic_update_slice(cache.positions, positions[:, None], (0, column))
    apart = (positions[:, None] - places)[:, None]
    visible = Visible(queries, filled.astype(jnp.int32), column, apart, shared=shared)
    return dataclasses.replace(cache, filled=filled, positions=places), visible


def names_of(ndim: int) -> tuple[str | None, ...]:
    """The logical axes of an array of any cache by how many it has: keys and values of all layers or of one, or something of each row."""
    names = ("layers", "batch", "kv", None, "head_dim")
    return names[-ndim:] if ndim >= 4 else ("batch",) + (None,) * (ndim - 1)
