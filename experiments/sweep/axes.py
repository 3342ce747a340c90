"""What is swept, as the command line says it."""

from __future__ import annotations

import re
from collections.abc import Sequence


def parse_axes(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The values of each field, of texts "a.b=x,y,z" and "a.b=0..7"; commas inside brackets and quotes do not divide.

    Raises: ValueError for what is not of this form, a field that is named twice, and a value that is.
    """
    axes: dict[str, tuple[str, ...]] = {}
    for text in texts:
        path, equals, said = (part.strip() for part in text.partition("="))
        if not (path and equals and said):
            raise ValueError(f"--over {text!r} is not of the form a.b=x,y,z or a.b=FIRST..LAST")
        if path in axes:
            raise ValueError(f"--over names {path} twice; give all of its values at once, divided by commas")
        whole = re.fullmatch(r"(\d+)\.\.(\d+)", said)
        numbers = range(int(whole[1]), int(whole[2]) + 1) if whole is not None else None
        values = divided(said) if numbers is None else list(map(str, numbers))
        if not values or len(set(values)) < len(values):
            raise ValueError(f"--over {text!r}: {'a value stands there twice' if values else 'there is no value'}")
        axes[path] = tuple(values)
    return axes


def divided(text: str) -> list[str]:
    """The parts between the commas that stand in no bracket and no quotes; quotes around a whole part are taken off where they say nothing.

    Raises: ValueError where a bracket or quotes do not end.
    """
    parts, depth, quoted = [""], 0, False
    for letter in text:
        quoted ^= letter == '"'
        depth += 0 if quoted else {"[": 1, "]": -1}.get(letter, 0)
        if letter == "," and depth == 0 and not quoted:
            parts.append("")
        else:
            parts[-1] += letter
        if depth < 0:
            break
    if depth or quoted:
        raise ValueError(f"{text!r}: {'quotes' if quoted else 'brackets'} do not pair")
    parts = [part.strip() for part in parts]
    return [_unquoted(part) for part in parts if part]


def _unquoted(part: str) -> str:
    """A part without the quotes around it, where it says the same without them."""
    if part.count('"') != 2 or not part[0] == part[-1] == '"':
        return part
    inside = part[1:-1]
    plain = inside == inside.strip() and "\\" not in inside and inside.lower() not in ("none", "null")
    return inside if plain else part


def seeds_of(values: Sequence[str]) -> range:
    """The seeds of an axis. Raises: ValueError where they are not whole numbers that follow each other."""
    if not all(value.isdecimal() for value in values):
        raise ValueError(f"--over seed={','.join(values)}: seeds are whole numbers, such as seed=0..7")
    first, last = int(values[0]), int(values[-1])
    if list(map(int, values)) != list(range(first, last + 1)):
        raise ValueError(f"--over seed={','.join(values)}: seeds follow each other; write seed=FIRST..LAST")
    return range(first, last + 1)
