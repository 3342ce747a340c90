"""What an adapter is, how one is registered, and how the right one is told by the fields of a row."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

from rlhf_jax.data.readers import DataError, Row
from rlhf_jax.data.schema import Provenance, Record


class Rejected(NamedTuple):
    """A row left out, and why."""

    place: str
    reason: str


class Unusable(Exception):
    """Raised by an adapter for a row that is well formed but of no use, such as two identical replies; the row is `Rejected`."""


Parsed = Record | list[Record | Rejected]
Parse = Callable[[Row, Provenance], Parsed]
AnyParse = TypeVar("AnyParse", bound=Parse)


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What the rows of one layout mean."""

    name: str
    parse: Parse
    fields: tuple[str, ...]  # that every row of this layout has
    columns: tuple[str, ...] = ()  # of tables of this layout that come without a header
    format: str | None = None  # that files of this layout are read as, whatever they look like

    def records(self, row: Row, provenance: Provenance) -> list[Record | Rejected]:
        """What a row gives, one or several. Raises: DataError for a row of another layout."""
        try:
            parsed = self.parse(row, provenance)
        except Unusable as reason:
            return [Rejected(provenance.place, str(reason))]
        return parsed if isinstance(parsed, list) else [parsed]


ADAPTERS: dict[str, Adapter] = {}


def adapter(
    name: str, *fields: str, columns: Iterable[str] = (), format: str | None = None
) -> Callable[[AnyParse], AnyParse]:
    """Registers `parse(row, provenance) -> records` as the adapter of that name, for rows that have these fields.

    Raises: ValueError for a name that is taken.
    """

    def register(parse: AnyParse) -> AnyParse:
        if name in ADAPTERS:
            raise ValueError(
                f"there is an adapter {name!r} already, {ADAPTERS[name].parse.__module__}; choose another name"
            )
        ADAPTERS[name] = Adapter(name, parse, fields, tuple(columns), format)
        return parse

    return register


def get_adapter(name: str) -> Adapter:
    """The adapter of that name. Raises: KeyError with the closest names."""
    if name not in ADAPTERS:
        close = difflib.get_close_matches(name, ADAPTERS) or sorted(ADAPTERS)
        raise KeyError(f"no adapter {name!r}; did you mean {' or '.join(close)}?")
    return ADAPTERS[name]


def recognise(row: Row, place: str) -> Adapter:
    """The adapter that a row is for: the one with the most fields among those whose fields the row has.

    Raises: DataError where there is none, or several that are as good.
    """
    fitting = [
        known for known in ADAPTERS.values() if known.fields and known.format is None and set(known.fields) <= set(row)
    ]
    most = max((len(known.fields) for known in fitting), default=0)
    best = [known for known in fitting if len(known.fields) == most]
    if len(best) == 1:
        return best[0]
    fields = ", ".join(map(repr, row))
    if not best:
        remedy = f"name the adapter, ADAPTER:PATH or ...?as=ADAPTER, of {', '.join(sorted(ADAPTERS))}, or map fields by ?fields=OURS:THEIRS"
        raise DataError(place, f"no known layout has the fields {fields}", remedy)
    names = " or ".join(known.name for known in best)
    raise DataError(place, f"the fields {fields} could be {names}", "say which, by ...?as=ADAPTER")
