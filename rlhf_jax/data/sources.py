"""Where data lies and how it is asked for: "ADAPTER:GLOB" under a data root; the split into training and held-out."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from rlhf_jax.data.adapters import ADAPTERS, Adapter, Rejected, dialogue_key
from rlhf_jax.data.readers import DataError
from rlhf_jax.data.schema import (
    Classified,
    Comparison,
    Demonstration,
    Labelled,
    LabelledReply,
    Prompt,
    Provenance,
    Record,
)

DATA_VARIABLE = "RLHF_JAX_DATA"
UNKNOWN_LICENCE = "unknown"

AnyRecord = TypeVar("AnyRecord", Prompt, Demonstration, Comparison, Labelled, Classified, LabelledReply, Record)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What a source gave: its records, and the rows left out with their reasons."""

    records: tuple[Record, ...]
    rejected: tuple[Rejected, ...]


def find_data_root(explicit: Path | None = None) -> Path:
    """The folder of data sets: the one given, else the environment's RLHF_JAX_DATA, else ../shared/data.

    The last is looked for next to the repository and next to the current directory. A folder that was named and is not
    there is an error, never a reason to look elsewhere. Raises: FileNotFoundError with everything that was looked for.
    """
    named = os.environ.get(DATA_VARIABLE)
    if explicit is not None:
        candidates = {"given": explicit}
    elif named:
        candidates = {DATA_VARIABLE: Path(named)}
    else:
        beside = Path("shared") / "data"
        candidates = {
            "beside the repository": Path(__file__).resolve().parents[2].parent / beside,
            "beside the current directory": Path.cwd().parent / beside,
        }
    for path in candidates.values():
        if path.is_dir():
            return path
    looked = "; ".join(f"{path} ({why})" for why, path in candidates.items())
    raise FileNotFoundError(f"no data folder: looked for {looked}; give its path or set {DATA_VARIABLE}")


def find_files(spec: str, data_root: Path) -> tuple[Adapter, list[Path]]:
    """The adapter of "ADAPTER:GLOB", e.g. "alpaca:instructions/alpaca-en/*.json.gz", and the files that match, by name.

    Raises: ValueError for another form, KeyError for an unknown adapter, FileNotFoundError when no file matches.
    """
    name, colon, pattern = spec.partition(":")
    if not colon or not pattern or Path(pattern).is_absolute():
        raise ValueError(f"source {spec!r} is not ADAPTER:GLOB with a pattern relative to the data root")
    if name not in ADAPTERS:
        close = difflib.get_close_matches(name, ADAPTERS) or sorted(ADAPTERS)
        raise KeyError(f"no adapter {name!r}; did you mean {' or '.join(close)}?")
    paths = sorted(path for path in data_root.glob(pattern) if path.is_file())
    if not paths:
        raise FileNotFoundError(f"no file matches {pattern!r} under {data_root}")
    return ADAPTERS[name], paths


def load_source(spec: str, data_root: Path) -> Loaded:
    """All records of the files that `find_files` finds for "ADAPTER:GLOB".

    Places in records and rejections are relative to `data_root`. Raises: what `find_files` raises, and DataError for a
    file that is not what its adapter expects.
    """
    adapter, paths = find_files(spec, data_root)
    name, licences = spec.partition(":")[0], _licences(data_root)
    records: list[Record] = []
    rejected: list[Rejected] = []
    for path in paths:
        file = path.relative_to(data_root).as_posix()
        licence = licences.get(file, UNKNOWN_LICENCE)
        for place, row in adapter.read(path):
            provenance = Provenance(name, licence, file + place.removeprefix(str(path)))
            parsed = adapter.parse(row, provenance)
            if isinstance(parsed, Rejected):
                rejected.append(parsed)
            else:
                records.append(parsed)
    return Loaded(tuple(records), tuple(rejected))


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
    """What identifies the prompt of a record: its key, else the text of its turns; of a labelled text, the text."""
    if isinstance(record, Labelled | Classified):
        return record.text
    prompt = record if isinstance(record, Prompt) else record.prompt
    return prompt.key or dialogue_key(prompt.turns)


def _licences(data_root: Path) -> dict[str, str]:
    """Licence by file, as the manifest of the data root states it; nothing where there is no manifest."""
    path = data_root / "manifest.json"
    if not path.is_file():
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        return {entry["file"]: str(entry.get("licence") or UNKNOWN_LICENCE) for entry in entries}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"not readable ({type(error).__name__}: {error})"
        raise DataError(str(path), reason, "expected an array of objects with 'file' and 'licence'") from error
