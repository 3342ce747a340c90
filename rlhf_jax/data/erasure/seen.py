"""Which records a stage of a run has learned from, and from which step on: what the right to erasure asks of checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from rlhf_jax.data.adapters.stored import record_id
from rlhf_jax.data.batching.batches import Batches
from rlhf_jax.data.schema import Record, provenance_of
from rlhf_jax.files import replacing

NEVER = -1
CHECKPOINTS, FILES = "checkpoints", "data"
STAGES = ("init", "classify", "sft", "reward", "value", "preference", "ilql", "ppo")
"""Stages in their order: each may go on from those before it."""


@dataclasses.dataclass(frozen=True)
class Seen:
    """The records of a stage by their numbers, the step at which each was first in a batch, and who annotated it."""

    ids: np.ndarray  # as whole numbers of 64 bits
    first: np.ndarray  # NEVER for those that no step so far as planned has
    annotators: np.ndarray  # names, empty where unknown

    def save(self, path: Path) -> None:
        """Writes the file whole or not at all."""
        with replacing(path) as file:
            np.savez_compressed(file, ids=self.ids, first=self.first, annotators=self.annotators)

    @classmethod
    def load(cls, path: Path) -> Seen:
        with np.load(path) as kept:
            return cls(kept["ids"], kept["first"], kept["annotators"])

    def first_step(self, ids: Sequence[str], annotators: Sequence[str]) -> int | None:
        """The first step that has one of these records, or one by one of these annotators; None where no step has."""
        wanted = np.isin(self.ids, np.array([int(name, 16) for name in ids], np.uint64)) | np.isin(
            self.annotators, list(annotators)
        )
        steps = self.first[wanted & (self.first != NEVER)]
        return int(steps.min()) if len(steps) else None


def seen_from_the_start(records: Sequence[Record]) -> Seen:
    """The records as if the first step had all of them: more than a checkpoint may have seen, never less."""
    ids = np.array([int(record_id(record), 16) for record in records], np.uint64)
    annotators = np.array([provenance_of(record).annotator or "" for record in records])
    return Seen(ids, np.zeros(len(records), np.int64), annotators)


def seen_by(records: Sequence[Record], counts: Sequence[int], batches: Batches, steps: int) -> Seen:
    """What `steps` steps of these batches see of the records, of which each gave so many examples."""
    owner = np.repeat(np.arange(len(records)), counts)
    first = np.full(len(records), NEVER, np.int64)
    waiting = len(set(owner.tolist()))
    for step in range(steps):
        for record in set(owner[batches.examples(step)].tolist()):
            if first[record] == NEVER:
                first[record] = step
                waiting -= 1
        if not waiting:
            break
    return dataclasses.replace(seen_from_the_start(records), first=first)


def checkpoints_that_saw(runs: Path, ids: Sequence[str], annotators: Sequence[str]) -> Iterator[tuple[Path, str]]:
    """(checkpoint, why) of every checkpoint below `runs` that has learned from one of the records.

    Those of a stage behind their first step, and all of later stages of the same run, which go on from it.
    """
    for path in sorted(runs.rglob(f"{FILES}/seen_*.npz")):
        stage, run = path.stem.removeprefix("seen_"), path.parents[1]
        first = Seen.load(path).first_step(ids, annotators)
        if first is None:
            continue
        later = STAGES[STAGES.index(stage) + 1 :]
        for folder in sorted((run / CHECKPOINTS).glob("*")):
            for checkpoint in sorted(folder.glob("*"), key=lambda step: (len(step.name), step.name)):
                if not checkpoint.name.isdecimal():
                    continue
                if folder.name == stage and int(checkpoint.name) > first:
                    yield checkpoint, f"trained on it from step {first + 1} on"
                elif folder.name in later:
                    yield checkpoint, f"of a run whose stage {stage} was trained on it"
