"""A prepared set: a folder of TFDS with ArrayRecord files, what was done to its records, and the digests of all that.

The digest of a set is that of its records: the bytes of ArrayRecord files differ from one writing to the next, as protocol buffers have no
order of their fields.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.data.adapters.stored import to_row
from rlhf_jax.data.readers import Row
from rlhf_jax.data.schema import Record
from rlhf_jax.data.sources import find_files, parse_source
from rlhf_jax.files import SUMS, check_sums, exclusive, prepared_directory, write_atomic, write_sums

VERSION = "1.0.0"
ABOUT = "prepared.json"
PLAN = "plan.json"
NUMBERS = ("value", "weight")


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


def made_once(
    spec: str, name: str, data_root: Path, into: Path, settings: str, make: Callable[[Path, Path], dict[str, Any]]
) -> Prepared:
    """The set `name` below `into`: the one that is there where it is whole and of this source and these settings, else what `make` makes.

    `make` writes the set below the second folder that it is given, and tells what is to be remembered of it; the first one is for its work,
    and there again after it was killed. Raises: ValueError where the set is there and of another source, or another process prepares it;
    what `make` raises.
    """
    if not name.isidentifier() or not name.islower():
        raise ValueError(
            f"a set cannot be called {name!r}; expected small letters, digits and underscores, as TFDS has names"
        )
    files = find_files(parse_source(spec), data_root)
    stamps = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    plan = {"source": spec, "settings": settings, "files": stamps}
    folder, work = into / name / VERSION, into / f".{name}.preparing"
    with exclusive(into / name):
        if (found := finished(folder)) is not None:
            if {key: found[key] for key in plan} != plan:
                raise ValueError(
                    f"{folder} holds {found['source']!r} as it was then; prepare this under another name, or remove it"
                )
            with contextlib.suppress(ValueError):  # a damaged one is made again
                check_sums(folder)
                return _prepared(folder, found)
        if work.is_dir() and (not (work / PLAN).is_file() or _read_json(work / PLAN) != plan):
            shutil.rmtree(work)
        work.mkdir(parents=True, exist_ok=True)
        write_atomic(work / PLAN, json.dumps(plan))
        written = work / "written"
        shutil.rmtree(written, ignore_errors=True)
        try:
            about = {**plan, **make(work, written)}
        except BaseException:
            shutil.rmtree(written, ignore_errors=True)
            with contextlib.suppress(OSError):  # other versions may be there
                folder.parent.rmdir()
            raise
        _seal(written / name / VERSION, about)
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one, which is there until another is
        (written / name / VERSION).rename(folder)
        shutil.rmtree(work)
        return _prepared(folder, about)


def write_set(splits: Callable[..., Any], name: str, into: Path, settings: Any = None) -> None:
    """Writes the set `name` below `into`.

    `splits` is what TFDS calls `_split_generators`; of the examples that it gives, the keys are whole numbers, by which they are
    ordered, and the rows those of `stored`. `settings` is a DownloadConfig of TFDS, which says by what engine it is done.
    """
    import numpy as np
    import tensorflow_datasets as tfds

    library: Any = tfds
    features = library.features
    text = features.Text()
    columns = {
        **dict.fromkeys(("id", "kind", "key", "label", "source", "licence", "place", "method", "annotator"), text),
        **dict.fromkeys(NUMBERS, text),
        "turns": features.Sequence({"role": text, "text": text}),
        "replies": features.Sequence(text),
        "places": features.Sequence(features.Scalar(np.int64)),
    }

    def info(self):
        about = "Prepared by rlhf_jax."
        return library.core.DatasetInfo(
            builder=self, description=about, features=features.FeaturesDict(columns), disable_shuffling=True
        )

    members = {
        "VERSION": library.core.Version(VERSION),
        "name": name,
        "_info": info,
        "_split_generators": splits,
        "_generate_examples": lambda self: None,  # which TFDS wants; `splits` has them
    }
    library.disable_progress_bar()
    # Registered names are taken for good, and this class is done with when the set is written.
    made: Any = type("Set", (library.core.GeneratorBasedBuilder,), members, skip_registration=True)
    builder = made(data_dir=str(into), file_format="array_record")
    # TFDS tells of downloads, and makes a folder for them.
    with tempfile.TemporaryDirectory() as nowhere, contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(file_format="array_record", download_config=settings, download_dir=nowhere)


def stored(row: Row) -> Row:
    """A row of `to_row` as it is written: numbers as texts, of which no digit is lost, as TFDS would round them to 32 bits."""
    return {**row, **{name: repr(float(row[name])) for name in NUMBERS}}


def write_records(records: Sequence[Record], name: str, into: Path, tell: Callable[[int], None]) -> dict[str, Any]:
    """Writes these records as the set `name` below `into`, and counts them; `tell` is told now and then how many are done."""

    def examples() -> Iterator[tuple[int, Row]]:
        for place, record in enumerate(records):
            if place % 10_000 == 0:
                tell(place)
            yield place, stored(to_row(record))
        tell(len(records))

    write_set(lambda self, manager: {"train": examples()}, name, into)
    return counted(map(to_row, records))


def counted(rows: Iterable[Row]) -> dict[str, Any]:
    """How many rows there are, and their digest."""
    digest, records = hashlib.sha256(), 0
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True).encode())
        records += 1
    return {"records": records, "digest": digest.hexdigest()}


def rewrite(folder: Path, records: Sequence[Record]) -> None:
    """Puts these records in the place of those of a prepared set, which is there whole until they are; without any the set is removed."""
    name, into, about = folder.parent.name, folder.parents[1], _read_json(folder / ABOUT)
    with exclusive(folder.parent), tempfile.TemporaryDirectory(dir=into, prefix=f".{name}.") as scratch:
        written, old = Path(scratch), Path(scratch) / "old"
        if records:
            about |= write_records(records, name, written, lambda done: None)
            _seal(written / name / folder.name, about)
        folder.rename(old)
        if records:
            (written / name / folder.name).rename(folder)


def finished(folder: Path) -> dict[str, Any] | None:
    """What is remembered of a set; nothing where none was finished there."""
    return _read_json(folder / ABOUT) if (folder / SUMS).is_file() else None


def _seal(folder: Path, about: dict[str, Any]) -> None:
    """Writes what was done and the digests of all files; a set without them was not finished."""
    write_atomic(folder / ABOUT, json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    write_sums(folder)


def _prepared(folder: Path, about: dict[str, Any]) -> Prepared:
    name = folder.parent.name if folder.parents[1] == prepared_directory() else str(folder.absolute())
    counts = {name: about[name] for name in ("rows", "records", "digest", "left_out")}
    return Prepared(folder, f"tfds:{name}:train", **counts, damage=tuple(about["damage"]))


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
