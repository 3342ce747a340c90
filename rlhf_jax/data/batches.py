"""Batches by step: which examples a step sees is a pure function of (seed, step): the step is the data position.

All examples are padded once into arrays of N rows; a batch is a choice of rows. Memory is 13 bytes per padded token.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

import jax
import numpy as np
from jaxtyping import Array, Int

from rlhf_jax.data.encode import Encoded, EncodedLabel, EncodedPair, EncodedReward
from rlhf_jax.data.padding import Cut, count_cut, cut, cut_pair, pack_right, pad_left, pad_right
from rlhf_jax.types import LabelBatch, LabelledReplies, PreferenceBatch, RewardedBatch, TokenBatch, pytree

Example = TypeVar("Example", Encoded, EncodedPair, EncodedLabel, EncodedReward)


@pytree
class PromptBatch:
    """Prompts to write replies to, left-padded."""

    prompts: TokenBatch
    index: Int[Array, "B"]  # which prompt of the data set, for the keys of sampling; -1 for rows that only fill


Data = TypeVar("Data", TokenBatch, PreferenceBatch, LabelBatch, LabelledReplies, RewardedBatch, PromptBatch)


@dataclasses.dataclass(frozen=True)
class Mixture(Generic[Example]):
    """Several sets of examples, each with the share of rows it should have; the shares need not sum to 1."""

    parts: tuple[tuple[Sequence[Example], float], ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("the mixture has no parts; expected at least one")
        for place, (examples, weight) in enumerate(self.parts):
            if not examples or not (0.0 < weight < math.inf):
                raise ValueError(
                    f"part {place} of the mixture has {len(examples)} examples and weight {weight}; "
                    "expected at least one example and a positive weight"
                )


class Batches(Generic[Data]):
    """`batches[step]` is the batch of that step, on any machine and after any restart; steps have no end.

    Each part is shuffled anew in every epoch of its own and repeated; a batch may hold the end of one epoch and the
    start of the next, so there may be more rows than examples. Leaves are numpy arrays.
    """

    def __init__(
        self, data: Data, sizes: Sequence[int], weights: Sequence[float], rows: int, seed: int, cut: Cut
    ) -> None:
        import grain

        _check_rows(rows)
        if seed < 0:
            raise ValueError(f"seed is {seed}; expected 0 or more")
        self.cut = cut
        self._data = data
        starts = np.cumsum([0, *sizes]).tolist()
        orders: Any = [
            # Parts of one size must not be shuffled alike, so each has its own key.
            grain.MapDataset.source(_Epochs(start, size, key=(seed, part)))
            for part, (start, size) in enumerate(zip(starts, sizes, strict=False))
        ]
        self._order: Any = grain.MapDataset.mix(orders, weights=list(weights)).batch(rows)

    def __getitem__(self, step: int) -> Data:
        return take_rows(self._data, self.rows(step))

    def rows(self, step: int) -> np.ndarray:
        """Which examples the rows of a step are, counted through the parts one after the other."""
        step = operator.index(step)
        if step < 0:
            raise IndexError(f"step is {step}; expected 0 or more")
        return np.asarray(self._order[step])


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


def token_batches(
    examples: Sequence[Encoded] | Mixture[Encoded], rows: int, length: int, pad: int, seed: int
) -> Batches[TokenBatch]:
    """Right-padded prompts with their replies, one to a row."""
    flat, sizes, weights = _flatten(examples)
    return Batches(pad_right(flat, length, pad), sizes, weights, rows, seed, count_cut(flat, length))


def packed_batches(
    examples: Sequence[Encoded] | Mixture[Encoded], rows: int, length: int, pad: int, seed: int, longest: int
) -> Batches[TokenBatch]:
    """Prompts with their replies, several to a row of `length` tokens; which ones share a row is the same in every epoch.

    An example of more than `longest` tokens is `cut`. Parts of a mixture are packed apart, so that their weights stay shares of rows.
    """
    parts = examples.parts if isinstance(examples, Mixture) else ((examples, 1.0),)
    records = [pack_right([cut(example, longest) for example in part], length, pad) for part, _ in parts]
    together = jax.tree.map(lambda *leaves: np.concatenate(leaves), *records)
    sizes, weights = [len(record.tokens) for record in records], [weight for _, weight in parts]
    flat = [example for part, _ in parts for example in part]
    return Batches(together, sizes, weights, rows, seed, count_cut(flat, longest))


def preference_batches(
    pairs: Sequence[EncodedPair] | Mixture[EncodedPair], rows: int, length: int, pad: int, seed: int
) -> Batches[PreferenceBatch]:
    """Right-padded pairs; a row of `chosen` and the same row of `rejected` have the same prompt tokens."""
    flat, sizes, weights = _flatten(pairs)
    return Batches(pad_pairs(flat, length, pad), sizes, weights, rows, seed, count_cut(flat, length))


def label_batches(
    texts: Sequence[EncodedLabel] | Mixture[EncodedLabel], rows: int, length: int, pad: int, seed: int
) -> Batches[LabelBatch]:
    """Right-padded texts with their labels."""
    flat, sizes, weights = _flatten(texts)
    cut = count_cut([example.text for example in flat], length)
    return Batches(pad_labels(flat, length, pad), sizes, weights, rows, seed, cut)


def rewarded_batches(
    replies: Sequence[EncodedReward] | Mixture[EncodedReward], rows: int, length: int, pad: int, seed: int
) -> Batches[RewardedBatch]:
    """Right-padded prompts with their replies and rewards."""
    flat, sizes, weights = _flatten(replies)
    cut = count_cut([example.text for example in flat], length)
    return Batches(pad_rewarded(flat, length, pad), sizes, weights, rows, seed, cut)


def prompt_batches(
    prompts: Sequence[Encoded] | Mixture[Encoded], rows: int, length: int, pad: int, seed: int
) -> Batches[PromptBatch]:
    """Left-padded prompts, without replies; `index` counts through the parts of a mixture one after the other."""
    flat, sizes, weights = _flatten(prompts)
    cut = count_cut([dataclasses.replace(prompt, reply=()) for prompt in flat], length)
    return Batches(pad_prompts(flat, length, pad), sizes, weights, rows, seed, cut)


def pad_pairs(pairs: Sequence[EncodedPair], length: int, pad: int) -> PreferenceBatch:
    """All pairs as one record of N rows."""
    short = [cut_pair(pair, length) for pair in pairs]
    return _preferences(
        pad_right([pair.chosen for pair in short], length, pad),
        pad_right([pair.rejected for pair in short], length, pad),
        np.array([pair.margin for pair in pairs], np.float32),
        np.array([pair.weight for pair in pairs], np.float32),
    )


def pad_labels(texts: Sequence[EncodedLabel], length: int, pad: int) -> LabelBatch:
    """All texts as one record of N rows."""
    label: Any = np.array([example.label for example in texts], np.float32)
    weight: Any = np.array([example.weight for example in texts], np.float32)
    return LabelBatch(text=pad_right([example.text for example in texts], length, pad), label=label, weight=weight)


def pad_rewarded(replies: Sequence[EncodedReward], length: int, pad: int) -> RewardedBatch:
    """All replies as one record of N rows."""
    reward: Any = np.array([example.reward for example in replies], np.float32)
    return RewardedBatch(text=pad_right([example.text for example in replies], length, pad), reward=reward)


def pad_prompts(prompts: Sequence[Encoded], length: int, pad: int) -> PromptBatch:
    """All prompts as one record of N rows."""
    index: Any = np.arange(len(prompts), dtype=np.int32)
    return PromptBatch(prompts=pad_left(prompts, length, pad), index=index)


def evaluation_batches(data: Data, rows: int) -> Iterator[Data]:
    """Every row of what `pad_right` or a function beside this one made, once, in order, `rows` at a time.

    The last batch is filled up with copies of the first row that do not count: nothing to learn, weight 0, or index -1.
    """
    _check_rows(rows)
    count = len(jax.tree.leaves(data)[0])
    for start in range(0, count, rows):
        places = np.arange(start, start + rows)
        yield _only(take_rows(data, np.where(places < count, places, 0)), places < count)


def take_rows(data: Data, rows: Any) -> Data:
    """The rows of every array of a record, in the order given."""
    return jax.tree.map(lambda leaf: leaf[rows], data)


def _only(data: Data, counts: np.ndarray) -> Data:
    """The record with the rows that do not count taken out of every mean."""
    if isinstance(data, TokenBatch):
        return data.replace(loss_mask=data.loss_mask & counts[:, None])  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(data, RewardedBatch):
        return data.replace(text=_only(data.text, counts))  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(data, PromptBatch):
        return data.replace(index=np.where(counts, data.index, -1))  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(data, LabelledReplies):
        return data.replace(labels=_only(data.labels, counts))  # pyright: ignore[reportAttributeAccessIssue]
    return data.replace(weight=data.weight * counts)  # pyright: ignore[reportAttributeAccessIssue]


def _flatten(examples: Sequence[Example] | Mixture[Example]) -> tuple[list[Example], list[int], list[float]]:
    """(all examples one part after the other, size of each part, weight of each part)."""
    parts = examples.parts if isinstance(examples, Mixture) else ((examples, 1.0),)
    flat = [example for part, _ in parts for example in part]
    return flat, [len(part) for part, _ in parts], [weight for _, weight in parts]


def _preferences(chosen: TokenBatch, rejected: TokenBatch, margin: Any, weight: Any) -> PreferenceBatch:
    return PreferenceBatch(chosen=chosen, rejected=rejected, margin=margin, weight=weight)


def _check_rows(rows: int) -> None:
    if rows < 1:
        raise ValueError(f"rows is {rows}; expected at least 1")
