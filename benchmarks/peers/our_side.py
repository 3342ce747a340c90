"""We do the workloads: `python -m benchmarks.peers.our_side TASK`. A step is what `benchmarks.run` times."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from typing import Any

import jax

import rlhf_jax
from benchmarks.peers.protocol import Gate, Unavailable, repeat, run_side
from benchmarks.workloads import SIZES, WORKLOADS, use_all_cores

VERSIONS = {
    "rlhf_jax": rlhf_jax.__version__,
    **{name: importlib.metadata.version(name) for name in ("jax", "flax", "optax")},
}


def serve(task: dict[str, Any], gate: Gate) -> None:
    if task["workload"] not in WORKLOADS:
        raise Unavailable(f"we have no workload {task['workload']}")
    use_all_cores()
    workload = WORKLOADS[task["workload"]](dataclasses.replace(SIZES["S"], **task["model"]))
    values = jax.block_until_ready(workload.values)

    def step() -> None:
        nonlocal values
        for run in workload.phases.values():
            values = jax.block_until_ready(run(values))

    gate.describe(parameters(values), VERSIONS)
    repeat(gate, step)


def parameters(values: dict[str, Any]) -> int:
    """Numbers in the model that learns or writes."""
    holder = values.get("state")
    params = values["params"] if holder is None else getattr(holder, "policy", holder).params
    return sum(leaf.size for leaf in jax.tree.leaves(params))


if __name__ == "__main__":
    run_side(serve)
