"""Where data lies and how it is asked for: one string names a source, from which come records with their provenance.

alpaca:instructions/alpaca-en/*.json.gz          the layout of the rows, and files below the data root; the format is told by the files
csv:mine.csv?as=ratings&columns=instruction,input,output,rating     the format; the layout by `as`, or else by the rows' fields
parallel:en=corpus.en,zh=corpus.zh               translations: files side by side, row by row; field=NAME where rows have several
tfds:NAME/CONFIG:SPLIT                           a set that TFDS has prepared, or a folder in its layout
hf:ORG/NAME:SPLIT                                a set of the Hugging Face hub, or a folder in its layout (extra `data`)
world:instruct?rows=1000&seed=0                  the embedded instruction world
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

from rlhf_jax.data.adapters import ADAPTERS, Adapter, Rejected, get_adapter, recognise
from rlhf_jax.data.erasure.forgotten import Forgotten, read_forgotten
from rlhf_jax.data.provenance import UNKNOWN_LICENCE, find_licences
from rlhf_jax.data.readers import FORMATS, DataError, Reading, Row, format_of
from rlhf_jax.data.readers.named import read_hub, read_tfds
from rlhf_jax.data.readers.parallel import read_parallel
from rlhf_jax.data.readers.rows import Unit, refuse
from rlhf_jax.data.schema import Method, Provenance, Record, provenance_of
from rlhf_jax.files import prepared_directory

DATA_VARIABLE = "RLHF_JAX_DATA"
NAMED = ("tfds", "hf")
WORLD = "world"
PARALLEL = "parallel"
OPTIONS = (
    "as",
    "format",
    "columns",
    "field",
    "fields",
    "unit",
    "licence",
    "method",
    "damaged",
    "seed",
    "rows",
    "split",
)
POLICIES = ("strict", "salvage")
GLOB = {"*": "[^/]*", "**": ".*", "**/": ".*/|", "?": "[^/]"}
"""Wild cards as regular expressions."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A source as its string says it: what it is called before the colon, where it lies, and its options."""

    spec: str
    name: str
    where: str
    options: Mapping[str, str]

    @property
    def adapter(self) -> Adapter | None:
        """The layout of the rows, where the string says it."""
        known = "translations" if self.name == PARALLEL else self.name if self.name in ADAPTERS else None
        asked = self.options.get("as", known)
        return None if asked is None else get_adapter(asked)

    @property
    def patterns(self) -> dict[str, str]:
        """Its files as globs, by language where they lie side by side."""
        if self.name != PARALLEL:
            return {"": self.where}
        return dict(side.split("=", 1) for side in self.where.split(","))

    @property
    def salvages(self) -> bool:
        """Whether damage is counted and read past, rather than an error."""
        return self.options.get("damaged", "strict") == "salvage"


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What a source gave: its records, the rows left out with their reasons, and what could not be read."""

    records: tuple[Record, ...]
    rejected: tuple[Rejected, ...]
    damage: tuple[DataError, ...] = ()
    rows: int = 0  # read, those that were left out too


def parse_source(spec: str) -> Source:
    """The source that a string names.

    Raises: ValueError for another form or an unknown value of an option, KeyError for an unknown name of a source or an option.
    """
    name, colon, rest = spec.partition(":")
    where, options = rest, {}
    # A glob has question marks too; options are the last one with NAME=VALUE behind it.
    if match := re.fullmatch(r"(?P<where>.*?)\?(?P<options>\w+=[^?]*)", rest):
        where = match["where"]
        options = dict(_option(part, spec) for part in match["options"].split("&"))
    if not colon or not where:
        raise ValueError(f"source {spec!r} is not NAME:PATH, such as alpaca:instructions/*.json or jsonl:mine.jsonl")
    known = [*ADAPTERS, *FORMATS, *NAMED, WORLD, PARALLEL]
    if name not in known:
        close = difflib.get_close_matches(name, known) or sorted(known)
        raise KeyError(f"no source {name!r}; did you mean {' or '.join(close)}?")
    limited = {"damaged": POLICIES, "method": get_args(Method), "format": tuple(FORMATS), "unit": get_args(Unit)}
    for option, allowed in limited.items():
        if options.get(option, allowed[0]) not in allowed:
            raise ValueError(f"source {spec!r}: {option}={options[option]}; expected {' or '.join(allowed)}")
    columns = options.get("columns", "a").split(",")
    if len(set(columns)) != len(columns) or not all(columns):
        raise ValueError(
            f"source {spec!r}: columns={options['columns']}; expected names that differ, with commas between"
        )
    if not all(pair.count(":") == 1 for pair in options.get("fields", ":").split(",")):
        raise ValueError(f"source {spec!r}: fields={options['fields']}; expected OURS:THEIRS, with commas between")
    sides = [side.partition("=")[::2] for side in where.split(",")]
    languages = {side for side, _ in sides}
    if name == PARALLEL and (len(languages) < max(2, len(sides)) or not all(map(all, sides))):
        raise ValueError(
            f"source {spec!r}: expected two languages or more, such as {PARALLEL}:en=corpus.en,zh=corpus.zh"
        )
    return Source(spec, name, where, options)


def _option(part: str, spec: str) -> tuple[str, str]:
    name, equals, value = part.partition("=")
    if name not in OPTIONS or not equals:
        close = difflib.get_close_matches(name, OPTIONS) or OPTIONS
        raise KeyError(f"source {spec!r} has no option {name!r}; did you mean {' or '.join(close)}?")
    return name, value


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


def find_files(source: Source, data_root: Path) -> list[Path]:
    """The files of a source, by name; none for one that goes by a name of its own. Raises: FileNotFoundError when no file matches."""
    if source.name in (*NAMED, WORLD):
        return []
    return [path for pattern in source.patterns.values() for path in _matching(pattern, data_root)]


def _matching(glob: str, data_root: Path) -> list[Path]:
    pattern = Path(glob).expanduser()
    base = Path(pattern.anchor) if pattern.is_absolute() else data_root
    paths = sorted(path for path in base.glob(str(pattern.relative_to(pattern.anchor))) if path.is_file())
    if not paths:
        raise FileNotFoundError(f"no file matches {glob!r} under {base}")
    return paths


def load_source(spec: str, data_root: Path) -> Loaded:
    """All records of a source.

    Places in records and rejections are relative to `data_root`. Raises: what `parse_source` and `find_files` raise, and DataError for
    rows and files that are not what they should be, unless the source says `damaged=salvage`.
    """
    records: list[Record] = []
    rejected: list[Rejected] = []
    damage: list[DataError] = []
    rows = 0
    source = parse_source(spec)
    for place_and_row in read_rows(source, data_root, damage.append if source.salvages else refuse):
        rows += 1
        for found in place_and_row:
            (rejected if isinstance(found, Rejected) else records).append(found)  # pyright: ignore[reportArgumentType]
    return Loaded(tuple(records), tuple(rejected), tuple(damage), rows)


def read_rows(
    source: Source, data_root: Path, damaged: Callable[[DataError], None] = refuse
) -> Iterator[Sequence[Record | Rejected]]:
    """What each row of a source gives, in order; `damaged` is told what cannot be read.

    Raises: as `load_source`, where `damaged` does.
    """
    gone = read_forgotten()
    for part in find_parts(source, data_root):
        yield from read_part(part, source, data_root, gone, damaged)


def find_parts(source: Source, data_root: Path) -> tuple[str, ...]:
    """What a source has that can be read apart: its files, in order, or the one name that it goes by.

    Files that lie side by side are one part, a line for each. Raises: as `find_files`; ValueError for files whose names do not say which
    belong together.
    """
    if source.name in (*NAMED, WORLD):
        return (source.where,)
    sides = {side: _matching(pattern, data_root) for side, pattern in source.patterns.items()}
    if any(len(paths) > 1 for paths in sides.values()):
        wild = {side: [_wild(source.patterns[side], path) for path in paths] for side, paths in sides.items()}
        first, *others = wild.values()
        if any(first != other for other in others):
            counts = ", ".join(f"{side} {len(paths)}" for side, paths in sides.items())
            reason = "expected files of each language whose names agree where the globs have a wild card"
            raise ValueError(f"source {source.spec!r}: {reason}; found {counts}")
    return tuple("\n".join(map(str, paths)) for paths in zip(*sides.values(), strict=True))


def _wild(glob: str, path: Path) -> tuple[str, ...]:
    """What stands in a path where the glob has wild cards."""
    pieces = re.split(r"(\*\*/|\*|\?|\[[^\]]*\])", str(Path(glob).expanduser()))
    pattern = "".join(
        f"({GLOB.get(piece, '.')})" if number % 2 else re.escape(piece) for number, piece in enumerate(pieces)
    )
    found = re.search(f"{pattern}$", path.as_posix())
    return found.groups() if found else (str(path),)


def read_part(
    part: str, source: Source, data_root: Path, gone: Forgotten, damaged: Callable[[DataError], None] = refuse
) -> Iterator[Sequence[Record | Rejected]]:
    """What each row of one part gives (`find_parts`), without those that are `gone`; as `read_rows`."""
    if source.name == WORLD:
        yield from ([_forgotten(record) if gone.has(record) else record] for record in _world_records(source))
        return
    method: Method = source.options.get("method", "unknown")  # pyright: ignore[reportAssignmentType]
    adapter = source.adapter
    files, rows = _opened(part, source, data_root, adapter, damaged)
    licences = find_licences(data_root)
    stated = "; ".join(dict.fromkeys(licences.get(file, UNKNOWN_LICENCE) for file in files))
    licence = source.options.get("licence", stated)
    for place, row in rows:
        provenance = Provenance(source.spec, licence, place, method)
        try:
            row = renamed(row, source, place)
            adapter = adapter or recognise(row, place)
            found = adapter.records(row, provenance)
        except DataError as error:
            damaged(error)
        else:
            yield [_forgotten(one) if gone.has(one) else one for one in found]


def _forgotten(record: Record | Rejected) -> Rejected:
    return record if isinstance(record, Rejected) else Rejected(provenance_of(record).place, "forgotten")


def _world_records(source: Source) -> Iterator[Record]:
    from rlhf_jax.worlds.instruct import InstructWorld

    numbers = {name: source.options.get(name, "0") for name in ("rows", "seed")}
    if (
        source.where != "instruct"
        or not all(number.isdecimal() for number in numbers.values())
        or numbers["rows"] == "0"
    ):
        raise ValueError(
            f"source {source.spec!r}: expected world:instruct?rows=N, perhaps with &seed=N and &split=NAME"
        )
    world = InstructWorld(seed=int(numbers["seed"]))
    yield from world.demonstrations(int(numbers["rows"]), split=source.options.get("split", "train"))  # pyright: ignore


def _opened(
    part: str, source: Source, data_root: Path, adapter: Adapter | None, damaged: Callable[[DataError], None]
) -> tuple[tuple[str, ...], Iterator[tuple[str, Row]]]:
    """(files below the data root, or name of the set; their rows with their places)."""
    if source.name in NAMED:
        name, _, split = source.where.rpartition(":")
        if not name:
            raise ValueError(f"source {source.spec!r} names no split; expected {source.name}:NAME:SPLIT")
        if source.name == "hf":
            return (name,), read_hub(name, split, data_root)
        return (name,), read_tfds(name, split, data_root, prepared_directory())
    if source.name == PARALLEL:
        opened = [_opened_file(Path(path), source, data_root, None, refuse) for path in part.split("\n")]
        sides = dict(zip(source.patterns, (rows for _, rows in opened), strict=True))
        return tuple(file for file, _ in opened), _as_far_as(
            read_parallel(sides, source.options.get("field", "text")), damaged
        )
    file, rows = _opened_file(Path(part), source, data_root, adapter, damaged)
    return (file,), rows


def _as_far_as(rows: Iterator[tuple[str, Row]], damaged: Callable[[DataError], None]) -> Iterator[tuple[str, Row]]:
    try:
        yield from rows
    except DataError as error:
        damaged(error)


def _opened_file(
    path: Path, source: Source, data_root: Path, adapter: Adapter | None, damaged: Callable[[DataError], None]
) -> tuple[str, Iterator[tuple[str, Row]]]:
    file = path.relative_to(data_root).as_posix() if path.is_relative_to(data_root) else str(path)

    def here(error: DataError) -> None:
        damaged(DataError(error.place.replace(str(path), file, 1), error.reason, error.remedy))

    return file, _placed(_open(source, path, adapter, here), path, file)


def _placed(rows: Iterator[tuple[str, Row]], path: Path, file: str) -> Iterator[tuple[str, Row]]:
    for place, row in rows:
        yield file + place.removeprefix(str(path)), row


def _open(
    source: Source, path: Path, adapter: Adapter | None, damaged: Callable[[DataError], None]
) -> Iterator[tuple[str, Row]]:
    try:
        name = source.options.get("format") or (source.name if source.name in FORMATS else None)
        name = name or (adapter.format if adapter is not None else None) or format_of(path)
    except DataError as error:
        damaged(error)
        return
    columns = tuple(filter(None, source.options.get("columns", "").split(",")))
    unit, blank = source.options.get("unit", "line"), source.name == PARALLEL
    how = Reading(columns, unit=unit, blank=blank, damaged=damaged)  # pyright: ignore[reportArgumentType]
    if adapter is not None and adapter.columns and not columns:
        with contextlib.suppress(DataError):  # said when the file is read
            _, first = next(FORMATS[name](path, Reading()), ("", {}))
            if first and not set(adapter.fields) <= set(first):
                how = dataclasses.replace(how, columns=adapter.columns)
    try:
        yield from FORMATS[name](path, how)
    except DataError as error:
        damaged(error)


def renamed(row: Row, source: Source, place: str) -> Row:
    """The row with the names that `fields=OURS:THEIRS,...` gives it. Raises: DataError where a field is not there."""
    if "fields" not in source.options:
        return row
    mapping = dict(pair.split(":") for pair in source.options["fields"].split(","))
    for theirs in mapping.values():
        if theirs not in row:
            raise DataError(
                place, f"no field {theirs!r}, which fields= names", f"the row has {', '.join(map(repr, row))}"
            )
    kept = {name: value for name, value in row.items() if name not in mapping.values()}
    return {**kept, **{ours: row[theirs] for ours, theirs in mapping.items()}}
