"""The records that data files, worlds and people turn into, before any token exists.

Everything a training stage reads is one of the records below; a reader makes them, an encoder in `data/encode.py` turns them into
token ids. Each knows where it came from and under which licence it may be used.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

Role = Literal["system", "user", "assistant"]


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where a record came from: a source name, its licence, and the place inside the source (file and line, or index)."""

    source: str
    licence: str
    place: str = ""


@dataclasses.dataclass(frozen=True)
class Turn:
    """One message of a dialogue."""

    role: Role
    text: str


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What a policy is asked: a dialogue that ends before the reply. `key` identifies it for splitting and for gold scoring."""

    turns: tuple[Turn, ...]
    provenance: Provenance
    key: str = ""


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """A prompt with the reply to imitate."""

    prompt: Prompt
    reply: str


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two replies to one prompt, and which one was preferred. `margin` is a stated strength, 0 where unknown."""

    prompt: Prompt
    chosen: str
    rejected: str
    margin: float = 0.0
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Rated:
    """A reply to a prompt and what it was worth."""

    prompt: Prompt
    reply: str
    reward: float


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A text with a class label (0 or 1), e.g. the sentiment of a review."""

    text: str
    label: int
    provenance: Provenance


@dataclasses.dataclass(frozen=True)
class Classified:
    """A text with the name of the class that it is of, e.g. the field that a question is from."""

    text: str
    label: str
    provenance: Provenance


@dataclasses.dataclass(frozen=True)
class LabelledReply:
    """One reply to a prompt, and whether it was wanted."""

    prompt: Prompt
    reply: str
    desirable: bool


Record = Prompt | Demonstration | Comparison | Rated | Labelled | Classified | LabelledReply


def user_prompt(text: str, provenance: Provenance, key: str = "") -> Prompt:
    """A prompt of one user turn."""
    return Prompt(turns=(Turn("user", text),), provenance=provenance, key=key or text)
