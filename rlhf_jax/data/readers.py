"""Rows out of files, each with the place it came from; whatever is wrong with a file is said with its line number.

Gzip is recognised by content. Lines end at a newline byte only, so the Unicode line separators inside a text stay
there.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

Row: TypeAlias = dict[str, Any]
"""One row as the file has it: column or field name -> value."""

GZIP_MAGIC = b"\x1f\x8b"


class DataError(ValueError):
    """A data file that cannot be used as it is: "FILE:LINE: reason; what would be right"."""

    def __init__(self, place: str, reason: str, remedy: str) -> None:
        super().__init__(f"{place}: {reason}; {remedy}")


def read_jsonl(path: Path) -> Iterator[tuple[str, Row]]:
    """(place, object) for every line that is not blank.

    Raises: DataError at the first line that is not one JSON object, and for a file without rows.
    """
    for place, line in _filled_lines(path):
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            reason = f"malformed JSON at column {error.colno} ({error.msg})"
            raise DataError(place, reason, "expected one JSON object per line") from error
        yield place, _object(value, place)


def read_json(path: Path) -> Iterator[tuple[str, Row]]:
    """(place, object) for every element of an array of objects; a file of one object per line is understood too.

    Raises: DataError where the array breaks, after the elements before it were yielded, and for a file without rows.
    """
    lines = [line for _, line in _lines(path)]
    text = "\n".join(lines)
    if not text.lstrip().startswith("["):
        yield from read_jsonl(path)
        return
    decoder = json.JSONDecoder()
    position = _skip_blank(text, text.index("[") + 1)
    counted, line, elements = 0, 1, 0
    closed = text[position : position + 1] == "]"
    while not closed:
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, position = decoder.raw_decode(text, position)
            position = _skip_blank(text, position)
            if text[position : position + 1] not in (",", "]"):
                raise json.JSONDecodeError("expected ',' or ']' after an element", text, position)
        except json.JSONDecodeError as error:
            reason = f"malformed JSON at column {error.colno} ({error.msg})"
            remedy = f"expected an array of objects; the {elements} elements before it can be read"
            raise DataError(f"{path}:{error.lineno}", reason, remedy) from error
        yield f"{path}:{line}", _object(value, f"{path}:{line}")
        elements += 1
        closed = text[position] == "]"
        position = position if closed else _skip_blank(text, position + 1)
    if _skip_blank(text, position + 1) < len(text):
        raise DataError(f"{path}:{len(lines)}", "text after the end of the array", "expected one array of objects")
    if not elements:
        raise DataError(f"{path}:1", "the array is empty", "expected at least one object")


def read_tsv(path: Path, columns: Sequence[str] | None = None) -> Iterator[tuple[str, Row]]:
    """(place, column -> text) for every line; `columns` names them where the file has no header line.

    Quotes are plain text. Raises: DataError for a line with another number of columns, and for a file without rows.
    """
    names = None if columns is None else list(columns)
    rows = 0
    for place, line in _filled_lines(path):
        cells = line.split("\t")
        if names is None:
            names = cells
            continue
        if len(cells) != len(names):
            reason = f"{len(cells)} tab-separated columns"
            raise DataError(place, reason, f"expected {len(names)}: {', '.join(names)}")
        rows += 1
        yield place, dict(zip(names, cells, strict=True))
    if not rows:
        raise DataError(f"{path}:1", "a header without rows", "expected at least one row below it")


def read_lines(path: Path) -> Iterator[tuple[str, Row]]:
    """(place, {"text": line}) for every line that is not blank."""
    for place, line in _filled_lines(path):
        yield place, {"text": line}


def read_text_members(path: Path) -> Iterator[tuple[str, Row]]:
    """(FILE:MEMBER, {"member": its path, "text": its content}) for every file of a tar archive, in the archive's order.

    Raises: DataError for a damaged or empty archive, or a member that is not UTF-8.
    """
    members = 0
    place = str(path)
    with _open(path) as stream:
        try:
            # The stream mode reads front to back once: an archive of many thousand small files is never seeked in.
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for member in archive:
                    place = f"{path}:{member.name}"
                    content = archive.extractfile(member)
                    if content is None:
                        continue
                    yield place, {"member": member.name, "text": content.read().decode("utf-8")}
                    members += 1
        except UnicodeDecodeError as error:
            raise DataError(place, _not_utf8(error), "save the member as UTF-8") from error
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise DataError(place, f"the archive is damaged here ({error})", "fetch the file again") from error
    if not members:
        raise DataError(str(path), "the archive holds no files", "expected one text file per example")


def _open(path: Path) -> gzip.GzipFile | io.BufferedReader:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    with path.open("rb") as stream:
        magic = stream.read(len(GZIP_MAGIC))
    if magic == GZIP_MAGIC:
        return gzip.GzipFile(path, "rb")
    if path.suffix == ".gz" and magic:
        raise DataError(f"{path}:1", "named .gz but the content is not gzip", "compress it or drop the suffix")
    return path.open("rb")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, text without its line end); a byte order mark is dropped."""
    number = 0
    with _open(path) as stream:
        while True:
            try:
                raw = stream.readline()
            except (EOFError, OSError, zlib.error) as error:
                remedy = f"only the {number} lines before it can be read; fetch the file again"
                raise DataError(f"{path}:{number + 1}", f"the gzip stream is damaged here ({error})", remedy) from error
            if not raw:
                return
            number += 1
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{path}:{number}", _not_utf8(error), "save the file as UTF-8") from error
            yield number, text.removesuffix("\n").removesuffix("\r")


def _filled_lines(path: Path) -> Iterator[tuple[str, str]]:
    empty = True
    for number, line in _lines(path):
        if line.strip():
            empty = False
            yield f"{path}:{number}", line
    if empty:
        raise DataError(f"{path}:1", "the file is empty", "expected at least one row")


def _object(value: Any, place: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(place, f"a row is a {type(value).__name__}", "expected a JSON object")
    return value


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"byte 0x{error.object[error.start]:02x} at position {error.start + 1} is not UTF-8"


def _skip_blank(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position
