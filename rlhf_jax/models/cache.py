"""What a decoder has read, kept so that the next token costs one column."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rlhf_jax.config import ModelConfig
from rlhf_jax.sharding import constrain
from rlhf_jax.types import pytree


@pytree
class Cache:
    """Keys and values of the tokens read so far. S columns in all; `filled` marks those that may be attended to."""

    keys: Float[Array, "N B K S H"]
    values: Float[Array, "N B K S H"]
    filled: Bool[Array, "B S"]


def empty_cache(config: ModelConfig, rows: int, length: int) -> Cache:
    """A cache of `length` columns with nothing in it."""
    shape, dtype = (config.layers, rows, config.kv_heads, length, config.head_size), jnp.dtype(config.dtype)
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((rows, length), bool))


def laid(keys: jax.Array, values: jax.Array, filled: jax.Array) -> Cache:
    """A cache whose parts lie where they belong on the mesh."""
    keys, values = (constrain(x, "layers", "batch", "kv", None, "head_dim") for x in (keys, values))
    return Cache(keys, values, filled)
