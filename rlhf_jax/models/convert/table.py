"""How a parameter of ours stands in a checkpoint: one line of a family's table, read in both directions.

A line is the name of a tensor and a pattern such as `(h k) d -> d h k`: on the left the axes of the stored tensor, on the right those of
our array; axes in brackets are stored as one. Letters are sizes of the model: v vocabulary, d width, h heads, g key-value heads, k
dimensions of a head, m feed-forward, p positions, b buckets of distances, t types of tokens, c classes; e is the width as well, where a
matrix has it twice. A number is an axis that holds several of our parameters, of which `part` is one.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rlhf_jax.config import ModelConfig

Ranges = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where one parameter is stored. `{}` in the name is the number of the layer; `skip` rows in front are none of ours."""

    name: str
    pattern: str
    part: int = 0
    skip: int = 0
    layers: int = 0  # of the stack that it is of, filled in with the config

    @property
    def per_layer(self) -> bool:
        """Whether each layer has a tensor of its own; ours are one array with the layers in front."""
        return "{}" in self.name

    @property
    def names(self) -> list[str]:
        """Of all layers."""
        return [self.name.format(layer) for layer in range(self.layers)] if self.per_layer else [self.name]


def sizes_of(config: ModelConfig) -> dict[str, int]:
    """What the letters of a pattern stand for."""
    c = config
    return {
        "v": c.vocab,
        "d": c.width,
        "h": c.heads,
        "g": c.kv_heads,
        "k": c.head_size,
        "m": c.mlp,
        "p": c.max_length,
        "b": c.relative_buckets,
        "e": c.width,
        "t": c.token_types,
        "c": c.classes or 1,
    }


class Layout:
    """A tensor's pattern with its sizes: both shapes, and how parts of one are found in the other."""

    def __init__(self, tensor: Tensor, sizes: Mapping[str, int]):
        left, right = tensor.pattern.split("->")
        groups = [(bracketed or single).split() for bracketed, single in re.findall(r"\(([^)]*)\)|(\w+)", left)]
        self._axes = [[(name, int(name) if name.isdigit() else sizes[name]) for name in group] for group in groups]
        self._skip, self._part = tensor.skip, tensor.part
        names = [name for group in groups for name in group]
        ours = right.split()
        # Numbered axes first, as they are indexed away, then ours.
        self._order = [names.index(name) for name in names if name.isdigit()] + [names.index(name) for name in ours]
        self._numbered = sum(name.isdigit() for name in names)
        self._ours = ours
        self.own_shape = tuple(sizes[name] for name in ours)
        self.shape = tuple(math.prod(size for _, size in axis) for axis in self._axes)
        self.shape = (self.shape[0] + self._skip, *self.shape[1:])

    def view(self, stored: np.ndarray) -> np.ndarray:
        """Our parameter as a view of the whole stored tensor: what is written into it stands there."""
        inner = stored[self._skip :].reshape([size for axis in self._axes for _, size in axis])
        return inner.transpose(self._order)[(*(self._part,) * self._numbered, ...)]

    def read(self, get: Callable[[Ranges], np.ndarray], wanted: Sequence[slice]) -> np.ndarray:
        """The `wanted` part of our parameter; `get` reads a box of the stored tensor, and no larger one than it must.

        Axes that are stored as one are read from the first number to the last that is needed.
        """
        ours = dict(zip(self._ours, wanted, strict=True))
        boxes, shape, cut = [], [], []
        for place, axis in enumerate(self._axes):
            ranges = [
                (self._part, self._part + 1) if name.isdigit() else ours[name].indices(size)[:2] for name, size in axis
            ]
            first = next((n for n, (start, stop) in enumerate(ranges) if stop - start != 1), len(ranges) - 1)
            strides = [math.prod(size for _, size in axis[n + 1 :]) for n in range(len(axis))]
            base = sum(ranges[n][0] * strides[n] for n in range(first)) + (self._skip if place == 0 else 0)
            boxes.append((base + ranges[first][0] * strides[first], base + ranges[first][1] * strides[first]))
            shape += [1] * first + [ranges[first][1] - ranges[first][0]] + [size for _, size in axis[first + 1 :]]
            cut += [slice(None)] * (first + 1) + [slice(*pair) for pair in ranges[first + 1 :]]
        box = get(tuple(boxes)).reshape(shape)[tuple(cut)]
        return box.transpose(self._order)[(*(0,) * self._numbered, ...)]
