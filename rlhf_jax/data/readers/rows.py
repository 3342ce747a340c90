"""What every reader of files gives and takes: rows with their places, and what becomes of damage on the way."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

Row: TypeAlias = dict[str, Any]
"""One row as the file has it: column or field name -> value."""

Unit = Literal["line", "paragraph", "file"]
"""What a row of a plain text is."""


class DataError(ValueError):
    """A data file that cannot be used as it is: "FILE:LINE: reason; what would be right"."""

    def __init__(self, place: str, reason: str, remedy: str) -> None:
        super().__init__(f"{place}: {reason}; {remedy}")
        self.place, self.reason, self.remedy = place, reason, remedy


def refuse(damage: DataError) -> None:
    """The policy "strict": the first damage ends the reading."""
    raise damage


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a file is read. `damaged` is told what cannot be read; where it returns, reading goes on behind that."""

    columns: tuple[str, ...] = ()  # names of a table's columns, where its first line does not have them
    unit: Unit = "line"
    blank: bool = False  # whether the blank lines of a text are rows too
    damaged: Callable[[DataError], None] = refuse


STRICT = Reading()
