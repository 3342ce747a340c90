"""A source prepared once: read, cleaned and written as a TFDS data set of ArrayRecord files, to be read by random access ever after.

It is done in pieces of so many rows, each sealed with its digest, so that what was killed goes on with the piece it was at; then TFDS
writes the whole set beside its place and moves it there. The digest of a set is that of its records: the bytes of ArrayRecord files differ
from one writing to the next, as protocol buffers have no order of their fields.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.data.adapters import Rejected
from rlhf_jax.data.adapters.stored import from_row, to_row
from rlhf_jax.data.erasure.forgotten import read_forgotten
from rlhf_jax.data.readers import DataError, Row
from rlhf_jax.data.readers.rows import refuse
from rlhf_jax.data.schema import Provenance, Record
from rlhf_jax.data.sources import find_files, parse_source, read_rows
from rlhf_jax.files import SUMS, check_sums, exclusive, read_sealed, write_atomic, write_sealed, write_sums

VERSION = "1.0.0"
ABOUT = "prepared.json"
PIECE = 10_000  # rows
NOWHERE = Provenance("", "")


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prepared set: where it lies, what it is called as a source, and what became of the rows."""

    folder: Path
    source: str
    rows: int
    records: int
    digest: str  # of the records, in order
    left_out: dict[str, int]  # by reason
    damage: tuple[str, ...]


def prepare(
    spec: str,
    name: str,
    data_root: Path,
    into: Path,
    *,
    clean: Callable[[Sequence[Record]], tuple[Sequence[Record], dict[str, int]]] | None = None,
    settings: str = "",
    tell: Callable[[str, int], None] = lambda stage, done: None,
) -> Prepared:
    """Prepares a source as the set `name` below `into`, or goes on with it; where it is there already, that is all.

    `clean` gives the records to keep, and how many were left out for which reason; `settings` says in words what it does, since a set that
    was begun under others is begun anew. `tell` is called with a stage and how far it is.

    Raises: what reading the source raises; ValueError where the set is there and of another source, or another process prepares it.
    """
    if not name.isidentifier() or not name.islower():
        raise ValueError(
            f"a set cannot be called {name!r}; expected small letters, digits and underscores, as TFDS has names"
        )
    source = parse_source(spec)
    files = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in find_files(source, data_root)]
    plan = {"source": spec, "settings": settings, "files": files, "piece": PIECE}
    folder, work = into / name / VERSION, into / f".{name}.preparing"
    with exclusive(into / name):
        if (found := _finished(folder)) is not None:
            if {key: found[key] for key in plan} != plan:
                raise ValueError(
                    f"{folder} holds {found['source']!r} as it was then; prepare this under another name, or remove it"
                )
            with contextlib.suppress(ValueError):  # a damaged one is made again
                check_sums(folder)
                return _prepared(folder, found)
        if work.is_dir() and _read_json(work / "plan.json") != plan:
            shutil.rmtree(work)
        work.mkdir(parents=True, exist_ok=True)
        write_atomic(work / "plan.json", json.dumps(plan))
        pieces = _read_pieces(spec, data_root, work, tell)
        records = [from_row(row, NOWHERE) for piece in pieces for row in piece["records"]]
        left_out = Counter(reason for piece in pieces for _, reason in piece["rejected"])
        gone = read_forgotten()
        if any(map(gone.has, records)):
            left_out["forgotten"] = sum(map(gone.has, records))
            records = [record for record in records if not gone.has(record)]
        if clean is not None:
            tell("clean", len(records))
            kept, dropped = clean(records)
            records, left_out = list(kept), left_out + Counter(dropped)
        if not records:
            raise ValueError(f"source {spec!r} leaves no record to prepare: {dict(left_out)}")
        for half_written in (into / name).glob("*"):
            shutil.rmtree(half_written)
        _write_set(records, name, into, tell)
        about = {
            **plan,
            **_counted(records),
            "rows": sum(piece["rows"] for piece in pieces),
            "left_out": dict(left_out),
            "damage": [said for piece in pieces for said in piece["damage"]],
        }
        _seal(folder, about)
        shutil.rmtree(work)
        return _prepared(folder, about)


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
    return work / f"{number:06d}.json"


def _write_set(records: Sequence[Record], name: str, into: Path, tell: Callable[[str, int], None]) -> None:
    import numpy as np
    import tensorflow_datasets as tfds

    library: Any = tfds
    features = library.features
    text, number = features.Text(), features.Scalar(np.float64)
    columns = {
        **dict.fromkeys(("id", "kind", "key", "label", "source", "licence", "place", "method", "annotator"), text),
        "turns": features.Sequence({"role": text, "text": text}),
        "replies": features.Sequence(text),
        "places": features.Sequence(features.Scalar(np.int64)),
        "value": number,
        "weight": number,
    }

    def examples() -> Iterator[tuple[int, Row]]:
        for place, record in enumerate(records):
            if place % PIECE == 0:
                tell("write", place)
            yield place, to_row(record)
        tell("write", len(records))

    def info(self):
        about = "Prepared by rlhf_jax."
        return library.core.DatasetInfo(
            builder=self, description=about, features=features.FeaturesDict(columns), disable_shuffling=True
        )

    members = {
        "VERSION": library.core.Version(VERSION),
        "name": name,
        "_info": info,
        "_split_generators": lambda self, manager: {"train": examples()},
        "_generate_examples": lambda self: examples(),
    }
    library.disable_progress_bar()
    # Registered names are taken for good, and this class is done with when the set is written.
    made: Any = type("Set", (library.core.GeneratorBasedBuilder,), members, skip_registration=True)
    builder = made(data_dir=str(into), file_format="array_record")
    with contextlib.redirect_stdout(sys.stderr):  # TFDS tells what it does
        builder.download_and_prepare(file_format="array_record")


def _counted(records: Sequence[Record]) -> dict[str, Any]:
    told = "".join(json.dumps(to_row(record), sort_keys=True) for record in records)
    return {"records": len(records), "digest": hashlib.sha256(told.encode()).hexdigest()}


def rewrite(folder: Path, records: Sequence[Record]) -> None:
    """Puts these records in the place of those of a prepared set, which is there whole until they are; without any the set is removed."""
    name, into, about = folder.parent.name, folder.parents[1], _read_json(folder / ABOUT)
    with exclusive(folder.parent), tempfile.TemporaryDirectory(dir=into, prefix=f".{name}.") as scratch:
        written, old = Path(scratch), Path(scratch) / "old"
        if records:
            _write_set(records, name, written, lambda stage, done: None)
            _seal(written / name / folder.name, {**about, **_counted(records)})
        folder.rename(old)
        if records:
            (written / name / folder.name).rename(folder)


def _seal(folder: Path, about: dict[str, Any]) -> None:
    """Writes what was done and the digests of all files; a set without them was not finished."""
    write_atomic(folder / ABOUT, json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    write_sums(folder)


def _finished(folder: Path) -> dict[str, Any] | None:
    return _read_json(folder / ABOUT) if (folder / SUMS).is_file() else None


def _prepared(folder: Path, about: dict[str, Any]) -> Prepared:
    source = f"tfds:{folder.parent.name}:train"
    counts = {name: about[name] for name in ("rows", "records", "digest", "left_out")}
    return Prepared(folder, source, **counts, damage=tuple(about["damage"]))


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
