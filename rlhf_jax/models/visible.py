"""Which tokens may see which: from segments and the order of tokens, without an array of all pairs until one is asked for."""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from rlhf_jax.models.groups import Group
from rlhf_jax.sharding import constrain
from rlhf_jax.types import pytree


@pytree
class Visible:
    """Which keys each query may attend to: those of its own segment (0 sees and is nothing), in a causal layer none behind it.

    Columns of one row are as far apart as their positions, as segments have no gaps, so that a window counts columns; but for a cache
    whose columns are not in order, which says how far apart they are.
    """

    queries: Int[Array, "B T"]
    keys: Int[Array, "B S"]
    # The column of the first query: in a cache, or behind what is shared; None: queries and keys begin together.
    column: Int[Array, ""] | int | None = None
    apart: Int[Array, "B T S"] | None = (
        None  # of a cache: how many tokens each key is before each query; else as many as columns
    )
    causal: bool = flax.struct.field(pytree_node=False, default=True)
    shared: Visible | None = (
        None  # of a cache: what stands in front of its columns, each row of it in front of several rows
    )
    group: Group | None = flax.struct.field(pytree_node=False, default=None)  # whose rows are folded into one

    @property
    def first(self) -> jax.Array | int:
        """The column in which the keys of the first query are written."""
        return 0 if self.column is None else self.column

    @property
    def longest(self) -> int:
        """Columns of the longest text there may be."""
        columns = self.keys.shape[1] + (0 if self.shared is None else self.shared.keys.shape[1])
        return columns if self.group is None else self.group.shared(columns) + self.group.last

    def laid(self) -> Visible:
        """The same, its queries where their tokens lie on the mesh; every device has all keys of its rows."""
        queries, keys = constrain(self.queries, "batch", "length"), constrain(self.keys, "batch", None)
        return dataclasses.replace(self, queries=queries, keys=keys)

    def distance(self) -> Int[Array, "b T S"]:
        """How many tokens each key is before each query, in every row or, where b = 1, in all of them."""
        if self.apart is not None:
            return self.apart
        columns = self.first + jnp.arange(self.queries.shape[1])
        return (columns[:, None] - jnp.arange(self.keys.shape[1])[None, :])[None]

    def mask(self, window: int | None = None, local: Bool[Array, ""] | bool = True) -> Bool[Array, "B T S"]:
        """The same for each query and key; in a `local` layer a query sees itself and the window - 1 columns before it."""
        seen = (self.queries[:, :, None] == self.keys[:, None, :]) & (self.queries[:, :, None] != 0)
        if not self.causal:
            return seen
        apart = self.distance()
        seen = seen & (apart >= 0)
        return seen if window is None else seen & ((apart < window) | ~jnp.asarray(local))
