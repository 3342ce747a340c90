"""Sweeps: an experiment at every combination of some values, each over some seeds.

DIR/sweep.json                             what is swept, written first
DIR/CELL/...                               a run directory for each combination, as `run` leaves it
DIR/sweep.csv, report.html                 all figures, a line for each run; a table and plots

Runs that differ in nothing but seeds and numbers of their losses and optimisers go side by side, as lanes of one program; others in
processes of their own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from experiments.execute import Plan, check, record, run_seed, run_seeds, start_jax, summarise
from experiments.registry import Entry
from rlhf_jax.config import Experiment
from rlhf_jax.config.model import ONE_DEVICE
from rlhf_jax.config.study import Study
from rlhf_jax.files import exclusive, write_atomic
from rlhf_jax.loops.preemption import PREEMPTED, Notice, Preempted
from rlhf_jax.overrides import to_dict
from rlhf_jax.processes import count
from rlhf_jax.report.html import Table, write_report
from rlhf_jax.report.runs import REPORT, SEED, SUMMARY, read_json, read_run
from rlhf_jax.report.sweep import SweepFiles, place_of, shown_figures, sweep_csv, sweep_report, sweep_table

SWEEP, CSV, ERROR = "sweep.json", "sweep.csv", "error.txt"
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

    @property
    def failed(self) -> dict[int, str]:
        """Of each seed that failed the last line of its error."""
        errors = {seed: self.folder(seed) / ERROR for seed in self.left}
        return {seed: path.read_text().strip().splitlines()[-1] for seed, path in errors.items() if path.is_file()}


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


def parse_axes(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The values of each field, of texts "a.b=x,y,z" and "a.b=0..7"; commas inside brackets and quotes do not divide.

    Raises: ValueError for what is not of this form, a field that is named twice, and a value that is.
    """
    axes: dict[str, tuple[str, ...]] = {}
    for text in texts:
        path, equals, said = (part.strip() for part in text.partition("="))
        if not (path and equals and said):
            raise ValueError(f"--over {text!r} is not of the form a.b=x,y,z or a.b=FIRST..LAST")
        if path in axes:
            raise ValueError(f"--over names {path} twice; give all of its values at once, divided by commas")
        whole = re.fullmatch(r"(\d+)\.\.(\d+)", said)
        if whole is not None:
            values = [str(number) for number in range(int(whole[1]), int(whole[2]) + 1)]
        else:
            values = [value.strip() for value in re.findall(r'(?:\[[^\]]*\]|"[^"]*"|[^,\["]+)+', said)]
        if not values or len(set(values)) < len(values):
            raise ValueError(f"--over {text!r}: {'a value stands there twice' if values else 'there is no value'}")
        axes[path] = tuple(values)
    return axes


def seeds_of(values: Sequence[str]) -> range:
    """The seeds of an axis. Raises: ValueError where they are not whole numbers that follow each other."""
    if not all(value.isdecimal() for value in values):
        raise ValueError(f"--over seed={','.join(values)}: seeds are whole numbers, such as seed=0..7")
    first, last = int(values[0]), int(values[-1])
    if list(map(int, values)) != list(range(first, last + 1)):
        raise ValueError(f"--over seed={','.join(values)}: seeds follow each other; write seed=FIRST..LAST")
    return range(first, last + 1)


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
    seeds = seeds_of(axes.pop("seed", (str(resolve([]).seed),)))
    cells = []
    for values in itertools.product(*axes.values()):
        settings = [f"{path}={value}" for path, value in zip(axes, values, strict=True)]
        label = ",".join(settings) or entry.name.rpartition("/")[2]
        try:
            experiment = dataclasses.replace(resolve(settings), seed=seeds.start)
        except (ValueError, KeyError) as error:
            raise type(error)(f"{label}: {error.args[0] if error.args else error}") from error
        plan = Plan(entry, experiment, place_of(directory, label), len(seeds), True, data_root, notice)
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


def run_sweep(sweep: Sweep, *, resume: bool, again: Sequence[str], show: Sequence[str] = ()) -> tuple[Table, int]:
    """Runs all cells, and writes table and plots: (the table, how many runs have failed; what they said is in their folders).

    `again` is the command line of this sweep, which groups that have processes of their own are run by.
    Raises: as `execute`, before anything is written, for what can be known by then.
    """
    start_jax(sweep.cells[0].plan.experiment, side_by_side=True)
    check_sweep(sweep, resume)
    groups = sweep.groups
    with exclusive(sweep.directory):
        write_said(sweep)
        busy = [number for number, cells in enumerate(groups) if any(cell.left for cell in cells)]
        for place, number in enumerate(busy):
            cells = groups[number]
            waiting = sum(len(cell.left) for cell in cells)
            print(f"group {place + 1} of {len(busy)}: {waiting} runs of {len(cells)} cells", file=sys.stderr)
            if len(busy) == 1:
                run_group(cells)
            else:
                run_apart([*again, "--group", str(number)], cells)
        return write_sweep(sweep, show)


