"""Every combination of the values, checked, with its run; and which of them may share a process."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.execute import Plan
from experiments.registry import Entry
from experiments.sweep.axes import parse_axes, seeds_of
from rlhf_jax.config import Experiment
from rlhf_jax.config.study import Study
from rlhf_jax.loops.preemption import Notice
from rlhf_jax.overrides import to_dict
from rlhf_jax.report.runs import SEED, SUMMARY
from rlhf_jax.report.sweep import place_of

ERROR = "error.txt"
STAGES = ("sft", "reward", "preference", "ilql", "ppo", "classify")
"""Parts of a config whose numbers lanes may have each their own; the loops tell their programs what they are made of."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One combination: the values of the axes, and its run."""

    values: tuple[str, ...]
    plan: Plan

    @property
    def seeds(self) -> range:
        return range(self.plan.experiment.seed, self.plan.experiment.seed + self.plan.seeds)

    @property
    def left(self) -> list[int]:
        """The seeds that have not finished."""
        return [seed for seed in self.seeds if not (self.folder(seed) / SUMMARY).is_file()]

    def folder(self, seed: int) -> Path:
        return self.plan.directory / f"{SEED}{seed}"

    def forget_errors(self) -> None:
        """What failed is tried again."""
        for seed in self.seeds:
            (self.folder(seed) / ERROR).unlink(missing_ok=True)

    @property
    def failed(self) -> dict[int, str]:
        """Of each seed that failed the last line of its error."""
        errors = {seed: self.folder(seed) / ERROR for seed in self.left}
        return {seed: last_line(path.read_text(errors="replace")) for seed, path in errors.items() if path.is_file()}


def last_line(text: str) -> str:
    """The last line that is not empty; where there is none, nothing."""
    return (text.strip().splitlines() or [""])[-1]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What is swept, and where it goes."""

    entry: Entry
    directory: Path
    axes: Mapping[str, tuple[str, ...]]
    cells: tuple[Cell, ...]

    @property
    def groups(self) -> list[list[Cell]]:
        """The cells in groups that one process runs: those that may be lanes of one program."""
        found: dict[str, list[Cell]] = {}
        for cell in self.cells:
            found.setdefault(shape_of(cell.plan.experiment), []).append(cell)
        return list(found.values())


def plan_sweep(
    entry: Entry,
    over: Sequence[str],
    resolve: Callable[[Sequence[str]], Any],
    directory: Path,
    data_root: Path | None,
    notice: Notice,
) -> Sweep:
    """The sweep of an experiment, each cell resolved and so checked; `resolve(settings)` gives the experiment with more settings.

    Raises: ValueError or KeyError naming the cell that cannot be.
    """
    axes = parse_axes(over)
    asked = axes.pop("seed", None)
    seeds = None if asked is None else seeds_of(asked)
    cells: list[Cell] = []
    same: dict[str, str] = {}
    for values in itertools.product(*axes.values()):
        settings = [f"{path}={value}" for path, value in zip(axes, values, strict=True)]
        label = ",".join(settings) or entry.name.rpartition("/")[2]
        try:
            experiment = resolve(settings)
            own = range(experiment.seed, experiment.seed + 1) if seeds is None else seeds
            experiment = dataclasses.replace(experiment, seed=own.start)
        except (ValueError, KeyError) as error:
            raise type(error)(f"{label}: {error.args[0] if error.args else error}") from error
        plan = Plan(entry, experiment, place_of(directory, label), len(own), True, data_root, notice)
        other = same.setdefault(json.dumps(to_dict(experiment)), label)
        if other != label:
            raise ValueError(f"{other} and {label} are the same run; name each value once")
        cells.append(Cell(values, plan))
    places = [cell.plan.directory for cell in cells]
    if len(set(places)) < len(places):
        raise ValueError(f"two cells would be written to {max(places, key=places.count)}; name their values otherwise")
    return Sweep(entry, directory, axes, tuple(cells))


def shape_of(experiment: Experiment | Study) -> str:
    """All of a config but its seed and the numbers of its stages: what those have in common that may be lanes of one program."""
    tree: dict[str, Any] = to_dict(experiment) | {"seed": None}

    def plain(node: Any) -> Any:
        if isinstance(node, dict):
            return {name: plain(value) for name, value in node.items()}
        return "a number" if isinstance(node, float) else node

    if isinstance(experiment, Experiment) and experiment.mesh.devices == 1:
        tree |= {
            stage: plain(tree[stage]) | {"data": tree[stage].get("data")} for stage in STAGES if tree[stage] is not None
        }
    return json.dumps(tree)


def widest(cells: Sequence[Cell]) -> Any:
    """The experiment of the cell whose mesh has the most devices."""
    return max((cell.plan.experiment for cell in cells), key=lambda experiment: experiment.mesh.devices)
