"""A run of an experiment over its seeds: what is checked before anything is written, and the files it leaves.

DIR/config.json, environment.json          written first, once everything has been checked
DIR/seed_K/...                             one folder per seed, written by the loops
DIR/summary.json, verdicts.json, report.html
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from experiments.algorithms import algorithm
from experiments.registry import Claim, Entry
from rlhf_jax.config import Experiment
from rlhf_jax.config.study import OnPolicyStudy, Study
from rlhf_jax.files import exclusive, write_atomic
from rlhf_jax.loops.faults import FOLDER as FAULTS
from rlhf_jax.loops.preemption import Notice
from rlhf_jax.overrides import difference, to_dict
from rlhf_jax.processes import agreed, check_same, count, heartbeat, is_first, number
from rlhf_jax.report.html import write_report
from rlhf_jax.report.run_report import run_report
from rlhf_jax.report.runs import (
    ABOUT,
    CONFIG,
    ENVIRONMENT,
    REPORT,
    SEED,
    SUMMARY,
    VERDICTS,
    Figure,
    RunFiles,
    read_json,
    read_run,
    seed_directories,
)
from rlhf_jax.report.study import write_study

INTERRUPTED = 130  # the code of a command that was interrupted


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to run and where. `seeds` is how many, from the experiment's own seed on; `remesh` lets a resumed run go on on another mesh."""

    entry: Entry
    experiment: Experiment | Study
    directory: Path
    seeds: int
    resume: bool
    data_root: Path | None
    notice: Notice = dataclasses.field(default_factory=Notice)
    remesh: bool = False


def execute(plan: Plan) -> RunFiles | None:
    """Every seed of the plan that has not finished yet, one after another; then summary, verdicts and report. Of several processes the
    first alone writes those, and gets what they say.

    Raises: ValueError, FileNotFoundError, FileExistsError or KeyError, before anything is written, for what can be known by then.
    """
    start_jax(plan.experiment)
    agreed(partial(check, plan))
    with contextlib.ExitStack() as stack:
        agreed(lambda: stack.enter_context(exclusive(plan.directory)) if is_first() else None)
        agreed(lambda: record(plan) if is_first() else None)
        agreed(partial(check_shared, plan))
        run_seeds(plan)
        return summarise(plan.directory, plan.entry) if is_first() else None


def check(plan: Plan, *, devices: bool = True) -> None:
    """What can be known before anything is written, and without `devices` before JAX has started. Raises: as `execute`."""
    check_directory(plan)
    if devices:
        check_devices(plan.experiment)
    if isinstance(plan.experiment, OnPolicyStudy):
        check_algorithms(plan.experiment)
    if isinstance(plan.experiment, Experiment):
        check_data(plan.experiment, plan.data_root)


def check_shared(plan: Plan) -> None:
    """Raises: ValueError where this process does not see the files of the first, or was started with something else than that."""
    path, until = plan.directory / CONFIG, time.monotonic() + heartbeat()
    # NFS remembers for a while that a file was not there.
    while not path.is_file() and time.monotonic() < until:
        time.sleep(0.5)
    found = read_json(path, None)
    if found is None:
        raise ValueError(
            f"{path}, which process 0 has written, is not there for process {number()}: --workdir must lie on a file system that all of "
            "them share, such as NFS or a mounted bucket"
        )
    changes = difference(found, _config(plan.experiment))
    if changes:
        raise ValueError(f"process {number()} was started with another config than process 0: {', '.join(changes)}")


def run_seeds(plan: Plan) -> None:
    """Those seeds of the plan that have not finished yet."""
    first = plan.experiment.seed
    if isinstance(plan.experiment, Study):
        run_study(plan, plan.experiment)
        return
    seeds = range(first, first + plan.seeds)
    left = [seed for seed in seeds if not (plan.directory / f"{SEED}{seed}" / SUMMARY).is_file()]
    check_same("which seeds are to run", str(left))
    for seed in left:
        directory = plan.directory / f"{SEED}{seed}"
        if is_first():
            print(f"seed {seed}, {seed - first + 1} of {plan.seeds}, in {directory}", file=sys.stderr)
        run_seed(dataclasses.replace(plan.experiment, seed=seed), directory, plan.data_root, plan.notice)


def seeds_to_run(directory: Path, asked: int | None, resume: bool) -> int:
    """How many seeds: as asked; else, when resuming, as many as had begun; else one."""
    return asked or (resume and len(seed_directories(directory))) or 1