def run_part(sweep: Sweep, number: int) -> int:
    """Runs one group of a sweep, in a job of its own; how many of its runs have failed. Raises: as `run_sweep`."""
    groups = sweep.groups
    if not 0 <= number < len(groups):
        raise ValueError(f"--group {number}: there are groups 0 to {len(groups) - 1}")
    start_jax(groups[number][0].plan.experiment, side_by_side=True)
    check_sweep(sweep, resume=True)
    write_said(sweep)
    run_group(groups[number])
    return sum(len(cell.failed) for cell in groups[number])


def check_sweep(sweep: Sweep, resume: bool) -> None:
    """Raises: FileExistsError or ValueError where the directory holds another sweep, or this one and it is not to go on."""
    there = read_json(sweep.directory / SWEEP, None)
    if (
        there is None
        and sweep.directory.exists()
        and any(not path.name.startswith(".") for path in sweep.directory.iterdir())
    ):
        raise FileExistsError(f"{sweep.directory} is not empty and holds no sweep; choose another --workdir")
    if there is not None and not resume:
        raise FileExistsError(
            f"{sweep.directory} holds a sweep already; go on with --resume, or choose another --workdir"
        )
    said = said_of(sweep)
    for name in ("experiment", "scale"):
        if there is not None and there[name] != said[name]:
            raise ValueError(f"{sweep.directory} holds a sweep of {there['experiment']}, scale {there['scale']}")
    for cell in sweep.cells:
        check(cell.plan)


def write_said(sweep: Sweep) -> None:
    """Writes what is swept."""
    write_atomic(sweep.directory / SWEEP, json.dumps(said_of(sweep), indent=1) + "\n")


def said_of(sweep: Sweep) -> dict[str, Any]:
    """What a sweep's own file says."""
    first = sweep.cells[0]
    return {
        "experiment": sweep.entry.name,
        "scale": first.plan.experiment.scale,
        "axes": {path: list(values) for path, values in sweep.axes.items()},
        "seeds": list(first.seeds),
        "cells": [cell.plan.directory.name for cell in sweep.cells],
    }


def run_apart(command: Sequence[str], cells: Sequence[Cell]) -> None:
    """One group in a process of its own, whose end the cells tell of; what it cannot say there is an error of all that are left.

    Raises: Preempted, KeyboardInterrupt, where the process ended so.
    """
    process = subprocess.Popen([sys.executable, "-m", "experiments.run", *command])
    try:
        code = process.wait()
    except BaseException:  # asked to end: it saves what it has
        process.terminate()
        process.wait()
        raise
    if code == PREEMPTED:
        raise Preempted("a group of the sweep was asked to end, and has saved")
    for cell in cells:
        for seed in cell.left:
            if code not in (0, 1) and not (cell.folder(seed) / ERROR).is_file():
                note_error(cell, seed, f"the process ended with {code}")


def run_group(cells: Sequence[Cell]) -> None:
    """Cells that may share programs: their runs as lanes, or one after another where there is one, or the mesh has several devices."""
    start_jax(cells[0].plan.experiment, side_by_side=True)
    with contextlib.ExitStack() as stack:
        for cell in cells:
            stack.enter_context(exclusive(cell.plan.directory))
            record(cell.plan)
        first = cells[0].plan.experiment
        if isinstance(first, Study):
            for cell in cells:
                alone(cell, cell.seeds.start, partial(run_seeds, cell.plan))
            return
        runs = [(cell, seed) for cell in cells for seed in cell.left]
        for cell, seed in runs:
            (cell.folder(seed) / ERROR).unlink(missing_ok=True)
        if len(runs) > 1 and first.mesh.devices == 1 and count() == 1:
            side_by_side(runs)
            return
        for cell, seed in runs:
            alone(cell, seed, partial(run_one, cell, seed))


def run_one(cell: Cell, seed: int, programs: Any = None) -> None:
    """One run of one seed."""
    plan = cell.plan
    assert isinstance(plan.experiment, Experiment)
    experiment = dataclasses.replace(plan.experiment, seed=seed)
    run_seed(experiment, cell.folder(seed), plan.data_root, plan.notice, programs)


