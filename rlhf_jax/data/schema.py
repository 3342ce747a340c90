"""The records that data files, worlds and people turn into, before any token exists.

Everything a training stage reads is one of the records below; a reader makes them, an encoder in `data/tokens/encode.py` turns them into
token ids. Each knows where it came from and under which licence it may be used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

Role = Literal["system", "user", "assistant"]
Method = Literal["human", "crowd", "generated", "unknown"]
"""How texts came to be: written or judged by people who were chosen for it, by a crowd, or by a program such as a language model."""


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where a record came from: its source, the licence of that, and the place inside the source (file and line, or index)."""

    source: str
    licence: str
    place: str = ""
    method: Method = "unknown"
    annotator: str | None = None  # a pseudonym of who judged it
    record: str = dataclasses.field(default="", compare=False)  # the id it was read under, where it was changed since


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
class Conversation:
    """A dialogue of which every reply of the assistant is to be imitated; the last turn is one."""

    turns: tuple[Turn, ...]
    provenance: Provenance

    @property
    def prompt(self) -> Prompt:
        """What stands before the first reply."""
        first = next(place for place, turn in enumerate(self.turns) if turn.role == "assistant")
        return Prompt(self.turns[:first], self.provenance, key=dialogue_key(self.turns[:first]))

    def demonstrations(self) -> tuple[Demonstration, ...]:
        """Each reply with the turns before it, in order."""
        found = []
        for place, turn in enumerate(self.turns):
            if turn.role == "assistant":
                before = self.turns[:place]
                found.append(Demonstration(Prompt(before, self.provenance, key=dialogue_key(before)), turn.text))
        return tuple(found)


@dataclasses.dataclass(frozen=True)
class Document:
    """A text without a prompt, all of which is to be imitated."""

    text: str
    provenance: Provenance


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two replies to one prompt, and which one was preferred. `margin` is a stated strength, 0 where unknown."""

    prompt: Prompt
    chosen: str
    rejected: str
    margin: float = 0.0
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Several replies to one prompt, and the place of each, from 0 for the best; equal places are ties."""

    prompt: Prompt
    replies: tuple[str, ...]
    places: tuple[int, ...]

    def comparisons(self) -> tuple[Comparison, ...]:
        """Every pair of replies of which one stands higher; the weights of all pairs of a prompt sum to 1.

        Source: Ouyang et al. 2022 (arXiv:2203.02155), section 3.5, eq. 1, where the loss is averaged over the pairs of a prompt.
        """
        ranked = list(zip(self.places, self.replies, strict=True))
        pairs = [
            (first, second) for upper, first in ranked for lower, second in ranked if upper < lower and first != second
        ]
        return tuple(Comparison(self.prompt, first, second, weight=1 / len(pairs)) for first, second in pairs)


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


Record = (
    Prompt
    | Demonstration
    | Conversation
    | Document
    | Comparison
    | Ranking
    | Rated
    | Labelled
    | Classified
    | LabelledReply
)
AnyRecord = TypeVar("AnyRecord", bound=Record)


def provenance_of(record: Record) -> Provenance:
    """Where any record came from."""
    return record.provenance if hasattr(record, "provenance") else record.prompt.provenance  # pyright: ignore


def dialogue_key(turns: tuple[Turn, ...]) -> str:
    """What identifies a dialogue across data sets: its texts alone, so that one turn has the key of `user_prompt`."""
    return "\n\n".join(turn.text for turn in turns)


def user_prompt(text: str, provenance: Provenance, key: str = "") -> Prompt:
    """A prompt of one user turn."""
    return Prompt(turns=(Turn("user", text),), provenance=provenance, key=key or text)


Part = Literal["prompt", "reply", "judged", "text"]
"""What a text of a record is: asked or said before; a reply to imitate; a reply that somebody judged; a text without a prompt."""


class Piece(NamedTuple):
    """One text of a record, and what it is there."""

    part: Part
    text: str


def texts_of(record: Record) -> tuple[Piece, ...]:
    """Every text of any record, in order."""
    if isinstance(record, Prompt):
        return tuple(Piece("prompt", turn.text) for turn in record.turns)
    if isinstance(record, Conversation):
        return tuple(Piece("reply" if turn.role == "assistant" else "prompt", turn.text) for turn in record.turns)
    if isinstance(record, Document | Labelled | Classified):
        return (Piece("text", record.text),)
    if isinstance(record, Demonstration):
        return (*texts_of(record.prompt), Piece("reply", record.reply))
    if isinstance(record, Comparison):
        judged = (record.chosen, record.rejected)
    else:
        judged = record.replies if isinstance(record, Ranking) else (record.reply,)
    return (*texts_of(record.prompt), *(Piece("judged", text) for text in judged))


def with_texts(record: AnyRecord, change: Callable[[str], str]) -> AnyRecord:
    """The record with each of its texts changed; itself where that changes nothing.

    A key that was made of the texts of a prompt is made of the new ones; a key of its own stays.
    """
    new: dict[str, Any] = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if field.name == "prompt":
            new["prompt"] = with_texts(value, change)
        elif field.name == "turns":
            new["turns"] = tuple(dataclasses.replace(turn, text=change(turn.text)) for turn in value)
        elif field.name == "replies":
            new["replies"] = tuple(map(change, value))
        elif field.name in ("text", "reply", "chosen", "rejected"):
            new[field.name] = change(value)
    if isinstance(record, Prompt) and record.key == dialogue_key(record.turns):
        new["key"] = dialogue_key(new["turns"])
    changed = dataclasses.replace(record, **new)
    return record if changed == record else changed
