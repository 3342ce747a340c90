"""A sweep from beginning to end: what is checked first, its groups, its table and plots."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from experiments.execute import INTERRUPTED, check, check_directory, start_jax, summarise
from experiments.registry import Entry
from experiments.sweep.cells import Cell, Sweep, widest
from experiments.sweep.groups import note_error, run_group
from rlhf_jax.files import exclusive, write_atomic
from rlhf_jax.loops.preemption import PREEMPTED, Preempted
from rlhf_jax.report.html import Table, write_report
from rlhf_jax.report.runs import CONFIG, REPORT, SEED, SUMMARY, Damaged, RunFiles, SeedFiles, read_json, read_run
from rlhf_jax.report.sweep import SweepFiles, shown_figures, sweep_csv, sweep_report, sweep_table

SWEEP, CSV = "sweep.json", "sweep.csv"


def run_sweep(sweep: Sweep, *, resume: bool, again: Sequence[str], show: Sequence[str] = ()) -> tuple[Table, int]:
    """Runs all cells, and writes table and plots: (the table, how many runs have failed; what they said is in their folders).

    `again` is the command line of this sweep, which groups that have processes of their own are run by.
    Raises: as `execute`, before anything is written, for what can be known by then.
    """
    groups = sweep.groups
    busy = [number for number, cells in enumerate(groups) if any(cell.left for cell in cells)]
    together = len(busy) == 1  # else the devices are for the groups' processes, and this one has none
    if not together:
        leave_accelerators()
    start_jax(widest(sweep.cells), side_by_side=True)
    check_sweep(sweep, sweep.cells, resume, devices=together)
    with exclusive(sweep.directory):
        write_said(sweep)
        for place, number in enumerate(busy):
            cells = groups[number]
            waiting = sum(len(cell.left) for cell in cells)
            print(f"group {place + 1} of {len(busy)}: {waiting} runs of {len(cells)} cells", file=sys.stderr)
            if together:
                run_group(cells)
            else:
                run_apart([*again, "--group", str(number)], cells)
        return write_sweep(sweep, show)


def leave_accelerators() -> None:
    """Has this process alone start no devices but those of the CPU, whatever it traces."""
    import jax

    jax.config.update("jax_platforms", "cpu")


def run_part(sweep: Sweep, number: int) -> int:
    """Runs one group of a sweep, in a job of its own; how many of its runs have failed. Raises: as `run_sweep`."""
    groups = sweep.groups
    if not 0 <= number < len(groups):
        raise ValueError(f"--group {number}: there are groups 0 to {len(groups) - 1}")
    start_jax(widest(groups[number]), side_by_side=True)
    check_sweep(sweep, groups[number], resume=True)
    write_said(sweep)
    run_group(groups[number])
    return sum(len(cell.failed) for cell in groups[number])


def check_sweep(sweep: Sweep, cells: Sequence[Cell], resume: bool, *, devices: bool = True) -> None:
    """Raises: FileExistsError or ValueError where the directory holds another sweep, or this one and it is not to go on; and what `check`
    raises of these cells.
    """
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
    if there is not None and list(there["axes"]) != list(said["axes"]):
        over, now = (", ".join(axes) or "seeds alone" for axes in (there["axes"], said["axes"]))
        raise ValueError(f"{sweep.directory} holds a sweep over {over}, not over {now}; choose another --workdir")
    left_out = [] if there is None else [name for name in there["cells"] if name not in said["cells"]]
    lost = [name for name in left_out if any((sweep.directory / name).glob(f"{SEED}*/{SUMMARY}"))]
    if lost:
        raise ValueError(
            f"{sweep.directory} holds finished runs of {', '.join(lost)} too, which its table would lose; name all values, new ones behind "
            "them"
        )
    for cell in cells:
        if cell.left:
            check(cell.plan, devices=devices)
        elif (cell.plan.directory / CONFIG).is_file():
            with contextlib.suppress(Damaged):  # which the table tells
                check_directory(cell.plan)  # that what has finished is of the same config


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
    """One group in a process of its own; a run that it leaves undone has failed, whether it could say so or not.

    Raises: Preempted, KeyboardInterrupt, where the process ended so.
    """
    for cell in cells:
        cell.forget_errors()
    process = subprocess.Popen([sys.executable, "-m", "experiments.run", *command])
    try:
        code = process.wait()
    except BaseException:  # asked to end: it saves what it has
        process.terminate()
        process.wait()
        raise
    if code == PREEMPTED:
        raise Preempted("a group of the sweep was asked to end, and has saved")
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    for cell in cells:
        for seed in cell.left:
            if seed not in cell.failed:
                note_error(cell, seed, f"the process of its group ended with {code}")


def write_sweep(sweep: Sweep, show: Sequence[str]) -> tuple[Table, int]:
    """Writes each cell's summary and report, the sweep's table and plots: (the table, how many runs have failed)."""
    runs, failures = zip(*(read_cell(cell, sweep.entry) for cell in sweep.cells), strict=True)
    files = SweepFiles(sweep.entry.name, sweep.axes, [cell.values for cell in sweep.cells], runs, failures)
    write_atomic(sweep.directory / CSV, sweep_csv(files))
    try:
        names = shown_figures(files, show)
    except KeyError:  # told when all else is there
        names = shown_figures(files)
    write_report(sweep.directory / REPORT, sweep_report(files, names))
    failed = sum(map(len, files.failed))
    return sweep_table(files, names if failed else shown_figures(files, show)), failed


def read_cell(cell: Cell, entry: Entry) -> tuple[RunFiles, dict[int, str]]:
    """(what the cell's runs have written, summarised where some have finished; of each seed that failed what it says of that).

    With a damaged file all of its seeds count as failed.
    """
    try:
        run = read_run(cell.plan.directory)
    except (Damaged, OSError) as error:
        print(f"failed: {cell.plan.directory}: {error}", file=sys.stderr)
        seeds = tuple(SeedFiles(seed, {}, {}, [], {}) for seed in cell.seeds)
        return RunFiles(cell.plan.directory, {}, {}, [], seeds), dict.fromkeys(cell.seeds, str(error))
    if len(cell.left) < len(cell.seeds):
        run = summarise(cell.plan.directory, entry)
    return run, cell.failed
