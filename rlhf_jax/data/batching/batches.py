"""Batches by step: which examples a step sees is a pure function of (seed, step): the step is the data position.

A batch is made from its examples when it is asked for: memory is 4 bytes per token of all texts.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import operator
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import jax
import numpy as np
from jaxtyping import Array, Int

from rlhf_jax.data.batching.order import Order
from rlhf_jax.data.batching.packing import Packing, pack, packed_rows
from rlhf_jax.data.batching.padding import Cut, count_cut, cut, cut_pair, pad_left, pad_right
from rlhf_jax.data.batching.table import Chosen, Joined, TokenTable
from rlhf_jax.data.tokens.encode import Encoded, EncodedLabel, EncodedPair, EncodedReward
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
    """`batches[step]` is the batch of that step, on any machine and after any restart; steps have no end. Leaves are numpy arrays.

    Batches are made when they are asked for, and parts of them alone: `places` are rows of a batch, counted from 0 up to `size`.
    """

    def __init__(
        self,
        make: Callable[[np.ndarray], Data],
        order: Order,
        cut: Cut,
        packed: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self._make, self._order, self.cut = make, order, cut
        self._packed = packed  # the examples of each row

    def __getitem__(self, step: int) -> Data:
        return self.part(step)

    def part(self, step: int, places: np.ndarray | None = None) -> Data:
        """The rows at these places of the batch of a step: what one of several processes makes of it."""
        return self._make(self.rows(step, places))

    @property
    def size(self) -> int:
        """How many rows a batch has."""
        return self._order.size

    @property
    def lengths(self) -> int:
        """How many lengths the batches have."""
        return 1

    def firsts(self, steps: int) -> list[int]:
        """Of so many steps the first of each length."""
        return [0]

    def rows(self, step: int, places: np.ndarray | None = None) -> np.ndarray:
        """Which examples, or packed rows of them, the rows of a step are, counted through the parts one after the other."""
        return self._order.at(step, places)

    def examples(self, step: int) -> np.ndarray:
        """Which examples a step sees, counted through the parts one after the other."""
        rows = self.rows(step)
        return rows if self._packed is None else np.concatenate([self._packed[int(row)] for row in rows])


class BucketBatches(Batches[Data]):
    """Batches of several lengths: each holds examples of one bucket alone and is as long as that, so that less of it is padding.

    Over many steps every part has its share of the rows, and every example its turn once an epoch of its bucket. `buckets` are the batches
    of each, the numbers of its examples, and its share of the steps.
    """

    def __init__(self, buckets: Sequence[tuple[Batches[Data], np.ndarray, float]], cut: Cut) -> None:
        import grain

        self._buckets, self.cut = [batches for batches, _, _ in buckets], cut
        self._numbers, self._packed = [numbers for _, numbers, _ in buckets], None
        counted: Any = [grain.MapDataset.source(_Numbers(bucket)) for bucket in range(len(buckets))]
        self._which: Any = grain.MapDataset.mix(counted, weights=[share for _, _, share in buckets])

    def part(self, step: int, places: np.ndarray | None = None) -> Data:
        bucket, number = self._which[operator.index(step)]
        return self._buckets[bucket].part(number, places)

    @property
    def size(self) -> int:
        return self._buckets[0].size

    @property
    def lengths(self) -> int:
        return len(self._buckets)

    def firsts(self, steps: int) -> list[int]:
        found: dict[int, int] = {}
        for step in range(steps):
            found.setdefault(self._which[step][0], step)
            if len(found) == self.lengths:
                break
        return list(found.values())

    def rows(self, step: int, places: np.ndarray | None = None) -> np.ndarray:
        bucket, number = self._which[operator.index(step)]
        return self._numbers[bucket][self._buckets[bucket].rows(number, places)]


class _Numbers:
    """(bucket, 0), (bucket, 1), ... without end."""

    def __init__(self, bucket: int) -> None:
        self._bucket = bucket

    def __len__(self) -> int:
        return sys.maxsize // 2

    def __getitem__(self, index: int) -> tuple[int, int]:
        return self._bucket, index


def token_batches(
    examples: Sequence[Encoded] | Mixture[Encoded],
    rows: int,
    length: int,
    pad: int,
    seed: int,
    *,
    buckets: Sequence[int] = (),
) -> Batches[TokenBatch]:
    """Right-padded prompts with their replies, one to a row; with `buckets`, batches may have these lengths too."""
    parts = [(TokenTable(part), weight) for part, weight in _parts(examples)]
    sizes = [table.sizes for table, _ in parts]
    counted = count_cut((example for table, _ in parts for example in table), length)
    return _stream(parts, sizes, partial(pad_right, pad=pad), rows, length, seed, buckets, counted)


def packed_batches(
    examples: Sequence[Encoded] | Mixture[Encoded],
    rows: int,
    length: int,
    pad: int,
    seed: int,
    longest: int,
    *,
    how: Packing = "first_fit",
) -> Batches[TokenBatch]:
    """Prompts with their replies, several to a row of `length` tokens; which ones share a row is the same in every epoch.

    An example of more than `longest` tokens is `cut`. Parts of a mixture are packed apart, so that their weights stay shares of rows.
    """
    parts = _parts(examples)
    counted = count_cut((example for part, _ in parts for example in part), longest)
    tables = [TokenTable(cut(example, longest) for example in part) for part, _ in parts]
    plans = [pack(table.sizes.tolist(), length, how) for table in tables]
    order = Order([len(plan) for plan in plans], [weight for _, weight in parts], rows, seed)
    flat, starts = Joined(tables), np.cumsum([0, *(len(table) for table in tables)])
    together = [(np.array(row) + start).tolist() for plan, start in zip(plans, starts, strict=False) for row in plan]
    make = partial(_packed, examples=flat, together=together, length=length, pad=pad)
    return Batches(make, order, counted, together)


def preference_batches(
    pairs: Sequence[EncodedPair] | Mixture[EncodedPair],
    rows: int,
    length: int,
    pad: int,
    seed: int,
    *,
    buckets: Sequence[int] = (),
) -> Batches[PreferenceBatch]:
    """Right-padded pairs; a row of `chosen` and the same row of `rejected` have the same prompt tokens."""
    parts = _parts(pairs)
    sizes = [np.array([max(pair.chosen.size, pair.rejected.size) for pair in part]) for part, _ in parts]
    counted = count_cut((pair for part, _ in parts for pair in part), length)
    return _stream(parts, sizes, partial(pad_pairs, pad=pad), rows, length, seed, buckets, counted)


def label_batches(
    texts: Sequence[EncodedLabel] | Mixture[EncodedLabel],
    rows: int,
    length: int,
    pad: int,
    seed: int,
) -> Batches[LabelBatch]:
    """Right-padded texts with their labels."""
    return _texts(texts, partial(pad_labels, pad=pad), rows, length, seed)


def rewarded_batches(
    replies: Sequence[EncodedReward] | Mixture[EncodedReward],
    rows: int,
    length: int,
    pad: int,
    seed: int,
) -> Batches[RewardedBatch]:
    """Right-padded prompts with their replies and rewards."""
    return _texts(replies, partial(pad_rewarded, pad=pad), rows, length, seed)


def prompt_batches(
    prompts: Sequence[Encoded] | Mixture[Encoded], rows: int, length: int, pad: int, seed: int
) -> Batches[PromptBatch]:
    """Left-padded prompts, without replies; `index` counts through the parts of a mixture one after the other."""
    parts = _parts(prompts)
    tables = [TokenTable(dataclasses.replace(prompt, reply=(), given=()) for prompt in part) for part, _ in parts]
    flat = Joined(tables)

    def make(numbers: np.ndarray) -> PromptBatch:
        index: Any = numbers.astype(np.int32)
        return PromptBatch(prompts=pad_left([flat[int(n)] for n in numbers], length, pad), index=index)

    order = Order([len(table) for table in tables], [weight for _, weight in parts], rows, seed)
    return Batches(make, order, count_cut(flat, length))


def _texts(examples, make, rows: int, length: int, seed: int) -> Batches:
    """Batches of examples that each have a `text`."""
    parts = _parts(examples)
    sizes = [np.array([example.text.size for example in part]) for part, _ in parts]
    counted = count_cut((example.text for part, _ in parts for example in part), length)
    return _stream(parts, sizes, make, rows, length, seed, (), counted)


def _stream(
    parts: Sequence[tuple[Sequence, float]],
    sizes: Sequence[np.ndarray],
    make: Callable,
    rows: int,
    length: int,
    seed: int,
    buckets: Sequence[int],
    counted: Cut,
) -> Batches:
    """Batches of the examples, whose sizes in tokens are given, as `make(examples, length)` pads them; in buckets, if there are any."""

    def batches(of: Sequence[tuple[Sequence, float]], long: int) -> Batches:
        flat = Joined([part for part, _ in of])
        order = Order([len(part) for part, _ in of], [weight for _, weight in of], rows, seed)
        return Batches(lambda numbers: make([flat[int(n)] for n in numbers], length=long), order, counted)

    if not buckets:
        return batches(parts, length)
    limits, starts = sorted({*(limit for limit in buckets if limit < length), length}), np.cumsum([0, *map(len, sizes)])
    found = []
    for low, high in itertools.pairwise([0, *limits]):
        of, numbers = [], []
        for (part, weight), tokens, start in zip(parts, sizes, starts, strict=False):
            short = np.minimum(tokens, length)
            places = np.flatnonzero((short > low) & (short <= high))
            if len(places):
                # A part has its share of all rows: in this bucket, that of its examples which are here.
                of.append((Chosen(part, places), weight * len(places) / len(part)))
                numbers.append(start + places)
        if of:
            found.append((batches(of, high), np.concatenate(numbers), sum(share for _, share in of)))
    return BucketBatches(found, counted)


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


def columns_for(prompts: Iterable[Encoded], lengths: Sequence[int]) -> int:
    """The least of these lengths, shortest first, that holds every prompt; else the last."""
    longest = max(len(prompt.prompt) for prompt in prompts)
    return next((length for length in lengths if length >= longest), lengths[-1])


def last_columns(prompts: TokenBatch, length: int) -> TokenBatch:
    """The last so many columns: of left-padded prompts that are no longer than that, all but padding."""
    return jax.tree.map(lambda x: x[:, -length:], prompts)


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


def _packed(numbers: np.ndarray, *, examples: Sequence[Encoded], together: list, length: int, pad: int) -> TokenBatch:
    return packed_rows(examples, [together[int(number)] for number in numbers], length, pad)


def _parts(examples: Sequence[Example] | Mixture[Example]) -> Sequence[tuple[Sequence[Example], float]]:
    parts = examples.parts if isinstance(examples, Mixture) else ((examples, 1.0),)
    if not any(len(part) for part, _ in parts):
        raise ValueError("no examples to make a batch of; expected at least one")
    return parts


def _preferences(chosen: TokenBatch, rejected: TokenBatch, margin: Any, weight: Any) -> PreferenceBatch:
    return PreferenceBatch(chosen=chosen, rejected=rejected, margin=margin, weight=weight)


def _check_rows(rows: int) -> None:
    if rows < 1:
        raise ValueError(f"rows is {rows}; expected at least 1")
