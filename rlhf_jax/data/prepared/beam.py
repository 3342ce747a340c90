"""What `prepare` does, as a pipeline of Apache Beam: on the cores of one machine, or on the cluster that Beam's options name.

The set has the same records in the same order, and so the same digest. Each file is read by one worker, and masked and cleaned there by
the rules that judge records one by one. Of a rule that compares records, each record tells keys (`Rule.keys`); records are linked where
they have one in common, and what is linked is judged together, by the rule itself: only the numbers of such records come to one place.
Workers read the data root, and write the set, as files: all of them must see these folders.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import itertools
import json
import logging
import pickle
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

from rlhf_jax.config import Curation
from rlhf_jax.config.data import AS_IT_IS
from rlhf_jax.data.adapters import Rejected
from rlhf_jax.data.adapters.stored import from_row, to_row, traced
from rlhf_jax.data.clean import CleanOptions, Dropped, Noted, Rule
from rlhf_jax.data.clean.registry import alone, chosen_rules
from rlhf_jax.data.clean.report import told
from rlhf_jax.data.erasure.forgotten import Forgotten, read_forgotten
from rlhf_jax.data.mixtures import allowed_and_masked, clean_options
from rlhf_jax.data.prepared.prepare import NOWHERE, nothing_left
from rlhf_jax.data.prepared.sets import VERSION, Prepared, counted, made_once, stored, write_set
from rlhf_jax.data.readers import DataError, Row
from rlhf_jax.data.readers.named import read_tfds
from rlhf_jax.data.readers.rows import refuse
from rlhf_jax.data.schema import Document, Record
from rlhf_jax.data.sources import Source, find_parts, parse_source, read_part
from rlhf_jax.files import write_atomic

PIECE = 1_000  # records that go through the pipeline together
QUIET = "--default_sdk_harness_log_level=ERROR"  # unless the options say otherwise
# Files by which workers and the process that asked talk.
OPTIONS, ERROR, COUNTS = "options.pickle", "error.txt", "counts.json"
UNPARSED = "Discarding unparseable args"  # what Beam says of options that it does not know

Number: TypeAlias = tuple[int, int]
"""Of a record: (of the part of the source, in that part)."""
Piece: TypeAlias = list[tuple[Number, Record]]
Count: TypeAlias = tuple[tuple[str, Any], int]
"""((what, of what), how many)."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What every worker is told."""

    source: Source
    data_root: Path
    work: Path
    curation: Curation
    gone: Forgotten

    @property
    def options(self) -> CleanOptions:
        """What the rules are told, which may be large."""
        return _options(self.work / OPTIONS)


@lru_cache(maxsize=1)
def _options(path: Path) -> CleanOptions:
    return pickle.loads(path.read_bytes())


def prepare_with_beam(
    spec: str,
    name: str,
    data_root: Path,
    into: Path,
    curation: Curation = AS_IT_IS,
    beam_options: Sequence[str] = (),
) -> Prepared:
    """Prepares a source as `prepare` does, by the engine that `beam_options` ("NAME=VALUE") name; what was killed begins anew.

    Raises: as `prepare`; ValueError where Beam is not installed or does not know an option, and for a rule that needs all records at once.
    """
    for rule in chosen_rules(curation.clean):
        if rule.keys is None:
            reason = f"the rule {rule.name} looks at all records, and has no keys by which Beam could tell some of them apart"
            raise ValueError(f"{reason}; leave it out, prepare without Beam, or register it with keys")
    settings = _settings(beam_options)

    def make(work: Path, written: Path) -> dict[str, Any]:
        source = parse_source(spec)
        plan = Plan(source, data_root, work, curation, read_forgotten())
        write_atomic(work / OPTIONS, pickle.dumps(clean_options(curation, data_root)))
        parts = list(enumerate(find_parts(source, data_root)))
        (work / ERROR).unlink(missing_ok=True)
        write_set(lambda self, manager, pipeline: {"train": _kept(pipeline, parts, plan)}, name, written, settings)
        counts = json.loads((work / COUNTS).read_text(encoding="utf-8"))
        if (work / ERROR).is_file():
            raise ValueError((work / ERROR).read_text(encoding="utf-8"))
        if not counts["records"]:
            raise nothing_left(spec, counts["left_out"])
        rows = read_tfds(str(written / name / VERSION), "train", data_root, into)
        return {**counts, **counted(to_row(from_row(row, NOWHERE)) for _, row in rows)}

    return made_once(spec, name, data_root, into, repr(curation), make)


def _beam() -> Any:
    """Apache Beam, which has an environment of its own. Raises: ValueError where it is not installed."""
    try:
        return importlib.import_module("apache_beam")
    except ImportError as error:
        remedy = "make an environment of its own and pip install 'rlhf_jax[beam]' there (docs/data.md)"
        raise ValueError(f"Apache Beam is not installed; {remedy}") from error


