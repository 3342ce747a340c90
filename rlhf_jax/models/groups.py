"""Rows that begin alike, such as the responses to one prompt: what they share is read once for all of them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rlhf_jax.sharding import pieces, whole_groups


class Group(NamedTuple):
    """So many rows, side by side, that differ in the last so many columns alone."""

    rows: int
    last: int

    def of(self, rows: int, length: int) -> Group | None:
        """This, where such a batch has anything to share, and every device of the ambient mesh has whole groups and whole texts.

        Raises: ValueError where the rows are no whole groups.
        """
        if rows % self.rows:
            raise ValueError(f"a batch of {rows} rows for groups of {self.rows}")
        lengths = (length, length - self.last, self.last, self.folded(length))
        if self.rows == 1 or self.last >= length or any(pieces("length", each) > 1 for each in lengths):
            return None
        return self if whole_groups(rows, self.rows) else None

    def fold(self, x: Int[Array, "B T"]) -> Int[Array, "P F"]:
        """[P K, W + N] -> [P, W + K N]: what the K rows of a group share, then what each has of its own."""
        own = x[:, -self.last :].reshape(-1, self.rows * self.last)
        return jnp.concatenate([x[:: self.rows, : -self.last], own], axis=1)

    def unfold(self, x: Float[Array, "P F D"]) -> Float[Array, "B T D"]:
        """[P, W + K N, D] -> [P K, W + N, D], as if each row had been by itself."""
        width = self.shared(x.shape[1])
        both = jnp.repeat(x[:, :width], self.rows, axis=0), x[:, width:].reshape(-1, self.last, x.shape[2])
        return jnp.concatenate(both, axis=1)

    def folded(self, length: int) -> int:
        """W + K N, the columns of a batch of so many columns when it is folded."""
        return length - self.last + self.rows * self.last

    def shared(self, folded: int) -> int:
        """W, how many columns the rows share, of a batch folded to so many."""
        return folded - self.rows * self.last

    def own_keys(self, x: jax.Array) -> Float[Array, "B G T K"]:
        """[P, G, W + K N, K] -> [P K, G, W + N, K]: the keys, or values, that each row may see."""
        heads, folded, size = x.shape[1:]
        width = self.shared(folded)
        own = x[:, :, width:].reshape(-1, heads, self.rows, self.last, size).swapaxes(1, 2)
        own = own.reshape(-1, heads, self.last, size)
        return jnp.concatenate([jnp.repeat(x[:, :, :width], self.rows, axis=0), own], axis=2)
