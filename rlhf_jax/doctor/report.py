"""A check: what was measured, what is allowed, and the verdict; and how they are run and shown."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import jax

if TYPE_CHECKING:
    from rich.table import Table

Verdict = Literal["holds", "fails", "reported"]
STYLES: dict[Verdict, str] = {"holds": "green", "fails": "bold red", "reported": "dim"}


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the table."""

    name: str
    measured: str
    bound: str
    verdict: Verdict


Examination = Callable[[], Iterator[Check]]


def at_most(name: str, measured: Any, bound: float) -> Check:
    """Holds where the measured number is at most `bound`; a nan fails."""
    value = float(measured)
    return Check(name, f"{value:.3g}", f"<= {bound:g}" if bound else "0", "holds" if value <= bound else "fails")


def equal(name: str, measured: Any, expected: Any) -> Check:
    """Holds where both are the same."""
    return Check(name, str(measured), str(expected), "holds" if measured == expected else "fails")


def reported(name: str, measured: Any, why: str = "no bound") -> Check:
    """A number worth seeing that nothing is asked of."""
    shown = f"{float(measured):.3g}" if isinstance(measured, float | jax.Array) else str(measured)
    return Check(name, shown, why, "reported")


def run(examination: Examination) -> Iterator[Check]:
    """The checks of an examination; one that breaks off is a check that fails, by what it raised, and so is one without checks.

    Products of float32 matrices run in full precision: accelerators round their inputs unless told otherwise.
    """
    with jax.default_matmul_precision("highest"):
        checked = False
        try:
            for check in examination():
                checked = True
                yield check
            if not checked:
                yield Check(title(examination), "no checks", "at least one", "fails")
        except Exception as error:
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            yield Check(title(examination), said[:200], "runs", "fails")


def title(examination: Examination) -> str:
    """What an examination is about: the first line of its docstring, without the full stop."""
    return (inspect.getdoc(examination) or "an examination").splitlines()[0].rstrip(".")


def table(checks: Iterable[Check]) -> Table:
    """The checks as a table of check, measured, bound, verdict."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("check", "measured", "bound", "verdict"):
        shown.add_column(column)
    for check in checks:
        verdict = Text(check.verdict, style=STYLES[check.verdict])
        shown.add_row(Text(check.name), Text(check.measured), Text(check.bound), verdict)
    return shown