def start_jax(experiment: Experiment | Study, *, side_by_side: bool = False) -> None:
    """What must stand before JAX starts: the cache of programs; of a CPU, this process's devices of the mesh, for a study, and for runs
    side by side, one per core."""
    import logging

    import jax

    from rlhf_jax.files import cache_directory
    from rlhf_jax.mesh import split_cpu
    from rlhf_jax.report.environment import cores

    settings: Any = jax.config
    for name in ("absl", "orbax"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if settings.jax_compilation_cache_dir is None:
        settings.update("jax_compilation_cache_dir", str(cache_directory() / "xla"))
        settings.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    on_cpu = experiment.scale == "cpu" or cpu_is_asked_for()
    devices = experiment.mesh.devices // count() if isinstance(experiment, Experiment) else cores()
    devices = max(devices, cores()) if side_by_side else devices
    if on_cpu and devices > max(settings.jax_num_cpu_devices, 1):
        split_cpu(devices)


def check_directory(plan: Plan) -> None:
    """Raises: FileExistsError for a directory that this run may not write to, ValueError for a resumed run of another config."""
    directory = plan.directory
    if not directory.exists():
        return
    if not directory.is_dir():
        raise FileExistsError(f"{directory} is a file; choose another --workdir")
    path = directory / CONFIG
    if not path.is_file():
        # What was being written when a process was killed starts with a dot.
        if any(not path.name.startswith(".") for path in directory.iterdir()):
            raise FileExistsError(f"{directory} is not empty and holds no run; choose another --workdir")
        return
    changes = difference(read_json(path, {}), _config(plan.experiment))
    if plan.resume and changes and all(change.startswith("mesh.") for change in changes):
        if plan.remesh:
            return
        listed = ", ".join(changes)
        raise ValueError(
            f"{directory} holds this run on another mesh ({listed}); with --remesh it goes on, the same to rounding but not to the bit"
        )
    if changes:
        listed = "\n  ".join(changes)
        wrong = ValueError if plan.resume else FileExistsError
        raise wrong(f"{directory} holds a run of another config; choose another --workdir. The difference:\n  {listed}")
    if not plan.resume:
        raise FileExistsError(
            f"{directory} holds this run already; continue it with --resume, or choose another --workdir"
        )


def check_devices(experiment: Experiment | Study) -> None:
    """Raises: ValueError where the devices are not those that the scale and the mesh are meant for."""
    import jax

    from rlhf_jax.mesh import make_mesh

    if experiment.scale != "cpu" and jax.default_backend() == "cpu" and not cpu_is_asked_for():
        raise ValueError(
            f"scale {experiment.scale!r} needs an accelerator, and JAX finds none here; "
            "take --scale cpu, or set JAX_PLATFORMS=cpu to run it on the CPU all the same"
        )
    if count() > 1 and isinstance(experiment, Study):
        raise ValueError(f"a study runs on one process, and {count()} were started")
    devices = len(jax.devices())
    if count() > 1 and experiment.mesh.devices != devices:
        raise ValueError(
            f"the mesh has {experiment.mesh.devices} devices, and {count()} processes have {devices}: all must take part; set mesh.data, "
            "mesh.fsdp, mesh.tensor or mesh.context"
        )
    make_mesh(experiment.mesh)


def check_algorithms(study: OnPolicyStudy) -> None:
    """Raises: KeyError for a name that no algorithm has, with the closest; ValueError for one twice."""
    for name in study.algorithms:
        algorithm(name, new_tokens=study.world.length, kl_coef=study.beta)
    twice = sorted({name for name in study.algorithms if study.algorithms.count(name) > 1})
    if twice:
        raise ValueError(f"algorithms names {', '.join(twice)} more than once")


def cpu_is_asked_for() -> bool:
    """Whether JAX was told to use the CPU by name, where small shapes of any scale can be tried."""
    import jax

    settings: Any = jax.config
    return settings.jax_platforms == "cpu"


def check_data(experiment: Experiment, data_root: Path | None) -> None:
    """Raises: FileNotFoundError for a missing data root or file, KeyError for an unknown adapter."""
    from rlhf_jax.data.sources import find_data_root, find_files, parse_source
    from rlhf_jax.loops.pretrained import check_pretrained
    from rlhf_jax.loops.sources import WORLD

    sources = [source for mixture in experiment.mixtures() for source, _ in mixture.sources if source != WORLD]
    for source in sources:
        find_files(parse_source(source), find_data_root(data_root))
    check_pretrained(experiment, partial(find_data_root, data_root))


def record(plan: Plan) -> None:
    """Writes the config, and the environment: of the first start, with those of later ones under "resumed"."""
    from rlhf_jax.report.environment import environment

    path = plan.directory / ENVIRONMENT
    first, now = read_json(path, None), environment()
    written = now if first is None else {**first, "resumed": [*first.get("resumed", []), now]}
    record_config(plan)
    _write_json(path, written)


def record_config(plan: Plan) -> None:
    """Writes the config, and what the experiment is about."""
    entry = plan.entry
    about = {"paper": entry.paper, "claim": entry.claim, "description": inspect.cleandoc(entry.doc)}
    _write_json(plan.directory / CONFIG, _config(plan.experiment))
    _write_json(plan.directory / ABOUT, about)


def run_study(plan: Plan, study: Study) -> None:
    """All seeds of a study together, unless they have finished."""
    seeds = range(study.seed, study.seed + plan.seeds)
    if all((plan.directory / f"{SEED}{seed}" / SUMMARY).is_file() for seed in seeds):
        return
    write_study(plan.directory, study.seed, plan.seeds, plan.entry.study_program()(study, plan.seeds))


def run_seed(
    experiment: Experiment, directory: Path, data_root: Path | None, notice: Notice, programs: Any = None
) -> None:
    """All stages of one seed, by programs that others may share; its summary is the last thing that is written."""
    from rlhf_jax.loops.pipeline import run_experiment
    from rlhf_jax.loops.run import open_run

    with own_directory(directory) as own:
        run_experiment(open_run(experiment, own, programs, shared=directory, data_root=data_root, notice=notice))


@contextlib.contextmanager
def own_directory(directory: Path) -> Iterator[Path]:
    """Where this process has the files of a seed: the first in the seed's directory, others in a copy of it, to which they do the same."""
    if is_first():
        agreed(lambda: None)  # the others have copied what they go on from
        yield directory
        return
    # By a name of its own, under which one that was killed has left it.
    run = hashlib.sha256(str(directory.absolute()).encode()).hexdigest()[:16]
    own = Path(tempfile.gettempdir()) / f"rlhf_jax.{os.getuid()}.{run}.{number()}"
    left_out = shutil.ignore_patterns("checkpoints", FAULTS, "tensorboard", ".*")
    shutil.rmtree(own, ignore_errors=True)
    agreed(lambda: shutil.copytree(directory, own, ignore=left_out) if directory.is_dir() else None)
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)


