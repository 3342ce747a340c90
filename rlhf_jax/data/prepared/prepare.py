"""A source prepared once: read, cleaned and written as a set, to be read by random access ever after.

It is done in pieces of so many rows, each sealed with its digest, so that what was killed goes on with the piece it was at; then TFDS
writes the whole set beside its place and moves it there. For what one machine cannot hold, `beam` does the same.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.config import Curation
from rlhf_jax.config.data import AS_IT_IS
from rlhf_jax.data.adapters import Rejected
from rlhf_jax.data.adapters.stored import from_row, to_row
from rlhf_jax.data.erasure.forgotten import read_forgotten
from rlhf_jax.data.mixtures import curate
from rlhf_jax.data.prepared.sets import Prepared, made_once, write_records
from rlhf_jax.data.readers import DataError
from rlhf_jax.data.readers.rows import refuse
from rlhf_jax.data.schema import Provenance, Record
from rlhf_jax.data.sources import parse_source, read_rows
from rlhf_jax.files import read_sealed, write_sealed

PIECE = 10_000  # rows
NOWHERE = Provenance("", "")


def prepare(
    spec: str,
    name: str,
    data_root: Path,
    into: Path,
    curation: Curation = AS_IT_IS,
    *,
    tell: Callable[[str, int], None] = lambda stage, done: None,
) -> Prepared:
    """Prepares a source as the set `name` below `into`, or goes on with it; where it is there already, that is all.

    `tell` is called with a stage and how far it is. A set that was begun with another source or `curation` is begun anew.

    Raises: what reading the source and `curate` raise; ValueError where the set is there and of another source, or another process
    prepares it.
    """

    def make(work: Path, written: Path) -> dict[str, Any]:
        pieces = _read_pieces(spec, data_root, work, tell)
        records = [from_row(row, NOWHERE) for piece in pieces for row in piece["records"]]
        left_out = Counter(reason for piece in pieces for _, reason in piece["rejected"])
        gone = read_forgotten()
        if any(map(gone.has, records)):
            left_out["forgotten"] = sum(map(gone.has, records))
            records = [record for record in records if not gone.has(record)]
        tell("clean", len(records))
        cleaned, _ = curate(records, curation, data_root)
        left_out.update(cleaned.report.left_out())
        if not cleaned.records:
            raise nothing_left(spec, left_out)
        return {
            **write_records(cleaned.records, name, written, lambda done: tell("write", done)),
            "rows": sum(piece["rows"] for piece in pieces),
            "left_out": dict(left_out),
            "damage": [said for piece in pieces for said in piece["damage"]],
        }

    return made_once(spec, name, data_root, into, repr(curation), make)


def nothing_left(spec: str, left_out: Mapping[str, int]) -> ValueError:
    """What to raise where no record of a source is kept."""
    return ValueError(f"source {spec!r} leaves no record to prepare: {dict(left_out)}")


def _read_pieces(spec: str, data_root: Path, work: Path, tell: Callable[[str, int], None]) -> list[dict[str, Any]]:
    """The pieces of a source, those that are there and whole read again, the others made."""
    pieces: list[dict[str, Any]] = []
    while (path := _piece_path(work, len(pieces))).is_file():
        try:
            pieces.append(json.loads(read_sealed(path)))
        except ValueError:  # damaged, or killed between the digest and the piece
            break
    if pieces and pieces[-1]["rows"] < PIECE:
        return pieces
    source, damage = parse_source(spec), []
    stream = read_rows(source, data_root, damage.append if source.salvages else refuse)
    for _ in range(len(pieces) * PIECE):
        next(stream)
    damage.clear()
    while not pieces or pieces[-1]["rows"] == PIECE:
        pieces.append(_make_piece(stream, damage))
        write_sealed(_piece_path(work, len(pieces) - 1), json.dumps(pieces[-1]).encode())
        tell("read", sum(piece["rows"] for piece in pieces))
    return pieces


def _make_piece(stream: Iterator[Sequence[Record | Rejected]], damage: list[DataError]) -> dict[str, Any]:
    piece: dict[str, Any] = {"rows": 0, "records": [], "rejected": []}
    for found in stream:
        piece["rows"] += 1
        for one in found:
            if isinstance(one, Rejected):
                piece["rejected"].append([one.place, one.reason])
            else:
                piece["records"].append(to_row(one))
        if piece["rows"] == PIECE:
            break
    piece["damage"] = [str(error) for error in damage]
    damage.clear()
    return piece


def _piece_path(work: Path, number: int) -> Path:
    return work / f"{PIECE}-{number:06d}.json"
