"""Arrays of JSON objects, element by element, so that what stands before and behind a break is not lost with it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from rlhf_jax.data.readers.lines import as_object, numbered_lines, read_jsonl
from rlhf_jax.data.readers.rows import STRICT, DataError, Reading, Row


def read_json(path: Path, how: Reading = STRICT) -> Iterator[tuple[str, Row]]:
    """(place, object) for every element of an array of objects; a file of one object per line is understood too.

    Damage: where the array breaks, after the elements before it were yielded, and a file without rows. Reading goes on at the next object
    that has a field of those before it.
    """
    lines = [line for _, line in numbered_lines(path, how)]
    text = "\n".join(lines)
    if not text.lstrip().startswith("["):
        yield from read_jsonl(path, how)
        return
    decoder, elements = json.JSONDecoder(), 0
    known: set[str] = set()
    position: int | None = _skip_blank(text, text.index("[") + 1)
    line, counted = 1, 0

    def broken(message: str, where: int) -> None:
        error = json.JSONDecodeError(message, text, where)
        reason = f"malformed JSON at column {error.colno} ({message})"
        remedy = f"expected an array of objects; the {elements} elements before it can be read"
        how.damaged(DataError(f"{path}:{error.lineno}", reason, remedy))

    while position is not None and text[position : position + 1] != "]":
        line, counted = line + text.count("\n", counted, position), position
        place = f"{path}:{line}"
        try:
            value, behind = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            broken(error.msg, error.pos)
            position = _next_object(text, position + 1, known)
            continue
        try:
            row = as_object(value, place)
        except DataError as error:
            how.damaged(error)
        else:
            known |= set(row)
            elements += 1
            yield place, row
        position = _skip_blank(text, behind)
        if text[position : position + 1] == ",":
            position = _skip_blank(text, position + 1)
            if text[position : position + 1] == "]":
                broken("a comma behind the last element", position)
        elif text[position : position + 1] != "]":
            broken("expected ',' or ']' after an element", position)
            position = _next_object(text, position, known)
    if position is None:
        return
    if _skip_blank(text, position + 1) < len(text):
        reason, remedy = "text after the end of the array", "expected one array of objects"
        how.damaged(DataError(f"{path}:{len(lines)}", reason, remedy))
    if not elements:
        how.damaged(DataError(f"{path}:1", "the array is empty", "expected at least one object"))


def _next_object(text: str, start: int, known: set[str]) -> int | None:
    """Where the next whole object begins that shares a field with the `known` ones, if any are; else the end of the array, if any."""
    decoder = json.JSONDecoder()
    for match in re.finditer(r"\{", text[start:]):
        place = start + match.start()
        try:
            value, _ = decoder.raw_decode(text, place)
        except json.JSONDecodeError:
            continue
        # Objects inside a broken one, such as the messages of a dialogue, have other fields.
        if isinstance(value, dict) and (not known or known & set(value)):
            return place
    end = len(text.rstrip()) - 1
    return end if end >= start and text[end] == "]" else None


def _skip_blank(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position
