"""The records of several sources as one mixture: licences checked, personal data masked, cleaned together, and a card of all that."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rlhf_jax.config import Curation
from rlhf_jax.data.adapters import Rejected
from rlhf_jax.data.adapters.stored import traced
from rlhf_jax.data.clean import Cleaned, CleanOptions, Report, clean
from rlhf_jax.data.privacy import mask
from rlhf_jax.data.provenance import check_licences
from rlhf_jax.data.readers import DataError
from rlhf_jax.data.schema import Record, provenance_of, texts_of, with_texts
from rlhf_jax.data.sources import Loaded, load_source


@dataclasses.dataclass(frozen=True)
class Gathered:
    """What a mixture is made of: the records of each source that are left, and what became of the others."""

    sources: tuple[str, ...]
    records: tuple[tuple[Record, ...], ...]  # of each source
    rows: tuple[int, ...]  # read, of each source
    rejected: tuple[tuple[Rejected, ...], ...]
    damage: tuple[tuple[DataError, ...], ...]
    report: Report  # of cleaning
    masked: Counter[str]  # spans of personal data, by kind


def gather(sources: Sequence[str], data_root: Path, curation: Curation) -> Gathered:
    """The records of the sources, in order.

    Duplicates are told across sources: the first one that has a record keeps it. Raises: what reading a source raises; ValueError for a
    licence that is not allowed; KeyError for an unknown rule or kind of personal data.
    """
    loaded = [load_source(source, data_root) for source in sources]
    everything = [record for part in loaded for record in part.records]
    cleaned, masked = curate(everything, curation, data_root)
    owner = [number for number, part in enumerate(loaded) for _ in part.records]
    parts: list[list[Record]] = [[] for _ in sources]
    for record, number in zip(cleaned.records, cleaned.numbers, strict=True):
        parts[owner[number]].append(record)
    return Gathered(
        tuple(sources),
        tuple(map(tuple, parts)),
        tuple(part.rows for part in loaded),
        tuple(part.rejected for part in loaded),
        tuple(part.damage for part in loaded),
        cleaned.report,
        masked,
    )


def curate(records: Sequence[Record], curation: Curation, data_root: Path) -> tuple[Cleaned, Counter[str]]:
    """The records masked and cleaned, and how many spans of personal data were masked, by kind. Raises: as `gather`."""
    given, masked = allowed_and_masked(records, curation)
    cleaned = clean(given, curation.clean, clean_options(curation, data_root))
    kept = zip(cleaned.records, (records[number] for number in cleaned.numbers), strict=True)
    # A record that was changed is known by the id that its file gives it.
    known = tuple(after if after is before else traced(after, before) for after, before in kept)
    return dataclasses.replace(cleaned, records=known), masked


def allowed_and_masked(records: Sequence[Record], curation: Curation) -> tuple[Sequence[Record], Counter[str]]:
    """The records before they are cleaned, and how many spans of personal data were masked. Raises: ValueError for their licences."""
    if curation.licences is not None:
        origins = map(provenance_of, records)
        check_licences(sorted({(origin.source, origin.licence) for origin in origins}), curation.licences)
    masked: Counter[str] = Counter()
    if curation.mask:
        records = [with_texts(record, partial(_masked, kinds=curation.mask, counted=masked)) for record in records]
    return records, masked


def clean_options(curation: Curation, data_root: Path) -> CleanOptions:
    """What the rules are told. Raises: what reading the sources of `unseen` raises."""
    unseen = tuple((source, _texts(load_source(source, data_root))) for source in curation.unseen)
    return CleanOptions(languages=curation.languages, evaluation=unseen)


def _masked(text: str, kinds: Sequence[str], counted: Counter[str]) -> str:
    hidden, spans = mask(text, kinds)
    counted.update(span.kind for span in spans)
    return hidden


def _texts(loaded: Loaded) -> tuple[str, ...]:
    return tuple(piece.text for record in loaded.records for piece in texts_of(record))
