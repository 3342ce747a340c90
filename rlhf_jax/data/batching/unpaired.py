"""Single replies with a label instead of pairs, as KTO reads them: each with a reply to another prompt behind its own.

Replies to other prompts tell how far the policy as a whole is from its reference, whatever the labels say of a reply.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlhf_jax.data.batching.batches import Batches, Mixture, label_batches, pad_labels
from rlhf_jax.data.batching.padding import Cut, count_cut, cut_pair, pad_right
from rlhf_jax.data.tokens.encode import EncodedLabel, EncodedPair
from rlhf_jax.types import LabelBatch, LabelledReplies

STREAM = 0x4B54  # keeps these draws apart from those of the order of the examples


@dataclasses.dataclass(frozen=True)
class ReplyBatches:
    """`batches[step]` is the batch of that step, on any machine and after any restart, as of `Batches`.

    The reply behind another prompt is one of the same batch, each equally likely; where the batch has one prompt only, one of all.
    """

    labels: Batches[LabelBatch]
    examples: Sequence[EncodedLabel]
    prompts: np.ndarray  # number of each example's prompt
    length: int
    pad: int
    seed: int
    cut: Cut
    lengths: int = 1

    def __getitem__(self, step: int) -> LabelledReplies:
        return self.part(step)

    @property
    def size(self) -> int:
        """How many rows a batch has."""
        return self.labels.size

    def firsts(self, steps: int) -> list[int]:
        """Of so many steps the first of each length."""
        return self.labels.firsts(steps)

    def part(self, step: int, places: np.ndarray | None = None) -> LabelledReplies:
        """The rows at these places of the batch of a step."""
        rows, noise = self.labels.rows(step), np.random.default_rng((STREAM, self.seed, step))
        mine = self.prompts[rows]
        among = rows if (mine != mine[0]).any() else np.arange(len(self.prompts))
        others = among[draw_others(mine, self.prompts[among], noise)]
        if places is not None:
            rows, others = rows[places], others[places]
        return LabelledReplies(
            self.labels.part(step, places), behind(self.examples, rows, others, self.length, self.pad)
        )


def reply_batches(examples: Mixture, rows: int, length: int, pad: int, seed: int) -> ReplyBatches:
    """Right-padded replies with labels, from encoded pairs or labels; of a pair the chosen reply is desirable, the rejected one is not.

    Raises: ValueError where all replies are to one prompt.
    """
    given = [example for part, _ in examples.parts for example in part]
    prompts = numbered(given)
    single = Mixture(tuple((singles(part, length), weight) for part, weight in examples.parts))
    flat = [example for part, _ in single.parts for example in part]
    cut = count_cut([example if isinstance(example, EncodedPair) else example.text for example in given], length)
    return ReplyBatches(label_batches(single, rows, length, pad, seed), flat, prompts, length, pad, seed, cut)


def pad_replies(examples: Sequence[EncodedPair | EncodedLabel], length: int, pad: int, seed: int) -> LabelledReplies:
    """All replies as one record of N rows, or of 2 N for pairs; the replies behind other prompts are drawn once. Raises: as above."""
    prompts, single = numbered(examples), singles(examples, length)
    others = draw_others(prompts, prompts, np.random.default_rng((STREAM, seed)))
    places = np.arange(len(single))
    return LabelledReplies(pad_labels(single, length, pad), behind(single, places, others, length, pad))


def singles(examples: Sequence[EncodedPair | EncodedLabel], length: int) -> list[EncodedLabel]:
    """The replies one by one: of a pair first the chosen one (1), then the rejected one (0), cut to `length` tokens as `cut_pair` does."""
    found: list[EncodedLabel] = []
    for example in examples:
        if isinstance(example, EncodedPair):
            short = cut_pair(example, length)
            found += [EncodedLabel(short.chosen, 1, example.weight), EncodedLabel(short.rejected, 0, example.weight)]
        else:
            found.append(example)
    return found


def numbered(examples: Sequence[EncodedPair | EncodedLabel]) -> np.ndarray:
    """A number for the prompt of each of the `singles`, before it is cut. Raises: ValueError where there is one prompt only."""
    numbers: dict[tuple[int, ...], int] = {}
    found: list[int] = []
    for example in examples:
        pair = isinstance(example, EncodedPair)
        prompt = example.chosen.prompt if pair else example.text.prompt
        found += [numbers.setdefault(prompt, len(numbers))] * (2 if pair else 1)
    if len(numbers) < 2:
        raise ValueError(
            f"all {len(found)} labelled replies are to one prompt; KTO measures from replies to other prompts: give it two or more"
        )
    return np.array(found)


def draw_others(prompts: np.ndarray, among: np.ndarray, noise: np.random.Generator) -> np.ndarray:
    """For each of these prompts, by number, a place in `among` that has another one, each such place equally likely."""
    order = np.argsort(among, kind="stable")
    first, last = (np.searchsorted(among[order], prompts, side) for side in ("left", "right"))
    return order[(last + noise.integers(len(among) - (last - first))) % len(among)]


def behind(examples: Sequence[EncodedLabel], rows: np.ndarray, others: np.ndarray, length: int, pad: int) -> Any:
    """The prompts of `rows` with the replies of `others`, right-padded."""
    texts = [
        dataclasses.replace(examples[row].text, reply=examples[other].text.reply)
        for row, other in zip(rows, others, strict=True)
    ]
    return pad_right(texts, length, pad)
