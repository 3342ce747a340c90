"""The figures of runs as tables of words, for the terminal and for the page alike."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from rlhf_jax.report.progress import duration
from rlhf_jax.report.runs import Figure

POLICIES = ("untrained", "sft", "best_of_n", "preference", "ilql", "ppo")
OF_DATA = ("examples", "cut_prompts", "cut_replies", "rejected_rows")  # of a stage, not of its policy
SECONDS = "seconds/"
SPREADS = ("_error", "_low", "_high")  # stand beside their figure, never as figures of their own


@dataclasses.dataclass(frozen=True)
class FigureTable:
    """Rows of words under columns of words; the first column names the row."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def figure_tables(figures: Mapping[str, Figure]) -> list[FigureTable]:
    """The policies side by side, then everything else; tables without rows are left out."""
    names = main_names(figures)
    by_policy: dict[str, dict[str, str]] = {}
    for name in names:
        policy, _, rest = name.partition("/")
        if policy in POLICIES and rest not in OF_DATA:
            by_policy.setdefault(rest, {})[policy] = name
    # A figure that one policy alone has says nothing beside empty cells.
    compared = {rest: found for rest, found in by_policy.items() if len(found) > 1}
    present = [policy for policy in POLICIES if any(policy in found for found in compared.values())]
    taken = {name for found in compared.values() for name in found.values()}
    policies = [
        (rest, *(shown(figures, found[policy]) if policy in found else "–" for policy in present))
        for rest, found in compared.items()
    ]
    matrices = alike(figures, [name for name in names if name not in taken])
    taken |= {f"{row[0]}/{column}" for table in matrices for row in table.rows for column in table.columns[1:]}
    others = [(name, shown(figures, name)) for name in names if name not in taken]
    tables = [
        FigureTable("Policies", ("figure", *present), tuple(policies)),
        *matrices,
        FigureTable("Figures", ("figure", "value"), tuple(others)),
    ]
    return [table for table in tables if table.rows]


def alike(figures: Mapping[str, Figure], names: Sequence[str]) -> list[FigureTable]:
    """Tables of figures called ROW/COLUMN, for every set of two columns or more that at least two rows have."""
    columns: dict[str, list[str]] = {}
    for name in names:
        row, slash, column = name.partition("/")
        if slash:
            columns.setdefault(row, []).append(column)
    rows: dict[tuple[str, ...], list[str]] = {}
    for row, found in columns.items():
        rows.setdefault(tuple(found), []).append(row)
    return [
        FigureTable(
            "Side by side",
            ("", *found),
            tuple((row, *(shown(figures, f"{row}/{column}") for column in found)) for row in there),
        )
        for found, there in rows.items()
        if len(found) > 1 and len(there) > 1
    ]


def side_by_side(runs: Mapping[str, Mapping[str, Figure]]) -> FigureTable:
    """Every main figure of any run, with a column per run."""
    names = list(dict.fromkeys(name for figures in runs.values() for name in main_names(figures)))
    rows = [(n, *(shown(figures, n) if n in figures else "–" for figures in runs.values())) for n in names]
    return FigureTable("Figures", ("figure", *runs), tuple(rows))


def main_names(figures: Mapping[str, Figure]) -> list[str]:
    """The figures that are results: no times, and no spreads of another figure."""
    return [
        name
        for name in figures
        if not name.startswith(SECONDS)
        and not any(name.endswith(end) and name.removesuffix(end) in figures for end in SPREADS)
    ]


def seconds_table(figures: Mapping[str, Figure]) -> FigureTable:
    """How long each stage took, on average over seeds."""
    rows = [(n.removeprefix(SECONDS), duration(figures[n].mean)) for n in figures if n.startswith(SECONDS)]
    return FigureTable("Time", ("stage", "time per seed"), tuple(rows))


def what_spread_means(seeds: int) -> str:
    """The caption of a table of figures."""
    if seeds > 1:
        return f"Means over {seeds} seeds ± one standard error over seeds; without ± where all seeds agree."
    return "One seed: ± is one standard error over prompts, [ ] a 95 % interval over pairs."


def shown(figures: Mapping[str, Figure], name: str) -> str:
    """A figure with its spread: over seeds where there are several, else over the prompts or pairs of the one seed."""
    figure = figures[name]
    if len(figure.values) > 1:
        return with_error(figure.mean, figure.error)
    if f"{name}_error" in figures:
        return with_error(figure.mean, figures[f"{name}_error"].mean)
    if f"{name}_low" in figures and f"{name}_high" in figures:
        low, high = (figures[f"{name}{end}"].mean for end in ("_low", "_high"))
        return f"{number(figure.mean)} [{number(low)}, {number(high)}]"
    return number(figure.mean)


def with_error(mean: float, error: float) -> str:
    """A mean to the place of the error's second digit: "0.512 ± 0.014"; alone where the error is 0 or not known."""
    if not math.isfinite(error) or not math.isfinite(mean) or error == 0:
        return number(mean)
    places = max(0, 1 - math.floor(math.log10(error)))
    if places > 6:
        return f"{mean:.6f} ± {error:.0e}"
    return f"{mean:,.{places}f} ± {error:,.{places}f}"


def number(value: float) -> str:
    """Four significant digits; whole numbers in full, with thousands apart."""
    if math.isfinite(value) and float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.4g}"


def interval(low_high: Sequence[float] | None) -> str:
    """Both ends in brackets, or a dash where no error is known."""
    return "–" if low_high is None else f"[{number(low_high[0])}, {number(low_high[1])}]"
