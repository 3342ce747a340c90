"""What cleaning did: for every rule the records that it met, dropped and changed, with reasons and examples."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Example:
    """One record that a rule dropped or changed: where it came from, which of all records it was, and why."""

    place: str
    number: (
        int  # of the record among those given to `clean`, from 0, as places of some formats name only a file and a line
    )
    reason: str
    excerpt: str
    kept: str | None = None  # place and number of the record that stays in its stead


@dataclasses.dataclass(frozen=True)
class RuleReport:
    """What one rule did."""

    name: str
    about: str
    records: int  # that it met: those that the rules before it kept
    dropped: int
    changed: int
    reasons: tuple[tuple[str, int], ...]  # of dropping, most frequent first; they sum to `dropped`
    notes: tuple[tuple[str, int], ...]  # of records that it kept
    examples: tuple[Example, ...]

    @property
    def kept(self) -> int:
        """Records that went on to the next rule."""
        return self.records - self.dropped


def told(rule: str, reason: str) -> str:
    """Why a record went, in one line."""
    return f"{rule}: {reason}"


@dataclasses.dataclass(frozen=True)
class Report:
    """What a list of records went through. Of `records`, each was kept or dropped by exactly one rule."""

    records: int
    rules: tuple[RuleReport, ...]

    @property
    def dropped(self) -> int:
        return sum(rule.dropped for rule in self.rules)

    @property
    def kept(self) -> int:
        return self.records - self.dropped

    def left_out(self) -> dict[str, int]:
        """How many records went, by the rule and its reason."""
        return {told(rule.name, reason): count for rule in self.rules for reason, count in rule.reasons}

    def of(self, name: str) -> RuleReport:
        """What the rule of that name did. Raises: KeyError where it did not run."""
        found = {rule.name: rule for rule in self.rules}
        if name not in found:
            raise KeyError(f"the rule {name!r} did not run; {', '.join(found)} did")
        return found[name]

    def as_json(self) -> dict[str, Any]:
        """The same as objects, arrays, texts and numbers."""
        return {"records": self.records, "kept": self.kept, "rules": [dataclasses.asdict(rule) for rule in self.rules]}

    def markdown(self) -> str:
        """A table of the rules, and the reasons and examples of those that did something."""
        lines = ["| rule | records | changed | dropped |", "|---|---|---|---|"]
        lines += [f"| {rule.name} | {rule.records:,} | {rule.changed:,} | {rule.dropped:,} |" for rule in self.rules]
        lines.append(f"| **kept** | {self.kept:,} | | {self.dropped:,} |")
        for rule in self.rules:
            if not (rule.dropped or rule.changed or rule.notes):
                continue
            lines += ["", f"**{rule.name}**: {rule.about}", ""]
            lines += [f"- {count:,} dropped: {reason}" for reason, count in rule.reasons]
            lines += [f"- {count:,} kept: {note}" for note, count in rule.notes]
            lines += [f"- e.g. {_told(example)}" for example in rule.examples]
        return "\n".join(lines) + "\n"


def _told(example: Example) -> str:
    instead = f", kept: {example.kept}" if example.kept is not None else ""
    # Two backticks, since the text may have one; it is one line of a list, so no line of its own may begin in it.
    text = example.excerpt.replace("`", "'").replace("\n", "\\n")
    return f"{example.place} (record {example.number}): {example.reason}{instead}: ``{text}``"
