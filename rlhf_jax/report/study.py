"""What a study leaves: figures per seed, and curves that the report draws."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_jax.files import write_atomic
from rlhf_jax.report.runs import PLOTS, SEED, SUMMARY


@dataclasses.dataclass(frozen=True)
class Curve:
    """One plot: x [n] and y [n] or [seeds, n] by label; `hlines` are named levels."""

    title: str
    xlabel: str
    ylabel: str
    series: Mapping[str, tuple[Any, Any]]
    hlines: Mapping[str, float] = dataclasses.field(default_factory=dict)
    logx: bool = False
    logy: bool = False


@dataclasses.dataclass(frozen=True)
class StudyResult:
    """Figures by name, one value per seed, and plots."""

    figures: Mapping[str, Any]
    curves: Sequence[Curve]


def write_study(directory: Path, first_seed: int, seeds: int, result: StudyResult) -> None:
    """Writes the curves, then a summary per seed: a study whose last summary exists is complete.

    Raises: ValueError for a figure that does not have one value per seed.
    """
    figures = {name: np.asarray(values, np.float64) for name, values in result.figures.items()}
    wrong = [name for name, values in figures.items() if values.shape != (seeds,)]
    if wrong:
        raise ValueError(f"figures without one value for each of {seeds} seeds: {', '.join(wrong)}")
    write_atomic(directory / PLOTS, json.dumps([_plain(curve) for curve in result.curves]) + "\n")
    for n in range(seeds):
        summary = {name: float(values[n]) for name, values in figures.items()}
        write_atomic(directory / f"{SEED}{first_seed + n}" / SUMMARY, json.dumps(summary, indent=1) + "\n")


def _plain(curve: Curve) -> dict[str, Any]:
    series = {label: [np.asarray(x).tolist(), np.asarray(y).tolist()] for label, (x, y) in curve.series.items()}
    return dataclasses.asdict(dataclasses.replace(curve, series={})) | {"series": series}
