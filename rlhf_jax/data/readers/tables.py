"""Tables: comma- and tab-separated text, Parquet, and spreadsheets."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.data.readers.lines import filled_lines, no_rows, numbered_lines
from rlhf_jax.data.readers.rows import STRICT, DataError, Reading, Row

LONGEST_CELL = 2**31 - 1


def read_tsv(path: Path, how: Reading = STRICT) -> Iterator[tuple[str, Row]]:
    """(place, column -> text) for every line; the first has the names, unless they are given. Quotes are plain text.

    Damage: lines with another number of columns, and a file without rows.
    """
    table = ((place, line.split("\t")) for place, line in filled_lines(path, how))
    yield from _rows(path, table, how, "tab-separated columns")


def read_csv(path: Path, how: Reading = STRICT) -> Iterator[tuple[str, Row]]:
    """(place, column -> text) for every record (RFC 4180: a quoted cell may hold commas, quotes and newlines), at its first line.

    Damage: records with another number of columns, quotes that are not closed, and a file without rows.
    """
    csv.field_size_limit(LONGEST_CELL)

    def table() -> Iterator[tuple[str, list[str]]]:
        last, empty = [0], True  # number of the last line that was taken

        def lines() -> Iterator[str]:
            for number, line in numbered_lines(path, how):
                last[0] = number
                yield line + "\n"

        records = csv.reader(lines(), strict=True)
        while True:
            first = last[0] + 1
            try:
                cells = next(records)
            except StopIteration:
                break
            except csv.Error as error:
                how.damaged(DataError(f"{path}:{first}", f"malformed CSV ({error})", 'expected quotes as "..."'))
                continue
            if any(cell.strip() for cell in cells):
                empty = False
                yield f"{path}:{first}", cells
        if empty:
            how.damaged(no_rows(path))

    yield from _rows(path, table(), how, "comma-separated columns")


def read_xlsx(path: Path, how: Reading = STRICT) -> Iterator[tuple[str, Row]]:
    """(place, column -> cell) for every row of the first sheet that is not blank; the first has the names, unless they are given.

    Raises: ValueError where openpyxl is not installed. Damage: a file that it does not read, and one without rows.
    """
    try:
        from openpyxl import load_workbook
    except ImportError as error:
        raise ValueError(f"{path}: reading spreadsheets needs openpyxl; pip install 'rlhf_jax[data]'") from error
    try:
        book: Any = load_workbook(path, read_only=True, data_only=True)
        cells = list(book.worksheets[0].iter_rows(values_only=True))
    except Exception as error:  # zipfile, xml and openpyxl itself each have errors of their own
        how.damaged(DataError(str(path), f"not a readable spreadsheet ({error})", "save it again as .xlsx"))
        return
    table = (
        (f"{path}:{number}", list(row))
        for number, row in enumerate(cells, start=1)
        if any(cell is not None and str(cell).strip() for cell in row)
    )
    if not cells:
        how.damaged(no_rows(path))
    yield from _rows(path, table, how, "columns")


def read_parquet(path: Path, how: Reading = STRICT) -> Iterator[tuple[str, Row]]:
    """("FILE:row N", column -> value) for every row, counted from 1. Damage: a file that pyarrow does not read, and one without rows."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    rows = 0
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    rows += 1
                    yield f"{path}:row {rows}", row
    except (ArrowException, OSError) as error:
        remedy = f"only the {rows} rows before it can be read; fetch the file again"
        how.damaged(DataError(f"{path}:row {rows + 1}", f"the Parquet file is damaged ({error})", remedy))
        return
    if not rows:
        how.damaged(DataError(str(path), "the table is empty", "expected at least one row"))


def _rows(path: Path, table: Iterator[tuple[str, Sequence[Any]]], how: Reading, what: str) -> Iterator[tuple[str, Row]]:
    """The lines of a table under the names of its columns; a first line that is these names is no row."""
    first = next(table, None)
    if first is None:
        return
    names = [str(cell) for cell in (how.columns or first[1])]
    table = table if list(first[1]) == names else itertools.chain([first], table)
    rows = 0
    for place, cells in table:
        if len(cells) != len(names):
            how.damaged(DataError(place, f"{len(cells)} {what}", f"expected {len(names)}: {', '.join(names)}"))
            continue
        rows += 1
        yield place, dict(zip(names, cells, strict=True))
    if not rows:
        how.damaged(DataError(f"{path}:1", "a header without rows", "expected at least one row below it"))
