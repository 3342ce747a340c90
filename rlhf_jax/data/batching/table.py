"""Sequences of examples: as a few arrays, 4 bytes a token instead of the 36 of Python's numbers; several as one; some of one."""

from __future__ import annotations

import array
from collections.abc import Iterable, Sequence
from typing import TypeVar, overload

import numpy as np

from rlhf_jax.data.tokens.encode import Encoded

Item = TypeVar("Item")


class TokenTable(Sequence[Encoded]):
    """The examples given, by number; each is made when it is asked for."""

    def __init__(self, examples: Iterable[Encoded]) -> None:
        tokens, ends, prompts, heads = (array.array(kind) for kind in "iqiB")
        shortened = bytearray()
        self._given: dict[int, tuple[tuple[int, int], ...]] = {}
        for number, example in enumerate(examples):
            tokens.extend(example.prompt)
            tokens.extend(example.reply)
            ends.append(len(tokens))
            prompts.append(len(example.prompt))
            heads.append(example.head)
            shortened.append(example.shortened)
            if example.given:
                self._given[number] = example.given
        self._tokens = np.frombuffer(tokens, np.int32) if tokens else np.zeros(0, np.int32)
        self._ends, self._prompts, self._heads = (np.array(part, np.int64) for part in (ends, prompts, heads))
        self._shortened = np.array(shortened, bool)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, number: int) -> Encoded: ...
    @overload
    def __getitem__(self, number: slice) -> list[Encoded]: ...
    def __getitem__(self, number):
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(len(self)))]
        number = range(len(self))[number]
        start = int(self._ends[number - 1]) if number else 0
        middle, end = start + int(self._prompts[number]), int(self._ends[number])
        prompt, reply = self._tokens[start:middle].tolist(), self._tokens[middle:end].tolist()
        given = self._given.get(number, ())
        return Encoded(tuple(prompt), tuple(reply), int(self._heads[number]), bool(self._shortened[number]), given)

    @property
    def sizes(self) -> np.ndarray:
        """Tokens of each example, prompt and reply."""
        return np.diff(self._ends, prepend=0)


class Joined(Sequence[Item]):
    """Sequences one after the other, by number."""

    def __init__(self, parts: Sequence[Sequence[Item]]) -> None:
        self._parts, self._ends = parts, np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, number):
        part = int(np.searchsorted(self._ends, number, side="right"))
        if part == len(self._parts):
            raise IndexError(number)  # which ends an iteration
        return self._parts[part][int(number) - (int(self._ends[part - 1]) if part else 0)]


class Chosen(Sequence[Item]):
    """Some items of a sequence, by number."""

    def __init__(self, items: Sequence[Item], places: np.ndarray) -> None:
        self._items, self._places = items, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number):
        return self._items[int(self._places[number])]
