"""Memory of the host and programs compiled over thousands of steps of a run, checkpoints and metrics included.

python -m benchmarks.long_run [--steps 2000] [--name smoke/sft]

One JSON line. `growth_mib` is what the resident memory gains from a tenth of the steps to the last; `compiled_after` the programs that
were compiled behind that tenth.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.monitoring

from experiments.execute import start_jax
from experiments.registry import find
from rlhf_jax.config import Experiment
from rlhf_jax.loops.pipeline import run_experiment
from rlhf_jax.loops.run import open_run

COMPILED = "/jax/core/compile/backend_compile_duration"


def lengthened(experiment: Experiment, steps: int) -> tuple[Experiment, str]:
    """(the experiment with so many steps of its last stage, that stage)."""
    if experiment.ppo is not None:
        return dataclasses.replace(experiment, ppo=dataclasses.replace(experiment.ppo, iterations=steps)), "ppo"
    stage = next(name for name in ("preference", "ilql", "classify", "reward", "sft") if getattr(experiment, name))
    config: Any = getattr(experiment, stage)
    changed: Any = {stage: dataclasses.replace(config, optim=dataclasses.replace(config.optim, steps=steps))}
    return dataclasses.replace(experiment, **changed), stage


def resident() -> float:
    """Memory of this process in MiB."""
    return int(re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024  # pyright: ignore[reportOptionalSubscript]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--name", default="smoke/sft")
    options = parser.parse_args()
    experiment, stage = lengthened(find(options.name).experiment("cpu"), options.steps)
    start_jax(experiment)
    memory: dict[int, float] = {}
    compiled: list[float] = []

    def heard(event: str, seconds: float, **_: Any) -> None:
        if event == COMPILED:
            compiled.append(time.monotonic())

    jax.monitoring.register_event_duration_secs_listener(heard)  # pyright: ignore[reportArgumentType]
    marks: dict[int, float] = {}

    def on_step(at: str, done: int) -> None:
        if at == stage and done in (options.steps // 10, options.steps // 2, options.steps):
            memory[done], marks[done] = resident(), time.monotonic()

    with tempfile.TemporaryDirectory() as folder:
        run_experiment(open_run(experiment, Path(folder), on_step=on_step))
    first, last = min(marks), max(marks)
    print(
        json.dumps(
            {
                "experiment": options.name,
                "stage": stage,
                "steps": options.steps,
                "checkpoints": options.steps // experiment.checkpoint_every,
                "resident_mib": {str(step): round(mib, 1) for step, mib in memory.items()},
                "growth_mib": round(memory[last] - memory[first], 1),
                "compiled_after": sum(marks[first] < moment < marks[last] for moment in compiled),
                "jax": jax.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