def alone(cell: Cell, seed: int, work: Callable[[], Any]) -> None:
    """Does something for a run, whose error is noted."""
    try:
        work()
    except Exception as error:
        note_error(cell, seed, "".join(traceback.format_exception(error)))


def note_error(cell: Cell, seed: int, text: str) -> None:
    """Keeps what went wrong in the run's folder, and says so."""
    path = cell.folder(seed) / ERROR
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text)
    print(f"failed: {cell.folder(seed)}: {text.strip().splitlines()[-1]}", file=sys.stderr)


def side_by_side(runs: Sequence[tuple[Cell, int]], at_once: int | None = None) -> None:
    """Runs as lanes, as many at once as fit; where a number decides what is compiled, those that agree on it."""
    import jax

    from rlhf_jax.lanes.numbers import Decides
    from rlhf_jax.lanes.together import TooLarge, run_lanes
    from rlhf_jax.report.environment import cores
    from rlhf_jax.report.progress import ASIDE
    from rlhf_jax.sharding import make_mesh

    at_once = at_once or len(runs)
    chunk, rest = runs[:at_once], runs[at_once:]

    def work(lane: int, cell: Cell, seed: int) -> Callable[[Any], None]:
        def follow(programs: Any) -> None:
            ASIDE.set(lane > 0)  # the others are as far as the first
            run_one(cell, seed, programs)

        return follow

    print(f"{len(chunk)} runs side by side", file=sys.stderr)
    # Of a CPU, whose small programs keep one core busy, a device for each.
    devices = jax.devices()[: cores() if jax.default_backend() == "cpu" else None]
    meshes = [make_mesh(ONE_DEVICE, [device]) for device in devices]
    outcomes = run_lanes([work(lane, *run) for lane, run in enumerate(chunk)], meshes)
    large = [outcome for outcome in outcomes if isinstance(outcome, TooLarge)]
    decides = [outcome for outcome in outcomes if isinstance(outcome, Decides)]
    again = [run for run, outcome in zip(chunk, outcomes, strict=True) if isinstance(outcome, TooLarge | Decides)]
    for (cell, seed), outcome in zip(chunk, outcomes, strict=True):
        if isinstance(outcome, BaseException) and not isinstance(outcome, Exception):
            raise outcome  # asked to end
        if isinstance(outcome, Exception) and (cell, seed) not in again:
            note_error(cell, seed, "".join(traceback.format_exception(outcome)))
    if large:
        at_once = min(outcome.fitting for outcome in large) * len(meshes)
        print(f"{large[0]}", file=sys.stderr)
    if decides:
        print(f"{decides[0]}: they are run apart", file=sys.stderr)
        names = {name.rpartition(".")[2] for outcome in decides for name in outcome.names}
        for part in apart(again, names):
            side_by_side(part, at_once)
    elif again:
        side_by_side(again, at_once)
    if rest:
        side_by_side(rest, at_once)


def apart(runs: Iterable[tuple[Cell, int]], names: set[str]) -> list[list[tuple[Cell, int]]]:
    """The runs in parts that agree on all fields of these names."""

    def found(node: Any, name: str = "") -> list[Any]:
        if isinstance(node, dict):
            return [value for key, inner in node.items() for value in found(inner, key)]
        return [node] if name in names else []

    parts: dict[str, list[tuple[Cell, int]]] = {}
    for cell, seed in runs:
        parts.setdefault(json.dumps(found(to_dict(cell.plan.experiment))), []).append((cell, seed))
    return list(parts.values())


def write_sweep(sweep: Sweep, show: Sequence[str]) -> tuple[Table, int]:
    """Writes each cell's summary and report, the sweep's table and plots: (the table, how many runs have failed)."""
    for cell in sweep.cells:
        if len(cell.left) < len(cell.seeds):
            summarise(cell.plan.directory, sweep.entry)
    files = SweepFiles(
        sweep.entry.name,
        sweep.axes,
        [cell.values for cell in sweep.cells],
        [read_run(cell.plan.directory) for cell in sweep.cells],
        [cell.failed for cell in sweep.cells],
    )
    names = shown_figures(files, show)
    write_atomic(sweep.directory / CSV, sweep_csv(files))
    write_report(sweep.directory / REPORT, sweep_report(files, names))
    return sweep_table(files, names), sum(map(len, files.failed))
