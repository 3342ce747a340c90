"""Cleaning a list of records: every rule in turn, and a report of all that they did."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable

# isort: off
# In the order in which their rules run.
from rlhf_jax.data.clean import text, replies, refusals, endings, limits, duplicates, near, contamination

# isort: on
from rlhf_jax.data.clean.options import UNTOLD, CleanOptions
from rlhf_jax.data.clean.registry import RULES, Dropped, Noted, Rule, chosen_rules
from rlhf_jax.data.clean.report import Example, Report, RuleReport
from rlhf_jax.data.schema import Record, provenance_of, texts_of

STEPS = (text, replies, refusals, endings, limits, duplicates, near, contamination)
"""The modules of rules."""

DEFAULT = tuple(RULES)
"""The names of the rules that ship, in the order in which they run."""

EXCERPT = 120  # characters


@dataclasses.dataclass(frozen=True)
class Cleaned:
    """The records that are left, in their order, and what became of the others."""

    records: tuple[Record, ...]
    report: Report
    numbers: tuple[int, ...]  # of these records among those given


@dataclasses.dataclass(frozen=True)
class Numbered:
    """A record with its number among those given to `clean`."""

    number: int
    record: Record

    @property
    def place(self) -> str:
        return provenance_of(self.record).place


def clean(records: Iterable[Record], rules: Iterable[str] = DEFAULT, options: CleanOptions = UNTOLD) -> Cleaned:
    """The records that the rules keep, as they change them, and the report.

    Records keep their order, and nothing but the arguments decides. Rules run in the order of RULES, whatever order they are named in,
    since each counts on those before it: duplicates are told after texts were repaired. Raises: KeyError for an unknown rule.
    """
    left = [Numbered(number, record) for number, record in enumerate(records)]
    count = len(left)
    reports = []
    for rule in chosen_rules(rules):
        left, report = _applied(rule, left, options)
        reports.append(report)
    numbers = tuple(numbered.number for numbered in left)
    return Cleaned(tuple(numbered.record for numbered in left), Report(count, tuple(reports)), numbers)


def _applied(rule: Rule, given: list[Numbered], options: CleanOptions) -> tuple[list[Numbered], RuleReport]:
    kept, examples, changed = [], [], 0
    reasons: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    verdicts = rule.apply([numbered.record for numbered in given], options)
    for before, verdict in zip(given, verdicts, strict=True):  # strict: every record has its verdict
        example = None
        if isinstance(verdict, Dropped):
            reasons[verdict.reason] += 1
            instead = None if verdict.kept is None else given[verdict.kept]
            kept_place = None if instead is None else f"{instead.place} (record {instead.number})"
            example = Example(before.place, before.number, verdict.reason, shortened(verdict.excerpt), kept_place)
        else:
            if isinstance(verdict, Noted):
                notes[verdict.note] += 1
                verdict = verdict.record
            if verdict is not before.record:
                changed += 1
                example = Example(before.place, before.number, "changed", _difference(before.record, verdict))
            kept.append(Numbered(before.number, verdict))
        if example is not None and len(examples) < options.examples:
            examples.append(example)
    report = RuleReport(
        rule.name, rule.about, len(given), reasons.total(), changed, _most(reasons), _most(notes), tuple(examples)
    )
    return kept, report


def _most(counts: Counter[str]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def shortened(text: str) -> str:
    """The beginning of a text, as much as a report shows."""
    return text if len(text) <= EXCERPT else text[: EXCERPT - 1] + "…"


def _difference(before: Record, after: Record) -> str:
    """Where two records first differ, with what stands around it, invisible characters written out."""
    for old, new in zip(texts_of(before), texts_of(after), strict=True):
        if old.text != new.text:
            pairs = enumerate(zip(old.text, new.text, strict=False))
            first = next((at for at, (a, b) in pairs if a != b), min(len(old.text), len(new.text)))
            shown = slice(max(0, first - 20), first + 25)
            return f"{ascii_controls(old.text[shown])} -> {ascii_controls(new.text[shown])}"
    return "the key of the prompt"


def ascii_controls(text: str) -> str:
    """The text, with characters that cannot be seen written as escapes."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
