"""The data card of a mixture: what is in it, where it came from, under which licences, and what was left out."""

from __future__ import annotations

import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from rlhf_jax.data.clean.language import language_of
from rlhf_jax.data.mixtures import Gathered
from rlhf_jax.data.privacy import find
from rlhf_jax.data.provenance import licence_ids
from rlhf_jax.data.schema import Comparison, Record, provenance_of, texts_of

SAMPLE = 500  # records of each source whose languages and personal data are looked at
NOT_INSTALLED = "not looked at: pip install 'rlhf_jax[data]'"
QUANTILES = {"median": 0.5, "95 %": 0.95, "longest": 1.0}


def card(name: str, gathered: Gathered) -> dict[str, Any]:
    """The card as objects, arrays, texts and numbers: of each source, and of cleaning, masking and agreement over all."""
    parts = zip(gathered.sources, gathered.records, gathered.rows, gathered.rejected, gathered.damage, strict=True)
    sources = [
        {
            "source": source,
            "rows": rows,
            "left out": dict(Counter(reason for _, reason in rejected)),
            "damaged": [str(error) for error in damage],
            **_described(records),
        }
        for source, records, rows, rejected, damage in parts
    ]
    every = [record for records in gathered.records for record in records]
    return {
        "mixture": name,
        "records": len(every),
        "sources": sources,
        "cleaning": gathered.report.as_json(),
        "masked": dict(gathered.masked),
        "agreement": agreement(every),
    }


def _described(records: Sequence[Record]) -> dict[str, Any]:
    sample = random.Random(0).sample(records, min(SAMPLE, len(records)))
    joined = ["\n".join(piece.text for piece in texts_of(record)) for record in sample]
    came = [provenance_of(record) for record in records]
    lengths = defaultdict(list)
    for record in records:
        for piece in texts_of(record):
            lengths["prompt" if piece.part == "prompt" else "reply or text"].append(len(piece.text))
    return {
        "records": len(records),
        "kinds": _counts(type(record).__name__ for record in records),
        "licences": _counts(where.licence for where in came),
        "licence names": sorted({name for text in {where.licence for where in came} for name in licence_ids(text)}),
        "collected": _counts(where.method for where in came),
        "annotators": len({where.annotator for where in came if where.annotator}),
        "looked at": len(sample),
        "languages": _counts(map(language_of, joined)) if find_spec("py3langid") else NOT_INSTALLED,
        "personal data": _counts(span.kind for text in joined for span in find(text))
        if find_spec("phonenumbers")
        else NOT_INSTALLED,
        "characters": {
            part: {what: int(np.quantile(found, at, method="higher")) for what, at in QUANTILES.items()}
            for part, found in lengths.items()
        },
    }


def agreement(records: Iterable[Record]) -> dict[str, Any] | None:
    """How often two people who compared the same replies preferred the same one; None where nothing was compared twice."""
    judged: dict[tuple, list[str]] = defaultdict(list)
    for record in records:
        if isinstance(record, Comparison) and record.prompt.provenance.annotator:
            judged[record.prompt.key, frozenset((record.chosen, record.rejected))].append(record.chosen)
    pairs = [one == other for said in judged.values() for one, other in itertools.combinations(said, 2)]
    return {"pairs of judgements": len(pairs), "agree": sum(pairs) / len(pairs)} if pairs else None


def markdown(card: dict[str, Any]) -> str:
    """The card as a page."""
    lines = [f"# Data of {card['mixture']}", "", f"{card['records']:,} records of {len(card['sources'])} sources.", ""]
    for source in card["sources"]:
        lines += [f"## `{source['source']}`", "", f"{source['records']:,} records of {source['rows']:,} rows."]
        for title in ("kinds", "licences", "collected"):
            lines.append(f"- {title}: {_told(source[title])}")
        if source["annotators"]:
            lines.append(f"- annotators: {source['annotators']}")
        for title in ("languages", "personal data"):
            lines.append(f"- {title}, of {source['looked at']:,} records: {_told(source[title])}")
        for part, quantiles in source["characters"].items():
            lines.append(f"- characters of a {part}: " + ", ".join(f"{what} {n:,}" for what, n in quantiles.items()))
        lines.append(f"- left out while reading: {_told(source['left out'])}")
        lines += [f"- damaged: {said}" for said in source["damaged"]]
        lines.append("")
    lines += ["## Cleaning", "", "| rule | records | changed | dropped |", "|---|---|---|---|"]
    for rule in card["cleaning"]["rules"]:
        lines.append(f"| {rule['name']} | {rule['records']:,} | {rule['changed']:,} | {rule['dropped']:,} |")
    lines += ["", f"Masked: {_told(card['masked'])}."]
    if card["agreement"] is not None:
        share, pairs = card["agreement"]["agree"], card["agreement"]["pairs of judgements"]
        lines.append(f"Agreement: of {pairs:,} pairs of judgements on the same replies, {share:.0%} agree.")
    return "\n".join(lines) + "\n"


def _counts(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())


def _told(counts: dict[str, int] | str) -> str:
    if isinstance(counts, str):
        return counts
    return ", ".join(f"{count:,} {name}" for name, count in counts.items()) or "none"
