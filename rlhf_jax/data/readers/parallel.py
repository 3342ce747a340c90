"""Files side by side, line by line, as the same text in several languages is published (OPUS, WMT)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from rlhf_jax.data.readers.rows import DataError, Row


def read_parallel(sides: Mapping[str, Iterator[tuple[str, Row]]], field: str) -> Iterator[tuple[str, Row]]:
    """(place in the first file, {"translation": {side: the field of its row}}) for the rows of all sides with the same number.

    Raises: DataError where a row has no such field, where one side ends before another, and what reading the sides raises: behind
    anything that is left out, rows would meet others than their own.
    """
    for number, rows in enumerate(itertools.zip_longest(*sides.values())):
        found = dict(zip(sides, rows, strict=True))
        if short := [side for side, row in found.items() if row is None]:
            if not any(str(row[1].get(field, "-")).strip() for row in rows if row is not None):
                continue  # a blank line at the end of one file
            place = next(row[0] for row in rows if row is not None)
            reason = f"{' and '.join(short)} ended after {number} rows, and here is one more"
            raise DataError(place, reason, "expected files of as many rows, each a translation of the others'")
        for place, row in rows:
            if field not in row:
                raise DataError(
                    place, f"no field {field!r}", f"say field=NAME; the row has {', '.join(map(repr, row))}"
                )
        yield rows[0][0], {"translation": {side: row[field] for side, (_, row) in found.items()}}