def summarise(directory: Path, entry: Entry) -> RunFiles:
    """Summary, verdicts and report of the seeds that have finished, as files and as the run they make."""
    figures = read_run(directory).figures
    summary = {
        name: {"mean": _plain(f.mean), "error": _plain(f.error), "values": [_plain(value) for value in f.values]}
        for name, f in figures.items()
    }
    _write_json(directory / SUMMARY, summary)
    _write_json(directory / VERDICTS, verdicts(entry, figures))
    run = read_run(directory)
    write_report(directory / REPORT, run_report(run))
    return run


def verdicts(entry: Entry, figures: Mapping[str, Figure]) -> list[dict[str, Any]]:
    """What the experiment's judge says of the figures; a run that lacks one of its figures is inconclusive."""
    if entry.judge is None or not figures:
        return []
    seeds = max(len(figure.values) for figure in figures.values())
    try:
        claims = entry.judge({name: list(figure.values) for name, figure in figures.items()})
    except KeyError as error:  # an override may have left out the stage that the claim is about
        statistic = f"needs the figure {error.args[0]!r}, which this run does not have"
        claims = [Claim(entry.claim, statistic, math.nan, math.nan, False)]
    return [verdict(claim, seeds) for claim in claims]


def verdict(claim: Claim, seeds: int) -> dict[str, Any]:
    """A claim as JSON. The interval is 95 %; without a known error there is none, and nothing is concluded."""
    known = math.isfinite(claim.value) and math.isfinite(claim.error)
    return {
        "signature": claim.signature,
        "statistic": claim.statistic,
        "value": _plain(claim.value),
        "interval": list(claim.interval) if known else None,
        "seeds": seeds,
        "verdict": "inconclusive" if not known or claim.holds is None else "holds" if claim.holds else "does not hold",
    }


def _config(experiment: Experiment | Study) -> dict[str, Any]:
    # As it comes back from the file, so that the two can be compared.
    return json.loads(json.dumps(to_dict(experiment)))


def _write_json(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _plain(value: float) -> float | None:
    """A number that JSON knows; None for nan and the infinities."""
    return float(value) if math.isfinite(value) else None
