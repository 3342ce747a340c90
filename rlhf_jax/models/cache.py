"""What a decoder has read, kept so that the next token costs one column."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.config import ModelConfig
from rlhf_jax.models.visible import Visible
from rlhf_jax.sharding import constrain
from rlhf_jax.types import pytree


@pytree
class Cache:
    """Keys and values of the tokens read so far. S columns in all; `filled` marks those that may be attended to.

    Columns need not stand in the order of their tokens: `positions` says where in its text each token is.
    """

    keys: Float[Array, "N B K S H"]
    values: Float[Array, "N B K S H"]
    filled: Bool[Array, "B S"]
    positions: Int[Array, "B S"]

    @property
    def layers(self) -> tuple[jax.Array, jax.Array]:
        """What each layer reads and writes."""
        return self.keys, self.values

    def read(self, layers: tuple[jax.Array, jax.Array]) -> Cache:
        """The cache after the layers have written, its parts where they belong on the mesh."""
        keys, values = (constrain(x, *names_of(x.ndim)) for x in layers)
        return dataclasses.replace(self, keys=keys, values=values)


def empty_cache(config: ModelConfig, rows: int, length: int) -> Cache:
    """A cache of `length` columns with nothing in it."""
    shape, dtype = (config.layers, rows, config.kv_heads, length, config.head_size), jnp.dtype(config.dtype)
    columns = jnp.zeros((rows, length), jnp.int32)
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), columns.astype(bool), columns)


def with_column(cache: Cache, column: jax.Array, positions: jax.Array, filled: jax.Array) -> tuple[Cache, Visible]:
    """(the cache with a place for one token of each row in this column, what these tokens see of it)."""
    filled = jax.lax.dynamic_update_slice(cache.filled, filled[:, None], (0, column))
    places = jax.lax.dynamic_update_slice(cache.positions, positions[:, None], (0, column))
    queries = jnp.ones_like(positions)[:, None]
    visible = Visible(queries, filled.astype(jnp.int32), column, (positions[:, None] - places)[:, None])
    return dataclasses.replace(cache, filled=filled, positions=places), visible


def names_of(ndim: int) -> tuple[str | None, ...]:
    """The logical axes of an array of any cache by how many it has: keys and values of all layers, or something about each row."""
    return ("layers", "batch", "kv", None, "head_dim") if ndim == 5 else ("batch",) + (None,) * (ndim - 1)
