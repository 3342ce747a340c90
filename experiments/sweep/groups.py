"""A group of cells in this process: their runs side by side, or one after another; what goes wrong in one stays with it."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from experiments.execute import record, record_config, run_seed, run_seeds
from experiments.sweep.cells import ERROR, Cell, last_line
from rlhf_jax.config import Experiment
from rlhf_jax.config.model import ONE_DEVICE
from rlhf_jax.config.study import Study
from rlhf_jax.files import exclusive, write_atomic
from rlhf_jax.overrides import to_dict
from rlhf_jax.report.runs import CONFIG

Run = tuple[Cell, int]
"""A cell, and one of its seeds."""
MOST = 64
"""Runs side by side, each of which has files and threads of its own."""


def run_group(cells: Sequence[Cell]) -> None:
    """Cells that may share programs: their runs as lanes, or one after another where there is one, or the mesh has several devices."""
    with contextlib.ExitStack() as stack:
        for cell in cells:
            if cell.left:
                stack.enter_context(exclusive(cell.plan.directory))
                record(cell.plan)
                cell.forget_errors()
        first = cells[0].plan.experiment
        runs = [(cell, seed) for cell in cells for seed in cell.left]
        if isinstance(first, Study):
            for cell in cells:
                if cell.left:
                    alone(cell, cell.left[0], partial(run_seeds, cell.plan))
        elif len(runs) > 1 and first.mesh.devices == 1:
            side_by_side(runs)
        else:
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
        note_error(cell, seed, told(error))


def told(error: Exception) -> str:
    """All of an error, its own words in the last line, behind what JAX notes on it."""
    said = str(error).strip().splitlines()
    return "".join(traceback.format_exception(error)) + f"\n{type(error).__name__}: {said[0] if said else ''}\n"


def note_error(cell: Cell, seed: int, text: str) -> None:
    """Keeps what went wrong in the run's folder, and says so."""
    if not (cell.plan.directory / CONFIG).is_file():
        record_config(cell.plan)  # of the environment it says nothing: its own process had the devices
    path = cell.folder(seed) / ERROR
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text)
    print(f"failed: {cell.folder(seed)}: {last_line(text)}", file=sys.stderr)


def side_by_side(runs: Sequence[Run]) -> None:
    """Runs as lanes, as many at once as fit; where a number decides what is compiled, those that agree on it."""
    waiting = [(list(runs), MOST)]
    while waiting:
        part, at_once = waiting.pop(0)
        again, fitting = lanes_of(part[:at_once])
        waiting = [(some, min(at_once, fitting)) for some in (*again, part[at_once:]) if some] + waiting


def lanes_of(chunk: Sequence[Run]) -> tuple[list[list[Run]], int]:
    """Runs all of these as lanes: (those that are to go again, in the parts that may go together; how many at once then fit)."""
    import jax

    from rlhf_jax.lanes.numbers import Decides
    from rlhf_jax.lanes.together import TooLarge, run_lanes
    from rlhf_jax.mesh import make_mesh
    from rlhf_jax.report.environment import cores
    from rlhf_jax.report.progress import ASIDE

    def work(lane: int, cell: Cell, seed: int) -> Callable[[Any], None]:
        def follow(programs: Any) -> None:
            ASIDE.set(lane > 0)  # the others are as far as the first
            try:
                run_one(cell, seed, programs)
            except (Decides, TooLarge):
                raise
            except Exception as error:
                if "RESOURCE_EXHAUSTED" in str(error) and len(chunk) > 1:  # outside what the lanes have in common
                    fewer = max(len(chunk) // len(meshes) // 2, 1)
                    raise TooLarge(f"{len(chunk)} lanes have run out of memory", fewer) from None
                note_error(cell, seed, told(error))

        return follow

    print(f"{len(chunk)} runs side by side", file=sys.stderr)
    # Of a CPU, whose small programs keep one core busy, a device for each.
    devices = jax.devices()[: cores() if jax.default_backend() == "cpu" else None]
    meshes = [make_mesh(ONE_DEVICE, [device]) for device in devices]
    works = [work(lane, *run) for lane, run in enumerate(chunk)]
    outcomes = run_lanes(works, meshes, before=chunk[0][0].plan.notice.heed)
    for outcome in outcomes:
        if isinstance(outcome, BaseException) and not isinstance(outcome, Decides | TooLarge):
            raise outcome  # asked to end
        if isinstance(outcome, BaseException):
            # What it was raised in holds the arrays of its lane, for which the next need the room.
            outcome.__traceback__ = outcome.__cause__ = outcome.__context__ = None
    gc.collect()
    large = [outcome for outcome in outcomes if isinstance(outcome, TooLarge)]
    decides = [outcome for outcome in outcomes if isinstance(outcome, Decides)]
    again = [run for run, outcome in zip(chunk, outcomes, strict=True) if isinstance(outcome, TooLarge | Decides)]
    fitting = MOST
    if large:
        fitting = min(min(outcome.fitting for outcome in large) * len(meshes), len(chunk) - 1)
        print(f"{large[0]}", file=sys.stderr)
    if not decides:
        return [again], fitting
    print(f"{decides[0]}: they are run apart", file=sys.stderr)
    names = {name.rpartition(".")[2] for outcome in decides for name in outcome.names}
    return apart(again, names), fitting


def apart(runs: Sequence[Run], names: set[str]) -> list[list[Run]]:
    """The runs in parts that agree on all fields of these names; where all of them do, each by itself."""

    def found(node: Any, name: str = "") -> list[Any]:
        if isinstance(node, dict):
            return [value for key, inner in node.items() for value in found(inner, key)]
        return [node] if name in names else []

    parts: dict[str, list[Run]] = {}
    for cell, seed in runs:
        parts.setdefault(json.dumps(found(to_dict(cell.plan.experiment))), []).append((cell, seed))
    return list(parts.values()) if len(parts) > 1 else [[run] for run in runs]
