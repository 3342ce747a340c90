"""The rule about records that are there twice."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Sequence
from functools import partial

from rlhf_jax.data.clean.options import CleanOptions
from rlhf_jax.data.clean.registry import Dropped, Noted, Verdict, rule
from rlhf_jax.data.schema import (
    Classified,
    Comparison,
    Labelled,
    LabelledReply,
    Ranking,
    Rated,
    Record,
    provenance_of,
    texts_of,
)


def judgement(record: Record) -> Hashable:
    """What a record says of its texts, and who says it: records that differ in it are no duplicates, whatever their texts are."""
    kind = type(record).__name__
    if isinstance(record, Rated):
        said: Hashable = float(record.reward) + 0.0  # -0.0 is 0.0
    elif isinstance(record, Ranking):
        said = tuple(map(int, record.places))
    elif isinstance(record, Labelled | Classified):
        said = record.label
    else:
        said = record.desirable if isinstance(record, LabelledReply) else None
    return kind, said, provenance_of(record).annotator or None


def parts(record: Record) -> tuple[str, ...]:
    """The prompt of a record, what is imitated in it, and each judged reply: the texts that duplicates have in common, each with each."""
    pieces = texts_of(record)
    joined = ("\n".join(text for part, text in pieces if part == name) for name in ("prompt", "reply", "text"))
    return (*joined, *(text for part, text in pieces if part == "judged"))


def same(text: str) -> str:
    """What two texts have in common that count as the same: all but case and blanks."""
    return " ".join(text.casefold().split())


def fingerprint(record: Record) -> bytes:
    """32 bytes that exact duplicates have in common, and no other records."""
    told = repr((judgement(record), tuple(map(same, parts(record)))))
    return hashlib.sha256(told.encode("utf-8", "surrogatepass")).digest()


def _fingerprints(records: Sequence[Record], options: CleanOptions) -> Iterator[tuple[bytes, ...]]:
    return ((fingerprint(record),) for record in records)


@partial(rule, keys=_fingerprints)
def exact_duplicates(records: Sequence[Record], options: CleanOptions) -> Iterator[Verdict]:
    """Drops a record whose texts are those of an earlier one but for case and blanks; the same prompt with another reply is kept."""
    seen: dict[bytes, int] = {}
    prompts: set[str] = set()
    texts: set[Hashable] = set()
    for place, record in enumerate(records):
        all_parts = parts(record)
        if isinstance(record, Comparison | Ranking) and len(set(texts_of(record)[len(record.prompt.turns) :])) < 2:
            yield Dropped("its replies do not differ", all_parts[-1])
            continue
        what = tuple(map(same, all_parts))
        first = seen.setdefault(fingerprint(record), place)
        if first != place:
            yield Dropped("the same texts as an earlier record", all_parts[1] or all_parts[-1], kept=first)
        elif (type(record), what) in texts:
            yield Noted(record, "the same texts as an earlier record, judged otherwise or by another")
        elif what[0] and what[0] in prompts:
            yield Noted(record, "the prompt of an earlier record, with another reply")
        else:
            yield record
        prompts.add(what[0])
        texts.add((type(record), what))
