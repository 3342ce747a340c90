"""Rows out of files, each with the place it came from; whatever is wrong with a file is said with its line number."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from rlhf_jax.data.readers.archives import read_tar, read_zip
from rlhf_jax.data.readers.examples import read_array_record, read_tfrecord
from rlhf_jax.data.readers.json_arrays import read_json
from rlhf_jax.data.readers.lines import open_bytes, read_jsonl, read_text
from rlhf_jax.data.readers.rows import STRICT, DataError, Reading, Row
from rlhf_jax.data.readers.tables import read_csv, read_parquet, read_tsv, read_xlsx

__all__ = ["FORMATS", "STRICT", "DataError", "Reading", "Row", "format_of"]

FORMATS: dict[str, Callable[[Path, Reading], Iterator[tuple[str, Row]]]] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "csv": read_csv,
    "tsv": read_tsv,
    "xlsx": read_xlsx,
    "parquet": read_parquet,
    "arrayrecord": read_array_record,
    "tfrecord": read_tfrecord,
    "tar": read_tar,
    "zip": read_zip,
    "text": read_text,
}
"""Reader of each format; those of text understand gzip."""

HEAD = 4096
TAR_MAGIC = slice(257, 262)
JSON_START = re.compile(rb"\s*(?:(\{)|\[\s*[\[{\]])")
JSON_NAMES = {".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl"}


def format_of(path: Path) -> str:
    """The format of a file: by its content where that tells, which names often do not, else by its name; text where neither does.

    Raises: FileNotFoundError; DataError for a name in .gz of another content, or a gzip stream that is damaged at its start.
    """
    names = [suffix.lower() for suffix in path.suffixes]
    if any("array_record" in name or "arrayrecord" in name for name in names):
        return "arrayrecord"
    if any("tfrecord" in name for name in names):
        return "tfrecord"
    try:
        with open_bytes(path) as stream:
            head = stream.read(HEAD)
    except (EOFError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise DataError(f"{path}:1", f"the gzip stream is damaged here ({error})", "fetch the file again") from error
    if head[:4] == b"PAR1":
        return "parquet"
    if head[TAR_MAGIC] == b"ustar":
        return "tar"
    if head[:4] == b"PK\x03\x04":
        return "xlsx" if ".xlsx" in names else "zip"
    if ".csv" in names:
        return "csv"
    if ".tsv" in names:
        return "tsv"
    start = JSON_START.match(head.removeprefix(b"\xef\xbb\xbf"))
    named = next((JSON_NAMES[name] for name in names if name in JSON_NAMES), None)
    if start is None or (named is None and ".txt" in names):
        return named or "text"
    return "jsonl" if start[1] else "json"
