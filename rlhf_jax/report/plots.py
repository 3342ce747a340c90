"""Plots as SVG text, in one style for light and dark pages: axes and words take the colour of the text around them.

Each function returns a whole `<svg>` element without width and height, so that it fills the column it stands in. The
same figures give the same text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#3b82c4", "#e0762f", "#2f9e77", "#c9508a", "#8a6fd0", "#a88f1c", "#4bb3c9", "#8c8c8c")
INK = "#010203"  # stands for the colour of the text; replaced by currentColor in the SVG
WIDTH, HEIGHT = 5.2, 3.1  # inches at 72 units each: with 9 unit letters, readable at half the width of a page

STYLE: dict[str, Any] = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.0,
    "legend.fontsize": 8.0,
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",  # letters stay letters: small, searchable, in the font of the page
    "svg.hashsalt": "rlhf_jax",  # the same ids in every run
    "axes.formatter.limits": (-4, 5),
    "axes.formatter.useoffset": False,
}

Points = tuple[Any, Any]
"""x of shape [n], and y of shape [n], or [seeds, n] for several seeds."""


def line_plot(
    series: Mapping[str, Points],
    *,
    title: str = "",
    xlabel: str = "",
    ylabel: str = "",
    hlines: Mapping[str, float] | None = None,
    logx: bool = False,
    logy: bool = False,
) -> str:
    """Lines by label; where y has several seeds, their mean with a band of +- one standard error. `hlines` are named
    levels.

    Points that are not finite leave a gap. Raises ValueError for a label whose x and y do not fit together.
    """
    with _figure() as (figure, svg):
        axes = figure.subplots()
        for (label, (x, y)), colour in zip(series.items(), _colours(), strict=False):
            x, y = _points(label, x, y)
            mean = y.mean(axis=0)
            # One point is no line; a marker shows it.
            axes.plot(x, mean, color=colour, label=label, marker="o" if len(x) < 12 else "", markersize=3.5)
            if len(y) > 1:
                error = y.std(axis=0, ddof=1) / np.sqrt(len(y))
                axes.fill_between(x, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0)
        levels = hlines or {}
        for label, level in levels.items():
            axes.axhline(level, color=INK, linestyle=(0, (4, 3)), linewidth=1.0, alpha=0.7)
            # Of several levels the lowest is named below its line: close ones stay readable.
            _name_level(axes, label, level, below=len(levels) > 1 and level == min(levels.values()))
        if logx:
            axes.set_xscale("log")
        elif all(np.equal(np.mod(np.asarray(x, np.float64), 1), 0).all() for x, _ in series.values()):
            axes.locator_params(axis="x", integer=True)  # there is no step 2.5
        if logy:
            axes.set_yscale("log")
        _finish(axes, title, xlabel, ylabel, legend=len(series) > 1)
        return svg()


class Intervals(NamedTuple):
    """Means at places x, with half the widths of their intervals, nan where that is not known; each [n]."""

    x: np.ndarray
    mean: np.ndarray
    half: np.ndarray


def interval_plot(
    series: Mapping[str, Intervals],
    *,
    title: str = "",
    xlabel: str = "",
    words: Sequence[str] | None = None,
    logx: bool = False,
) -> str:
    """Means by label with their intervals; `words` name the places 0, 1, 2 ... where x is not a number."""
    with _figure() as (figure, svg):
        axes = figure.subplots()
        for (label, points), colour in zip(series.items(), _colours(), strict=False):
            half = np.nan_to_num(points.half)
            line = "" if words is not None else "-"
            axes.errorbar(
                points.x, points.mean, half, color=colour, label=label, marker="o", markersize=3.5, capsize=2, ls=line
            )
        if words is not None:
            axes.set_xticks(range(len(words)), list(words))
            axes.margins(x=0.15)
        if logx:
            axes.set_xscale("log")
        _finish(axes, title, xlabel, "", legend=len(series) > 1)
        return svg()


def calibration_plot(
    predicted: Any, outcomes: Any, *, bins: int = 10, title: str = "", ceiling: float | None = None
) -> str:
    """How often it happened (with 95 % Wilson intervals) against how probable it was said to be, with the count of
    every bin below.

    `predicted` are probabilities [n], `outcomes` 0 or 1 [n]. With `ceiling`, the share that the best possible predictor
    gets right, a strip on top sets the accuracy reached beside it. Raises ValueError for other values or no rows.
    """
    predicted, outcomes = np.asarray(predicted, np.float64), np.asarray(outcomes, np.float64)
    if predicted.ndim != 1 or predicted.shape != outcomes.shape or not predicted.size:
        raise ValueError(f"needs one outcome per prediction, got shapes {predicted.shape} and {outcomes.shape}")
    if not ((predicted >= 0) & (predicted <= 1)).all() or not np.isin(outcomes, (0, 1)).all():
        raise ValueError("predictions must lie in [0, 1] and outcomes must be 0 or 1")
    edges = np.linspace(0, 1, bins + 1)
    which = np.minimum((predicted * bins).astype(int), bins - 1)
    counts = np.bincount(which, minlength=bins)
    filled = counts > 0
    said = np.bincount(which, predicted, bins)[filled] / counts[filled]
    low, seen, high = _wilson(np.bincount(which, outcomes, bins)[filled], counts[filled])
    accuracy = float(np.mean((predicted > 0.5) == (outcomes > 0.5)))

    with _figure(height=HEIGHT * 1.25) as (figure, svg):
        ratios = [1.0, 7.0, 2.0] if ceiling is not None else [7.0, 2.0]
        panels = figure.subplots(len(ratios), 1, height_ratios=ratios)
        upper, lower = panels[-2:]
        upper.plot([0, 1], [0, 1], color=INK, linestyle=(0, (4, 3)), linewidth=1.0, alpha=0.7, label="perfect")
        errors = [np.maximum(seen - low, 0), np.maximum(high - seen, 0)]
        upper.errorbar(said, seen, errors, color=COLOURS[0], marker="o", markersize=3.5, capsize=2, label="observed")
        upper.set(xlim=(0, 1), ylim=(0, 1), xticklabels=[])
        lower.bar(edges[:-1], counts, width=1 / bins, align="edge", color=COLOURS[0], alpha=0.7, edgecolor="none")
        lower.set_xlim(0, 1)
        lower.margins(y=0.1)
        _finish(upper, title if ceiling is None else "", "", "observed frequency", legend=True)
        _finish(lower, "", "predicted probability", "count", legend=False)
        if ceiling is not None:
            _accuracy_strip(panels[0], accuracy, ceiling)
            panels[0].set_title(title, pad=20)  # above the words of the strip
        return svg()


def bar_plot(
    values: Mapping[str, float], *, errors: Mapping[str, float] | None = None, title: str = "", xlabel: str = ""
) -> str:
    """Horizontal bars by label, in the order given, each with its number; `errors` are the half widths of their
    intervals."""
    errors = errors or {}
    if unknown := set(errors) - set(values):
        raise ValueError(f"errors for bars that are not there: {', '.join(sorted(unknown))}")
    with _figure(height=0.9 + 0.3 * max(len(values), 1)) as (figure, svg):
        axes = figure.subplots()
        rows, widths = np.arange(len(values)), np.array(list(values.values()), np.float64)
        halves = np.array([errors.get(label, 0.0) for label in values])
        axes.barh(rows, widths, height=0.62, color=COLOURS[0], alpha=0.85)
        known = halves > 0
        axes.errorbar(widths[known], rows[known], xerr=halves[known], fmt="none", ecolor=INK, elinewidth=1.0, capsize=2)
        for row, width, half in zip(rows, widths, halves, strict=True):
            beyond, side = (width + half, "left") if width >= 0 else (width - half, "right")
            offset = (4 if width >= 0 else -4, 0)
            axes.annotate(
                f"{width:.3g}", (beyond, row), offset, textcoords="offset points", va="center", ha=side, fontsize=8
            )
        axes.set_yticks(rows, list(values))
        axes.invert_yaxis()
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.margins(x=0.14)
        axes.grid(axis="y", visible=False)
        _finish(axes, title, xlabel, "", legend=False)
        return svg()


def histogram_plot(
    samples: Mapping[str, Any], *, bins: int = 30, title: str = "", xlabel: str = "", ylabel: str = "share"
) -> str:
    """Distributions by label over common bins, each as shares of its own total."""
    arrays = {label: np.asarray(values, np.float64).ravel() for label, values in samples.items()}
    arrays = {label: values[np.isfinite(values)] for label, values in arrays.items()}
    if not any(values.size for values in arrays.values()):
        raise ValueError("no finite value to draw a histogram of")
    edges = np.histogram_bin_edges(np.concatenate(list(arrays.values())), bins)
    with _figure() as (figure, svg):
        axes = figure.subplots()
        for (label, values), colour in zip(arrays.items(), _colours(), strict=False):
            shares = np.histogram(values, edges)[0] / max(values.size, 1)
            axes.stairs(shares, edges, color=colour, fill=True, alpha=0.25)
            axes.stairs(shares, edges, color=colour, label=label, linewidth=1.4)
        _finish(axes, title, xlabel, ylabel, legend=len(arrays) > 1)
        return svg()


@contextmanager
def _figure(height: float = HEIGHT) -> Iterator[tuple[Figure, Any]]:
    """A figure in our style, and the function that turns it into SVG text. No pyplot: nothing global is left behind."""
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", STYLE]):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")

        def svg() -> str:
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
            return _clean(buffer.getvalue())

        yield figure, svg


def _clean(text: str) -> str:
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    return text.replace(INK, "currentColor").strip()


def _colours() -> Iterator[str]:
    while True:
        yield from COLOURS


def _points(label: str, x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, np.float64), np.atleast_2d(np.asarray(y, np.float64))
    if x.ndim != 1 or y.ndim != 2 or y.shape[1] != len(x):
        raise ValueError(f"series {label!r}: x of shape {x.shape} needs y of {x.shape} or (seeds, n), got {y.shape}")
    return x, np.where(np.isfinite(y), y, np.nan)


def _wilson(successes: np.ndarray, counts: np.ndarray, z: float = 1.96) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower end, share and upper end of the Wilson interval (Wilson 1927): it stays in [0, 1] and does not vanish at 0
    or 1."""
    share = successes / counts
    centre = (share + z**2 / (2 * counts)) / (1 + z**2 / counts)
    half = z * np.sqrt(share * (1 - share) / counts + z**2 / (4 * counts**2)) / (1 + z**2 / counts)
    return centre - half, share, centre + half


def _accuracy_strip(axes: Axes, accuracy: float, ceiling: float) -> None:
    axes.barh([0], [accuracy], color=COLOURS[2], alpha=0.85, height=0.7)
    axes.axvline(ceiling, color=INK, linewidth=1.6)
    axes.text(0, 0.95, f"accuracy {accuracy:.3f}", fontsize=8, va="bottom", ha="left")
    axes.text(1, 0.95, f"Bayes ceiling {ceiling:.3f}", fontsize=8, va="bottom", ha="right")
    axes.set(xlim=(0, 1), ylim=(-0.5, 0.5), xticks=[], yticks=[])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.grid(visible=False)


def _name_level(axes: Axes, label: str, level: float, *, below: bool) -> None:
    where = (1.0, level)
    offset, side = ((0, -2), "top") if below else ((0, 2), "bottom")
    across: Any = axes.get_yaxis_transform()
    axes.annotate(label, where, offset, xycoords=across, textcoords="offset points", ha="right", va=side, fontsize=8)


def _finish(axes: Axes, title: str, xlabel: str, ylabel: str, *, legend: bool) -> None:
    axes.set_title(title)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    if legend:
        axes.legend(loc="best")
