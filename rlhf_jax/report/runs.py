"""Run directories as records: what the files of a run say, its seeds together; also while it is still going."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.eval.preference import mean_and_error
from rlhf_jax.report.metrics import FILE, Series, read_metrics

ABOUT, CONFIG, ENVIRONMENT, SUMMARY, VERDICTS, PLOTS, REPORT = (
    "experiment.json",
    "config.json",
    "environment.json",
    "summary.json",
    "verdicts.json",
    "plots.json",
    "report.html",
)
SEED = "seed_"
POINTS = 400  # of a curve, at most: more cannot be told apart on a page, and would make it heavy


class Damaged(ValueError):
    """A file of a run, which is named, and is not what a run writes."""


@dataclasses.dataclass(frozen=True)
class SeedFiles:
    """What one seed wrote; `figures` are empty until it has finished."""

    number: int
    figures: Mapping[str, float]
    metrics: Mapping[str, Mapping[str, Series]]  # stage -> metric -> steps and values
    samples: Sequence[Mapping[str, Any]]  # prompt, then a reply and numbers per policy
    calibration: Mapping[str, Sequence[float]]  # confidence, right


@dataclasses.dataclass(frozen=True)
class Figure:
    """One number of a run over its seeds: the mean, its standard error (nan for one seed), and a value per seed."""

    mean: float
    error: float
    values: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """A run directory with all its seeds."""

    directory: Path
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    verdicts: Sequence[Mapping[str, Any]]
    seeds: tuple[SeedFiles, ...]
    about: Mapping[str, str] = dataclasses.field(default_factory=dict)  # the experiment's paper, claim and description
    plots: Sequence[Mapping[str, Any]] = ()  # of a study: the arguments of `line_plot`

    @property
    def finished(self) -> int:
        """How many seeds have finished: those that the figures are of."""
        return sum(bool(seed.figures) for seed in self.seeds)

    @property
    def figures(self) -> dict[str, Figure]:
        """The figures of the finished seeds, by name."""
        return combine(seed.figures for seed in self.seeds if seed.figures)

    def curve(self, stage: str, metric: str) -> tuple[np.ndarray, np.ndarray] | None:
        """(steps [n], values [seeds, n]) where all seeds that have begun the stage measured it; None where none did."""
        found = [seed.metrics[stage][metric] for seed in self.seeds if metric in seed.metrics.get(stage, {})]
        if not found:
            return None
        steps = reduce(np.intersect1d, [series.steps for series in found])
        if not steps.size:
            return None
        return thin(steps, np.stack([series.values[np.isin(series.steps, steps)] for series in found]))


def read_run(directory: Path) -> RunFiles:
    """The run in this directory.

    Raises: FileNotFoundError where it holds none; Damaged.
    """
    if not (directory / CONFIG).is_file():
        raise FileNotFoundError(f"{directory} holds no run: there is no {CONFIG} in it")
    return RunFiles(
        directory,
        read_json(directory / CONFIG, {}),
        read_json(directory / ENVIRONMENT, {}),
        read_json(directory / VERDICTS, []),
        tuple(map(_read_seed, seed_directories(directory))),
        read_json(directory / ABOUT, {}),
        _read_plots(directory / PLOTS),
    )


def seed_directories(directory: Path) -> list[Path]:
    """The folders of a run's seeds, in the order of the seeds."""
    found = [path for path in directory.glob(f"{SEED}*") if path.is_dir() and path.name.removeprefix(SEED).isdecimal()]
    return sorted(found, key=_seed_of)


def read_json(path: Path, absent: Any) -> Any:
    """What a JSON file holds, or `absent`. Raises: Damaged for what is not JSON, or of another kind than what is not None as `absent`."""
    if not path.is_file():
        return absent
    return _parsed(path.read_bytes(), str(path), None if absent is None else type(absent))


def _parsed(text: bytes, place: str, kind: type | None) -> Any:
    """JSON that stands in this place. Raises: Damaged where it is not, or of another kind."""
    try:
        found = json.loads(text)
    except ValueError as error:  # not JSON, or not even UTF-8
        raise Damaged(f"{place} is not JSON ({error}); restore it, or move it away") from error
    if kind is not None and type(found) is not kind:
        words = {dict: "an object", list: "a list"}
        raise Damaged(f"{place} holds {text[:40].decode(errors='replace')}, where {words[kind]} should be; restore it")
    return found


def combine(seeds: Iterable[Mapping[str, float]]) -> dict[str, Figure]:
    """Figures of several seeds as means with standard errors; a figure that a seed lacks is one of the others."""
    values: dict[str, list[float]] = {}
    for figures in seeds:
        for name, value in figures.items():
            values.setdefault(name, []).append(math.nan if value is None else float(value))
    return {name: Figure(*mean_and_error(found), tuple(found)) for name, found in values.items()}


def thin(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A curve of at most POINTS points: means over equally many neighbours, the last of them perhaps over fewer."""
    size = math.ceil(len(steps) / POINTS)
    if size <= 1:
        return steps, values
    starts = np.arange(0, len(steps), size)
    counts = np.diff(np.append(starts, len(steps)))
    return np.add.reduceat(steps, starts) / counts, np.add.reduceat(values, starts, axis=-1) / counts


def _read_seed(directory: Path) -> SeedFiles:
    """What a seed has written. Raises: Damaged."""
    figures, samples = read_json(directory / SUMMARY, {}), directory / "samples.jsonl"
    for name, value in figures.items():
        if type(value) not in (int, float, type(None)):
            raise Damaged(f"{directory / SUMMARY}: {name!r} is {value!r}; it must be a number, or null")
    lines = samples.read_bytes().split(b"\n") if samples.is_file() else []
    try:
        metrics = read_metrics(directory) if (directory / FILE).is_file() else {}
    except ValueError as error:  # which names the line
        raise Damaged(str(error)) from error
    return SeedFiles(
        _seed_of(directory),
        figures,
        metrics,
        [_parsed(line, f"{samples}:{number}", dict) for number, line in enumerate(lines, start=1) if line],
        read_json(directory / "calibration.json", {}),
    )


def _read_plots(path: Path) -> list[dict[str, Any]]:
    """The plots of a study. Raises: Damaged."""
    plots = read_json(path, [])
    try:
        return [{**plot, "series": {label: (x, y) for label, (x, y) in plot["series"].items()}} for plot in plots]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Damaged(f"{path} holds no plots ({error!r}); restore it, or move it away") from error


def _seed_of(directory: Path) -> int:
    return int(directory.name.removeprefix(SEED))
