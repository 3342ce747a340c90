"""The command line: `python -m rlhf_jax.plan EXPERIMENT`, for another slice than its own with `--topology v5e:4x4`."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LARGE, USER_ERROR = 1, 2
AXES = ("data", "fsdp", "tensor", "context")
DESCRIPTION = """Compiles the programs of an experiment for a TPU slice that need not be there (libtpu, extra `tpu`), from shapes
alone, and says what a chip's memory has to hold, what is exchanged, and how long a step takes at least. Ends with 0 when everything fits, 1
when something does not, 2 for arguments that make no sense. For GPUs it gives the arithmetic only, as there is no compiler without them."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.most < 1:
        parser.error(f"--most {options.most}: at least 1")
    os.environ["JAX_PLATFORMS"] = "cpu"  # what programs are traced on; libtpu compiles beside it
    try:
        return run(options)
    except (ValueError, KeyError, OSError) as error:
        said = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"python -m rlhf_jax.plan: error: {said}", file=sys.stderr)
        return USER_ERROR


def run(options: argparse.Namespace) -> int:
    """Plans what the options say."""
    from rlhf_jax.mesh import split_cpu
    from rlhf_jax.plan.chips import parse_topology
    from rlhf_jax.plan.planner import plan
    from rlhf_jax.plan.search import remedy, search
    from rlhf_jax.plan.table import as_json, table

    # By its name, as experiments stand above this package.
    entry = importlib.import_module("experiments.registry").find(options.experiment)
    if entry.run_study is not None:
        raise ValueError(f"{entry.name} is a study of small models, which has no updates to plan")
    scale = options.scale or ("tpu" if "tpu" in entry.costs else "cpu")
    planned = options.topology or (entry.topology if scale == "tpu" else None)
    if planned is None:
        raise ValueError(
            f"{entry.name} is laid out for no slice at scale {scale}; say which with --topology, such as v5e:2x2"
        )
    topology = parse_topology(planned)
    split_cpu(1 if topology.compiles else topology.chips)
    experiment = _experiment(options, entry.experiment(scale), topology.chips)
    if options.search:
        found = search(experiment, topology, only=options.only, most=options.most, tell=_tell)
        print(found.table())
        experiment = found.best
    costs = plan(experiment, topology, only=options.only, tell=_tell)
    print(table(costs))
    fits = all(cost.fits for cost in costs)
    if not fits:
        print(remedy(experiment, topology, [cost.name for cost in costs if not cost.fits], tell=_tell))
    if options.json is not None:
        from rlhf_jax.files import write_atomic

        write_atomic(options.json, json.dumps(as_json(experiment.name, costs), indent=1) + "\n")
    return 0 if fits else LARGE


def _experiment(options: argparse.Namespace, experiment: Any, chips: int) -> Any:
    """The experiment with its overrides, on the mesh that was asked for, else on its own, else split over fsdp as far as it can be."""
    from rlhf_jax.config import MeshConfig
    from rlhf_jax.overrides import apply_overrides
    from rlhf_jax.plan.planner import meshes

    experiment = apply_overrides(experiment, options.set)
    if options.mesh:
        return dataclasses.replace(experiment, mesh=MeshConfig(**dict(map(_axis, options.mesh.split(",")))))
    if experiment.mesh.devices == chips:
        return experiment
    found = next(meshes(experiment, chips), None)
    if found is None:
        raise ValueError(
            f"{experiment.name}: no mesh of {chips} devices divides its rows and heads; set other rows, such as sft.optim.rows"
        )
    return found


def _axis(part: str) -> tuple[str, int]:
    name, equals, value = part.partition("=")
    if name not in AXES or not equals or not value.isdecimal():
        raise ValueError(f"--mesh {part}: expected sizes of {', '.join(AXES)}, such as fsdp=8,tensor=2")
    return name, int(value)


def _tell(said: str) -> None:
    print(said, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m rlhf_jax.plan", description=DESCRIPTION)
    parser.add_argument("experiment", metavar="EXPERIMENT", help="as `python -m experiments.run list` has it")
    parser.add_argument(
        "--topology",
        metavar="CHIP:SHAPE",
        help="such as v5e:4x4, v5p:4x4x4, v6e:8x8, h200:8; default: what the experiment is laid out for at scale tpu",
    )
    parser.add_argument("--scale", help="cpu, gpu or tpu; default: tpu where the experiment has it")
    parser.add_argument(
        "--mesh",
        metavar="AXIS=N,...",
        help="such as fsdp=8,tensor=2; default: the experiment's, or fsdp as far as rows go",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="A.B=C", help="as for experiments.run; may be repeated"
    )
    parser.add_argument("--only", metavar="PROGRAM", help="such as sft, ppo or ppo/responses")
    parser.add_argument("--search", action="store_true", help="try meshes and microbatches, the fastest first")
    parser.add_argument("--most", type=int, default=8, metavar="N", help="how many the search compiles; default 8")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that is known")
    return parser


if __name__ == "__main__":
    sys.exit(main())