def _settings(given: Sequence[str]) -> Any:
    """The options of Beam as TFDS is given them. Raises: ValueError where Beam is not installed, or does not know one."""
    beam = _beam()
    import tensorflow_datasets as tfds

    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    flags, complaints = [QUIET, *(f"--{option}" for option in given)], io.StringIO()
    unparsed = logging.StreamHandler(complaints)
    about_options = logging.getLogger("apache_beam.options.pipeline_options")
    about_options.setLevel(logging.WARNING)
    about_options.addHandler(unparsed)
    options = None
    try:
        with contextlib.redirect_stderr(complaints):  # argparse says there what it does not take, and ends the process
            asked = beam.options.pipeline_options.PipelineOptions(flags)
            asked.get_all_options()
            options = asked
    except SystemExit:
        pass
    finally:
        about_options.removeHandler(unparsed)
        about_options.setLevel(logging.ERROR)
    said = complaints.getvalue().strip()
    if options is None or UNPARSED in said:
        reason = f"--beam {' '.join(given)}: {said.splitlines()[-1]}"
        raise ValueError(f"{reason}; expected options of Beam as NAME=VALUE, such as runner=DirectRunner")
    library: Any = tfds
    return library.download.DownloadConfig(beam_options=options)


def _kept(pipeline: Any, parts: Sequence[tuple[int, str]], plan: Plan) -> Any:
    """The pipeline: the rows that are kept, each with the key by which it is ordered."""
    beam = _beam()
    counts = []

    def counting(output: Any) -> Any:
        counts.append(output.counts)
        return output.pieces

    def stage(function: Any, *arguments: Any) -> Any:
        return beam.FlatMap(_careful, function, plan, *arguments).with_outputs("counts", main="pieces")

    files = pipeline | "Parts" >> beam.Create(parts) | beam.Reshuffle()
    pieces = counting(files | "Read" >> stage(_read))
    read = counts[0]
    for rules in _stages(chosen_rules(plan.curation.clean)):
        names = "+".join(rule.name for rule in rules)
        if rules[0].keys is alone:
            pieces = counting(pieces | names >> stage(_judged, rules))
        else:
            pieces = _compared(pieces, rules[0], plan, counting, stage)
    starts = read | "All" >> beam.combiners.ToList() | "Starts" >> beam.Map(_starts)
    every = counts | "Every" >> beam.Flatten() | "Sums" >> beam.CombinePerKey(sum) | "Counts" >> beam.combiners.ToList()
    kept = beam.pvalue.AsSingleton(pieces | "Lengths" >> beam.Map(len) | "Kept" >> beam.CombineGlobally(sum))
    _ = every | "Tell" >> beam.Map(_tell, kept, plan.work)
    rows = pieces | "Rows" >> beam.FlatMap(_careful, _rows, plan, beam.pvalue.AsSingleton(starts))
    instead = pipeline | "Nothing" >> beam.Create([1 << 40]) | "Instead" >> beam.FlatMap(_instead, plan, kept)
    return (rows, instead) | "Set" >> beam.Flatten()


def _stages(rules: Iterable[Rule]) -> Iterator[tuple[Rule, ...]]:
    """The rules in their order: those in a row that judge records one by one together, each other one by itself."""
    for each, group in itertools.groupby(rules, key=lambda rule: rule.keys is alone):
        found = tuple(group)
        yield from (found,) if each else ((rule,) for rule in found)


def _compared(pieces: Any, rule: Rule, plan: Plan, counting: Any, stage: Any) -> Any:
    """The pieces behind a rule that compares records, for which those that are linked were brought together."""
    beam = _beam()

    def named(what: str) -> str:
        return f"{rule.name}: {what}"

    groups = (
        pieces
        | named("Keys") >> beam.FlatMap(_careful, _keyed, plan, rule)
        | named("Meet") >> beam.GroupByKey()
        | named("Link") >> beam.FlatMap(_links)
        | named("Links") >> beam.combiners.ToList()
        | named("Groups") >> beam.Map(_groups)
    )
    divided = pieces | named("Divide") >> beam.FlatMap(_divided, beam.pvalue.AsSingleton(groups)).with_outputs(
        "linked", main="alone"
    )
    groups = divided.linked | named("Gather") >> beam.GroupByKey() | named("Order") >> beam.Map(_in_order)
    # A rule may have something to say of a record that is like no other, too.
    return counting((divided.alone, groups) | named("Both") >> beam.Flatten() | rule.name >> stage(_judged, (rule,)))


def _careful(element: Any, function: Callable[..., Iterator[Any]], plan: Plan, *arguments: Any) -> Iterator[Any]:
    """What a function makes of an element. What is wrong with what the user gave is left where the process that asked finds it, and all
    workers stop: an engine would try again what raises, and wrap what was raised in its own.
    """
    try:
        if not _stopped(plan):
            yield from function(element, plan, *arguments)
    except (ValueError, KeyError, OSError) as error:
        said = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
        if not _stopped(plan):  # one that came later is another
            write_atomic(plan.work / ERROR, said or type(error).__name__)


def _stopped(plan: Plan) -> bool:
    return (plan.work / ERROR).is_file()


