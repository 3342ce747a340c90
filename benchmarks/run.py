"""`python -m benchmarks.run`: one JSON line per workload and size; each in a process of its own, so that peak memory is its own."""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.workloads import SIZES, WORKLOADS, Workload, use_all_cores


def measure(
    make: Callable[[], Workload], named: Mapping[str, str], steps: int, began: float, profile: Path | None = None
) -> dict[str, Any]:
    """Rate, step seconds by phase (median, min, max), seconds of the first step (compilation), peak memory in MiB, of the process, and of
    a device that tells it; after what it is `named`.

    `began`: when the process was started, in seconds since the epoch. With `profile`, a trace of one more step is written there, and the
    operations, and kinds of them, that took most of it are told.
    """
    import jax
    import numpy as np

    use_all_cores()
    workload = make()
    values, compile_seconds, first = jax.block_until_ready(workload.values), 0.0, 0.0
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
        first = first or time.time() - began
    before: list[float] = []
    for step in range(steps + 1 if workload.before is not None else 0):
        start = time.perf_counter()
        jax.block_until_ready(workload.before(values))  # pyright: ignore[reportOptionalCall]
        before += [time.perf_counter() - start] if step else []
    whole = np.sum(list(seconds.values()), axis=0)
    median = float(np.median(whole))
    measured = {
        **named,
        "unit": workload.unit,
        "rate": round(workload.amount / median, 2),
        "step_seconds": _spread(whole),
        "phases": {phase: _spread(np.array(times)) for phase, times in seconds.items()},
        "compile_seconds": round(compile_seconds - median, 2),
        "first_result_seconds": round(first, 2),
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        **({"before_decoding": _spread(np.array(before))} if before else {}),
        "flops": workload.flops,
        "bytes": workload.bytes,
        "steps": steps,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "machine": platform.machine(),
    }
    told = jax.devices()[0].memory_stats()
    if told:
        measured["device_peak_memory_mib"] = round(told["peak_bytes_in_use"] / 2**20)
    if profile is not None:
        from benchmarks.profile import top_operations

        measured |= top_operations(workload, values, profile / "-".join(named.values()))
    return measured


def shares(measured: dict[str, Any], limits: dict[str, float]) -> dict[str, float]:
    """Of the machine's measured rate of products, in bfloat16 where it has been measured, of the rate at which it reads, where a workload
    says what decoding reads, in the time of its rollouts without that of their prompts, and of both, as if nothing went on side by side."""
    median = measured["step_seconds"]["median"]
    products = measured["flops"] / limits.get("bfloat16_flops", limits["float32_flops"])
    found = {"of_matmul_rate": products / median}
    if measured["bytes"]:
        reading = measured["bytes"] / limits["read_bytes"]
        decoding = measured["phases"]["rollout"]["median"] - measured["before_decoding"]["median"]
        found |= {"of_both": (products + reading) / median}
        if decoding > 0:  # else it is below the noise
            found["of_read_rate"] = reading / decoding
    return {name: round(share, 3) for name, share in found.items()}


def _spread(seconds) -> dict[str, float]:
    import numpy as np

    named = {"median": np.median(seconds), "min": np.min(seconds), "max": np.max(seconds)}
    return {name: round(float(value), 4) for name, value in named.items()}


def one_by_one(module: str, commands: Iterable[Sequence[str]]) -> int:
    """Prints what the machine can do, and the line of each command of this module, run in a process of its own. Comes out with the exit
    code: of the first process that fails, which has said why; the others are run all the same."""

    def child(*arguments: str) -> dict[str, Any]:
        done = subprocess.run([sys.executable, "-m", *arguments], check=True, stdout=subprocess.PIPE, text=True)
        return json.loads(done.stdout.splitlines()[-1])

    failed = 0
    try:
        limits = child("benchmarks.limits")
    except subprocess.CalledProcessError as error:
        return error.returncode
    print(json.dumps({"limits": limits}), flush=True)
    for command in commands:
        try:
            measured = child(module, *command, "--began", str(time.time()))
        except subprocess.CalledProcessError as error:
            failed = failed or error.returncode
            continue
        print(json.dumps(measured | shares(measured, limits)), flush=True)
    return failed


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--size", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--steps", type=int, default=5, help="counted steps after the first, which compiles")
    parser.add_argument(
        "--profile", type=Path, metavar="DIR", help="write a trace of a step, and tell what it spends its time on"
    )
    # In this process, which was started then: for the one workload and size given.
    parser.add_argument("--began", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.steps < 1:
        parser.error(f"--steps {options.steps}: at least 1")
    if options.began is not None:
        (name,), (size,) = options.workload, options.size
        named = {"workload": name, "size": size}
        print(
            json.dumps(
                measure(lambda: WORKLOADS[name](SIZES[size]), named, options.steps, options.began, options.profile)
            )
        )
        return 0
    how = ["--steps", str(options.steps), *([] if options.profile is None else ["--profile", str(options.profile)])]
    pairs = itertools.product(options.size, options.workload)
    return one_by_one("benchmarks.run", (["--workload", name, "--size", size, *how] for size, name in pairs))


if __name__ == "__main__":
    sys.exit(main())
