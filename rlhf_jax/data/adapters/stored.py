"""Records as rows of one form, whatever their kind, so that prepared sets can hold any of them and be read by other programs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from rlhf_jax.data.adapters.registry import adapter
from rlhf_jax.data.readers import DataError, Row
from rlhf_jax.data.schema import (
    AnyRecord,
    Classified,
    Comparison,
    Conversation,
    Demonstration,
    Document,
    Labelled,
    LabelledReply,
    Prompt,
    Provenance,
    Ranking,
    Rated,
    Record,
    Turn,
    provenance_of,
)

FIELDS = ("kind", "id", "turns", "replies")
KINDS: dict[str, type] = {
    kind.__name__.lower(): kind
    for kind in (
        *(Prompt, Demonstration, Conversation, Document, Comparison, Ranking),
        *(Rated, Labelled, Classified, LabelledReply),
    )
}


def record_id(record: Record) -> str:
    """16 hexadecimal digits that a record has by its content, wherever it lies: what `forget` is told.

    Two answers of one person to one question are one record; those of two people are two. What cleaning, masking or wording has made of a
    record keeps its id.
    """
    if kept := provenance_of(record).record:
        return kept
    row = _content(record)
    told = json.dumps([row, provenance_of(record).annotator], ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def traced(record: AnyRecord, origin: Record) -> AnyRecord:
    """The record, which was made of another one, under the id of that."""
    where = dataclasses.replace(provenance_of(record), record=record_id(origin))
    if hasattr(record, "provenance"):
        return dataclasses.replace(record, provenance=where)
    return dataclasses.replace(record, prompt=dataclasses.replace(record.prompt, provenance=where))  # pyright: ignore


def to_row(record: Record) -> Row:
    """kind, id, key, turns, replies, places, label, value, weight, and where it came from: source, licence, place, method, annotator.

    `turns` are those of the prompt or the conversation; `replies` the reply, the chosen and the rejected one, all of a ranking, or the
    text; `value` is the margin or the reward.
    """
    where = provenance_of(record)
    came = {"source": where.source, "licence": where.licence, "place": where.place, "method": where.method}
    return {"id": record_id(record), **_content(record), **came, "annotator": where.annotator or ""}


def _content(record: Record) -> Row:
    row: dict[str, Any] = {
        "kind": type(record).__name__.lower(),
        **{"key": "", "turns": [], "replies": [], "places": [], "label": "", "value": 0.0, "weight": 1.0},
    }
    prompt = record if isinstance(record, Prompt) else getattr(record, "prompt", None)
    if prompt is not None:
        row |= {"key": prompt.key, "turns": prompt.turns}
    if isinstance(record, Conversation):
        row |= {"turns": record.turns}
    if isinstance(record, Demonstration | Rated | LabelledReply):
        row |= {"replies": [record.reply]}
    if isinstance(record, Document | Labelled | Classified):
        row |= {"replies": [record.text]}
    if isinstance(record, Labelled | Classified):
        row |= {"label": str(record.label)}
    if isinstance(record, LabelledReply):
        row |= {"label": "desirable" if record.desirable else "undesirable"}
    if isinstance(record, Comparison):
        row |= {"replies": [record.chosen, record.rejected], "value": record.margin, "weight": record.weight}
    if isinstance(record, Ranking):
        row |= {"replies": list(record.replies), "places": list(record.places)}
    if isinstance(record, Rated):
        row |= {"value": record.reward}
    return row | {"turns": [{"role": turn.role, "text": turn.text} for turn in row["turns"]]}


@adapter("records", *FIELDS)
def from_row(row: Row, provenance: Provenance) -> Record:
    """What `to_row` wrote; a set that was prepared keeps the provenance that its records had."""
    try:
        where = Provenance(
            row["source"], row["licence"], row["place"], row["method"], row["annotator"] or None, row["id"]
        )
        turns = tuple(Turn(turn["role"], turn["text"]) for turn in row["turns"])
        prompt, replies, label = Prompt(turns, where, row["key"]), list(row["replies"]), row["label"]
        value, kind = float(row["value"]), row["kind"]
        makers = {
            "prompt": lambda: prompt,
            "demonstration": lambda: Demonstration(prompt, replies[0]),
            "conversation": lambda: Conversation(turns, where),
            "document": lambda: Document(replies[0], where),
            "comparison": lambda: Comparison(prompt, replies[0], replies[1], value, float(row["weight"])),
            "ranking": lambda: Ranking(prompt, tuple(replies), tuple(int(place) for place in row["places"])),
            "rated": lambda: Rated(prompt, replies[0], value),
            "labelled": lambda: Labelled(replies[0], int(label), where),
            "classified": lambda: Classified(replies[0], label, where),
            "labelledreply": lambda: LabelledReply(prompt, replies[0], label == "desirable"),
        }
        return makers[kind]()
    except (KeyError, TypeError, IndexError, ValueError) as error:
        fields = {name for name in FIELDS if name not in row}
        reason = f"no field {min(fields)!r}" if fields else f"not a stored record ({type(error).__name__}: {error})"
        raise DataError(
            provenance.place, f"{reason}; the row has {', '.join(map(repr, row))}", "prepare the set again"
        ) from error
