"""Which examples each step sees: a pure function of the seed and the step, so that the step is the whole position in the data.

Nothing of it depends on how many processes there are: each takes its places of the one order, and another number of them goes on where
these stopped.
"""

from __future__ import annotations

import functools
import operator
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np


class Order:
    """`order.at(step)` are the numbers of the examples of that step; steps have no end.

    The examples are those of several parts, one part after the other, each with a share of the rows. Each part is shuffled anew in every
    epoch of its own; a step may hold the end of one epoch and the start of the next, so there may be more rows than examples.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], rows: int, seed: int) -> None:
        import grain

        if rows < 1:
            raise ValueError(f"rows is {rows}; expected at least 1")
        if seed < 0:
            raise ValueError(f"seed is {seed}; expected 0 or more")
        starts = np.cumsum([0, *sizes]).tolist()
        parts: Any = [
            # Parts of one size must not be shuffled alike, so each has its own key.
            grain.MapDataset.source(_Epochs(start, size, key=(seed, part)))
            for part, (start, size) in enumerate(zip(starts, sizes, strict=False))
        ]
        self._mixed: Any = grain.MapDataset.mix(parts, weights=list(weights))
        self.size = rows
        # The parts of a mixture take turns in a fixed pattern. If each process took the same places of every batch, one of five would see
        # nothing but the second of two parts with weights 4 and 1; so the places move on by one with every step.
        self._turning = len(sizes) > 1

    def at(self, step: int, places: np.ndarray | None = None) -> np.ndarray:
        """The examples at these places of the batch of a step; without places, at all."""
        step = operator.index(step)
        if step < 0:
            raise IndexError(f"step is {step}; expected 0 or more")
        places = np.arange(self.size) if places is None else places
        places = (places + step) % self.size if self._turning else places
        return np.array([self._mixed[step * self.size + int(place)] for place in places], np.int64)


class _Epochs:
    """Examples start .. start + size without end, in a new random order every epoch.

    grain's own shuffle searches a fixed domain for each element, which takes milliseconds a row in sets under a
    hundred.
    """

    def __init__(self, start: int, size: int, key: tuple[int, int]) -> None:
        self._start, self._size, self._key = start, size, key
        self._order = functools.lru_cache(maxsize=2)(self._permute)

    def __len__(self) -> int:
        return sys.maxsize // 2  # a mixture adds up the lengths of its parts and ends with the first exhausted one

    def __getitem__(self, index: int) -> int:
        epoch, place = divmod(index, self._size)
        return self._start + int(self._order(epoch)[place])

    def _permute(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([*self._key, epoch]).permutation(self._size)
