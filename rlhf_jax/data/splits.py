"""The split into training and held-out records, by prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TypeVar

from rlhf_jax.data.schema import Classified, Document, Labelled, Prompt, Record, dialogue_key

AnyRecord = TypeVar("AnyRecord", bound=Record)


def split_by_prompt(
    records: Iterable[AnyRecord], held_out: float, seed: int
) -> tuple[tuple[AnyRecord, ...], tuple[AnyRecord, ...]]:
    """(training, held-out) records; `held_out` is the expected fraction of prompts on the second side.

    The side is a hash of seed and prompt, so all records of one prompt fall together, and neither the order of the
    records nor which others are there moves any of them.
    """
    if not 0.0 <= held_out < 1.0:
        raise ValueError(f"held_out is {held_out}; expected a fraction from 0 up to, not including, 1")
    train: list[AnyRecord] = []
    held: list[AnyRecord] = []
    for record in records:
        digest = hashlib.sha256(f"{seed}\n{prompt_key(record)}".encode()).digest()
        side = held if int.from_bytes(digest[:8], "big") < held_out * 2**64 else train
        side.append(record)
    return tuple(train), tuple(held)


def prompt_key(record: Record) -> str:
    """What identifies the prompt of a record: its key, else the text of its turns; of a text without a prompt, the text."""
    if isinstance(record, Labelled | Classified | Document):
        return record.text
    prompt = record if isinstance(record, Prompt) else record.prompt
    return prompt.key or dialogue_key(prompt.turns)
