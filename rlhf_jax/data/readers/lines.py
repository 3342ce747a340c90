"""Text files line by line: JSON lines and plain text, and what all other text formats are read with.

Gzip is recognised by content. Lines end at a newline byte only, so the Unicode line separators inside a text stay
there.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_jax.data.readers.rows import STRICT, DataError, Reading, Row

GZIP_MAGIC = b"\x1f\x8b"


def read_jsonl(path: Path, how: Reading = STRICT) -> Iterator[tuple[str, Row]]:
    """(place, object) for every line that is not blank. Damage: lines that are not one JSON object, a file without rows."""
    for place, line in filled_lines(path, how):
        try:
            row = as_object(json.loads(line), place)
        except json.JSONDecodeError as error:
            reason = f"malformed JSON at column {error.colno} ({error.msg})"
            how.damaged(DataError(place, reason, "expected one JSON object per line"))
        except DataError as error:
            how.damaged(error)
        else:
            yield place, row


def read_text(path: Path, how: Reading = STRICT) -> Iterator[tuple[str, Row]]:
    """(place, {"text": ...}) for every line that is not blank, for every run of such lines (`paragraph`), or for the file."""
    if how.blank:
        yield from ((f"{path}:{number}", {"text": line}) for number, line in numbered_lines(path, how))
        return
    if how.unit == "line":
        for place, line in filled_lines(path, how):
            yield place, {"text": line}
        return
    gathered: list[str] = []
    start, rows = 1, 0
    for number, line in numbered_lines(path, how):
        if how.unit == "paragraph" and not line.strip():
            if gathered:
                yield f"{path}:{start}", {"text": "\n".join(gathered)}
                gathered, rows = [], rows + 1
            continue
        start = start if gathered else number
        gathered.append(line)
    if "".join(gathered).strip():
        yield f"{path}:{start}", {"text": "\n".join(gathered)}
    elif not rows:
        how.damaged(no_rows(path))


def filled_lines(path: Path, how: Reading) -> Iterator[tuple[str, str]]:
    """(place, line) of the lines that are not blank. Damage: as of `numbered_lines`, and a file without any."""
    empty = True
    for number, line in numbered_lines(path, how):
        if line.strip():
            empty = False
            yield f"{path}:{number}", line
    if empty:
        how.damaged(no_rows(path))


def numbered_lines(path: Path, how: Reading) -> Iterator[tuple[int, str]]:
    """(line number from 1, text without its line end); a byte order mark is dropped.

    Damage: lines that are not UTF-8, and a gzip stream that ends early or is corrupt, behind which nothing can be read.
    """
    number = 0
    with open_bytes(path) as stream:
        while True:
            try:
                raw = stream.readline()
            except (EOFError, OSError, zlib.error) as error:
                remedy = f"only the {number} lines before it can be read; fetch the file again"
                how.damaged(DataError(f"{path}:{number + 1}", f"the gzip stream is damaged here ({error})", remedy))
                return
            if not raw:
                return
            number += 1
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                how.damaged(DataError(f"{path}:{number}", not_utf8(error), "save the file as UTF-8"))
                continue
            yield number, text.removesuffix("\n").removesuffix("\r")


def open_bytes(path: Path) -> gzip.GzipFile | io.BufferedReader:
    """The content of a file, uncompressed. Raises: FileNotFoundError; DataError for a name in .gz of another content."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    with path.open("rb") as stream:
        magic = stream.read(len(GZIP_MAGIC))
    if magic == GZIP_MAGIC:
        return gzip.GzipFile(path, "rb")
    if path.suffix == ".gz" and magic:
        raise DataError(f"{path}:1", "named .gz but the content is not gzip", "compress it or drop the suffix")
    return path.open("rb")


def as_object(value: Any, place: str) -> Row:
    """The value as a row. Raises: DataError where it is no object."""
    if not isinstance(value, dict):
        raise DataError(place, f"a row is a {type(value).__name__}", "expected a JSON object")
    return value


def no_rows(path: Path) -> DataError:
    return DataError(f"{path}:1", "the file is empty", "expected at least one row")


def not_utf8(error: UnicodeDecodeError) -> str:
    return f"byte 0x{error.object[error.start]:02x} at position {error.start + 1} is not UTF-8"
