"""The page of a sweep, from the run directories of its cells: a table of means with 95 % intervals, a plot of each figure, and all of it as
CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rlhf_jax.report.figures import interval, main_names, number
from rlhf_jax.report.html import Plot, Section, Table, Text, report
from rlhf_jax.report.plots import Intervals, interval_plot
from rlhf_jax.report.run_report import HEADLINES
from rlhf_jax.report.runs import Figure, RunFiles

LOGARITHMIC = 10  # from this ratio of largest to smallest value on, an axis is drawn by logarithms


@dataclasses.dataclass(frozen=True)
class SweepFiles:
    """A sweep's cells in order, each a run: the values of its axes, what it wrote, and why seeds of it failed."""

    name: str
    axes: Mapping[str, Sequence[str]]  # path of the field -> its values
    values: Sequence[tuple[str, ...]]  # of each cell, one for each axis
    runs: Sequence[RunFiles]
    failed: Sequence[Mapping[int, str]]  # of each cell: seed -> the error's last line


def mean_with_interval(figure: Figure) -> tuple[float, float]:
    """(mean over seeds, half the width of its 95 % interval by Student's t; nan for one seed)."""
    if len(figure.values) < 2:
        return figure.mean, math.nan
    from scipy.stats import t

    return figure.mean, float(t.ppf(0.975, len(figure.values) - 1)) * figure.error


def shown_figures(sweep: SweepFiles, asked: Sequence[str] = ()) -> list[str]:
    """The figures asked for; else the headlines that some cell has; else those that are not the same in all cells.

    Raises: KeyError for a figure that no cell has.
    """
    known = list(dict.fromkeys(name for run in sweep.runs for name in main_names(run.figures)))
    for name in asked:
        if name not in known:
            raise KeyError(f"no figure {name!r} in this sweep; there are {', '.join(known) or 'none yet'}")
    if asked:
        return list(asked)
    headlines = [name for name in HEADLINES if name in known]
    differing = [name for name in known if len({value for run in sweep.runs for value in _values(run, name)}) > 1]
    return headlines or differing


def sweep_table(sweep: SweepFiles, names: Sequence[str]) -> Table:
    """A row per cell: its values, how many seeds finished and failed, and of each figure the mean with its interval."""
    rows = []
    for values, run, failed in zip(sweep.values, sweep.runs, sweep.failed, strict=True):
        seeds = f"{run.finished}" + (f", {len(failed)} failed" if failed else "")
        rows.append([*values, seeds, *(_shown(run, name) for name in names)])
    caption = "Means over seeds with 95 % intervals (Student's t); without where there is one seed."
    return Table([*sweep.axes, "seeds", *names], rows, caption)


def sweep_plots(sweep: SweepFiles, names: Sequence[str]) -> list[Plot]:
    """Of each figure a plot over the axis with the most values, with a line for each combination of the others."""
    if not sweep.axes:
        return []
    along = max(range(len(sweep.axes)), key=lambda axis: len(list(sweep.axes.values())[axis]))
    path, ticks = list(sweep.axes)[along], list(list(sweep.axes.values())[along])
    places, logx = _places(ticks)
    plots = []
    for name in names:
        lines: dict[str, list[tuple[float, float, float]]] = {}
        for values, run in zip(sweep.values, sweep.runs, strict=True):
            label = ", ".join(f"{a}={v}" for n, (a, v) in enumerate(zip(sweep.axes, values, strict=True)) if n != along)
            if name in run.figures:
                place = places[ticks.index(values[along])]
                lines.setdefault(label, []).append((place, *mean_with_interval(run.figures[name])))
        if not lines:
            continue
        series = {
            label: Intervals(*map(np.array, zip(*sorted(points), strict=True))) for label, points in lines.items()
        }
        words = None if places != list(range(len(ticks))) or _numbers(ticks) else ticks
        plots.append(
            Plot(interval_plot(series, title=name, xlabel=path, words=words, logx=logx), "95 % intervals over seeds")
        )
    return plots


def sweep_report(sweep: SweepFiles, names: Sequence[str]) -> str:
    """The page: table, plots, and what went wrong."""
    sections = [Section("Cells", [sweep_table(sweep, names), *sweep_plots(sweep, names)])]
    wrong = [
        f"{', '.join(values)} seed {seed}: {why}"
        for values, failed in zip(sweep.values, sweep.failed, strict=True)
        for seed, why in failed.items()
    ]
    if wrong:
        sections.append(Section("Failed", [Text("\n\n".join(wrong))]))
    finished, all_of_it = sum(run.finished for run in sweep.runs), sum(len(run.seeds) for run in sweep.runs)
    return report(
        f"Sweep of {sweep.name}", f"{len(sweep.runs)} cells, {finished} of {all_of_it} runs finished", sections
    )


def sweep_csv(sweep: SweepFiles) -> str:
    """A line per finished run: the values of the axes, the seed, and every figure of any run."""
    figures = list(dict.fromkeys(name for run in sweep.runs for seed in run.seeds for name in seed.figures))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*sweep.axes, "seed", *figures])
    for values, run in zip(sweep.values, sweep.runs, strict=True):
        for seed in run.seeds:
            if seed.figures:
                writer.writerow([*values, seed.number, *(seed.figures.get(name, "") for name in figures)])
    return out.getvalue()


def place_of(directory: Path, label: str) -> Path:
    """The run directory of a cell: its label, without what file systems do not like."""
    return directory / "".join(letter if letter.isalnum() or letter in "=.,+-_" else "_" for letter in label)


def _shown(run: RunFiles, name: str) -> str:
    if name not in run.figures:
        return "–"
    mean, half = mean_with_interval(run.figures[name])
    return number(mean) if math.isnan(half) else f"{number(mean)} {interval((mean - half, mean + half))}"


def _values(run: RunFiles, name: str) -> tuple[float, ...]:
    return run.figures[name].values if name in run.figures else ()


def _numbers(ticks: Sequence[str]) -> bool:
    try:
        return all(math.isfinite(float(tick)) for tick in ticks)
    except ValueError:
        return False


def _places(ticks: Sequence[str]) -> tuple[list[float], bool]:
    """(where the values of an axis stand, whether by logarithms): numbers at themselves, words side by side."""
    if not _numbers(ticks):
        return list(map(float, range(len(ticks)))), False
    places = list(map(float, ticks))
    return places, min(places) > 0 and max(places) / min(places) >= LOGARITHMIC
