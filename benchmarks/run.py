"""`python -m benchmarks.run`: one JSON line per workload and size; each in a process of its own, so that peak memory is its own."""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time


def measure(name: str, size: str, steps: int) -> dict:
    """Rate, step seconds by phase (median, min, max), seconds of the first step (compilation), peak memory in MiB."""
    import jax
    import numpy as np

    from benchmarks.workloads import SIZES, WORKLOADS

    workload = WORKLOADS[name](SIZES[size])
    values, compile_seconds = jax.block_until_ready(workload.values), 0.0
    seconds: dict[str, list[float]] = {phase: [] for phase in workload.phases}
    for step in range(steps + 1):
        for phase, run in workload.phases.items():
            start = time.perf_counter()
            values = jax.block_until_ready(run(values))
            spent = time.perf_counter() - start
            if step:
                seconds[phase].append(spent)
            else:
                compile_seconds += spent
    whole = np.sum(list(seconds.values()), axis=0)
    return {
        "workload": name,
        "size": size,
        "unit": workload.unit,
        "rate": round(workload.amount / float(np.median(whole)), 2),
        "step_seconds": _spread(whole),
        "phases": {phase: _spread(np.array(times)) for phase, times in seconds.items()},
        "compile_seconds": round(compile_seconds - float(np.median(whole)), 2),
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "steps": steps,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "machine": platform.machine(),
    }


def _spread(seconds) -> dict[str, float]:
    import numpy as np

    named = {"median": np.median(seconds), "min": np.min(seconds), "max": np.max(seconds)}
    return {name: round(float(value), 4) for name, value in named.items()}


def main(argv: list[str] | None = None) -> int:
    names = ("sft", "reward", "generation", "ppo")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--workload", nargs="+", choices=names, default=names)
    parser.add_argument("--size", nargs="+", choices=("S", "M"), default=("S", "M"))
    parser.add_argument("--steps", type=int, default=5, help="counted steps after the first, which compiles")
    parser.add_argument("--here", action="store_true", help="in this process: for the one workload and size given")
    options = parser.parse_args(argv)
    if options.steps < 1:
        parser.error(f"--steps {options.steps}: at least 1")
    for size in options.size:
        for name in options.workload:
            if options.here:
                print(json.dumps(measure(name, size, options.steps)), flush=True)
                continue
            command = [sys.executable, "-m", "benchmarks.run", "--here", "--workload", name, "--size", size]
            code = subprocess.run([*command, "--steps", str(options.steps)], check=False).returncode
            if code:
                return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