def _read(part: tuple[int, str], plan: Plan) -> Iterator[Any]:
    """The pieces of one part, masked, each record under the id that its file gives it; and counts of what else was there."""
    tagged = _beam().pvalue.TaggedOutput
    number, where = part
    damage: list[DataError] = []
    counts: Counter[tuple[str, Any]] = Counter({("records", number): 0})
    damaged = damage.append if plan.source.salvages else refuse
    records = _records(read_part(where, plan.source, plan.data_root, plan.gone, damaged), counts)
    while not _stopped(plan) and (chunk := list(itertools.islice(records, PIECE))):
        # As they come out of the pieces of `prepare`: with their ids, and numbers as JSON has them.
        known = [from_row(json.loads(json.dumps(to_row(record))), NOWHERE) for record in chunk]
        masked, _ = allowed_and_masked(known, plan.curation)
        start = counts["records", number]
        counts["records", number] += len(chunk)
        yield [((number, start + place), record) for place, record in enumerate(masked)]
        print(f"read {start + len(chunk):,} records of {', '.join(where.splitlines())}", file=sys.stderr, flush=True)
    for place, said in enumerate(damage):
        counts["damage", (number, place, str(said))] = 1
    yield from (tagged("counts", count) for count in counts.items())


def _records(rows: Iterable[Sequence[Record | Rejected]], counts: Counter[tuple[str, Any]]) -> Iterator[Record]:
    for found in rows:
        counts["rows", ""] += 1
        for one in found:
            if isinstance(one, Rejected):
                counts["left_out", one.reason] += 1
            else:
                yield one


def _judged(piece: Piece, plan: Plan, rules: Sequence[Rule]) -> Iterator[Any]:
    """What rules leave of a piece, and counts of what they drop."""
    tagged = _beam().pvalue.TaggedOutput
    counts: Counter[tuple[str, Any]] = Counter()
    for rule in rules:
        verdicts = list(rule.apply([record for _, record in piece], plan.options))
        counts.update(("left_out", told(rule.name, v.reason)) for v in verdicts if isinstance(v, Dropped))
        after = (verdict.record if isinstance(verdict, Noted) else verdict for verdict in verdicts)
        piece = [
            (number, record if record is before else traced(record, before))
            for (number, before), record in zip(piece, after, strict=True)
            if not isinstance(record, Dropped)
        ]
    if piece:
        yield piece
    yield from (tagged("counts", count) for count in counts.items())


def _keyed(piece: Piece, plan: Plan, rule: Rule) -> Iterator[tuple[bytes, Number]]:
    keys = rule.keys([record for _, record in piece], plan.options)  # pyright: ignore[reportOptionalCall]
    for (number, _), its_keys in zip(piece, keys, strict=True):
        yield from ((key, number) for key in its_keys)


def _links(met: tuple[bytes, Iterable[Number]]) -> Iterator[tuple[Number, Number]]:
    """As few links as make one group of the records that have a key in common."""
    numbers = iter(met[1])
    first = next(numbers)
    yield from ((first, other) for other in numbers)


def _groups(links: Iterable[tuple[Number, Number]]) -> dict[Number, Number]:
    """The group of each linked record, called by one of its members."""
    towards: dict[Number, Number] = {}

    def root(number: Number) -> Number:
        while (above := towards.setdefault(number, number)) != number:
            towards[number] = number = towards[above]
        return number

    for first, second in links:
        towards[root(first)] = root(second)
    return {number: root(number) for number in list(towards)}


def _divided(piece: Piece, groups: dict[Number, Number]) -> Iterator[Any]:
    tagged = _beam().pvalue.TaggedOutput
    if alone := [numbered for numbered in piece if numbered[0] not in groups]:
        yield alone
    for number, record in piece:
        if number in groups:
            yield tagged("linked", (groups[number], (number, record)))


def _in_order(gathered: tuple[Number, Iterable[tuple[Number, Record]]]) -> Piece:
    return sorted(gathered[1], key=lambda numbered: numbered[0])


def _starts(counts: Iterable[Count]) -> dict[int, int]:
    """How many records were read in the parts before each."""
    lengths = sorted((of_what, count) for (what, of_what), count in counts if what == "records")
    before = itertools.accumulate((count for _, count in lengths), initial=0)
    return dict(zip((part for part, _ in lengths), before, strict=False))


def _rows(piece: Piece, plan: Plan, starts: dict[int, int]) -> Iterator[tuple[int, Row]]:
    for (part, place), record in piece:
        yield starts[part] + place, stored(to_row(record))


def _instead(key: int, plan: Plan, kept: int) -> Iterator[tuple[int, Row]]:
    """A row where there may be no other, as TFDS can write no set without any; such a set is taken away again."""
    if not kept or _stopped(plan):
        yield key, stored(to_row(Document("", NOWHERE)))


def _tell(counts: Iterable[Count], kept: int, work: Path) -> None:
    """Leaves the counts for the process that asked."""
    found = sorted(counts, key=str)
    about = {
        "records": kept,
        "rows": sum(count for (what, _), count in found if what == "rows"),
        "left_out": {reason: count for (what, reason), count in found if what == "left_out"},
        "damage": [said for *_, said in sorted(of_what for (what, of_what), _ in found if what == "damage")],
    }
    write_atomic(work / COUNTS, json.dumps(about))
