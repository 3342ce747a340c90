"""What a rule is, and how one is registered: it says of every record, in order, whether it stays, changes or goes."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import ModuleType

from rlhf_jax.data.clean.options import CleanOptions
from rlhf_jax.data.schema import Record, with_texts


@dataclasses.dataclass(frozen=True)
class Dropped:
    """A record that goes: why, what of it shows that, and which record (by its place in the input of the rule) stays in its stead."""

    reason: str
    excerpt: str
    kept: int | None = None


@dataclasses.dataclass(frozen=True)
class Noted:
    """A record that stays, of which something is to be counted."""

    record: Record
    note: str


Verdict = Record | Noted | Dropped
Apply = Callable[[Sequence[Record], CleanOptions], Iterable[Verdict]]
Keys = Callable[[Sequence[Record], CleanOptions], Iterable[tuple[bytes, ...]]]


def alone(records: Sequence[Record], options: CleanOptions) -> Iterator[tuple[bytes, ...]]:
    """The keys of a rule that judges each record by itself: none."""
    return (() for _ in records)


@dataclasses.dataclass(frozen=True)
class Rule:
    """One rule of cleaning: a verdict for each record, in the order of the records."""

    name: str
    apply: Apply
    # For each record, keys such that records without one in common are judged as if the other were not there, so that a rule can be
    # applied to a part of the records (data/prepared/beam.py). None: all records are needed.
    keys: Keys | None = None

    @property
    def about(self) -> str:
        """What the rule drops or changes, and why, in one line."""
        return (self.apply.__doc__ or "").strip().partition("\n")[0]


RULES: dict[str, Rule] = {}
"""Every rule by its name, in the order in which they run."""


def rule(apply: Apply, keys: Keys | None = None) -> Apply:
    """Registers a function of (records, options) as the rule of its name. Raises: ValueError for a name that is taken."""
    name = apply.__name__
    if name in RULES:
        raise ValueError(f"there is a rule {name!r} already, in {RULES[name].apply.__module__}; choose another name")
    RULES[name] = Rule(name, apply, keys)
    return apply


def changes(change: Callable[[str], str]) -> Callable[[str], str]:
    """Registers a function of one text as a rule that changes every text of a record."""

    def apply(records: Sequence[Record], options: CleanOptions) -> Iterator[Verdict]:
        return (with_texts(record, change) for record in records)

    apply.__name__, apply.__doc__, apply.__module__ = change.__name__, change.__doc__, change.__module__
    rule(apply, alone)
    return change


def drops(why: Callable[[Record, CleanOptions], Dropped | None]) -> Callable[[Record, CleanOptions], Dropped | None]:
    """Registers a function of one record, which says why it is to be dropped if it is, as a rule."""

    def apply(records: Sequence[Record], options: CleanOptions) -> Iterator[Verdict]:
        return (why(record, options) or record for record in records)

    apply.__name__, apply.__doc__, apply.__module__ = why.__name__, why.__doc__, why.__module__
    rule(apply, alone)
    return why


def chosen_rules(names: Iterable[str]) -> list[Rule]:
    """The rules of these names, in the order in which they run. Raises: KeyError with the closest names."""
    wanted = set(names)
    for name in wanted:
        if name not in RULES:
            close = difflib.get_close_matches(name, RULES) or list(RULES)
            raise KeyError(f"no rule of cleaning {name!r}; did you mean {' or '.join(close)}?")
    return [RULES[name] for name in RULES if name in wanted]


def needed(package: str, rule: str) -> ModuleType:
    """A package of the extra `data`, imported when a rule first needs it. Raises: ValueError where it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        reason = f"the rule {rule} needs {package}, which is not installed"
        raise ValueError(f"{reason}; pip install 'rlhf_jax[data]', or leave the rule out") from error
