"""How much a sweep saves over as many runs: PPO of a policy of 106,000 parameters, 8 seeds, as `sweep` and as `run`.

python -m benchmarks.sweep

One JSON line. All of it, from an empty cache of programs: starting, compiling, 20 iterations, and evaluation. What an iteration costs when
all is compiled is the difference between runs of 60 iterations and of 20, by a cache that has the programs of both.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SEEDS, SHORT, LONG = 8, 20, 60
SETTINGS = ("policy.width=64", "policy.mlp=64", "ppo.prompts=16", "checkpoint_every=1000")


def seconds_of(command: str, iterations: int, folder: Path, *more: str) -> float:
    """How long a command of the experiments takes, as a process. Raises: subprocess.CalledProcessError."""
    settings = [word for setting in (*SETTINGS, f"ppo.iterations={iterations}") for word in ("--set", setting)]
    asked = [sys.executable, "-m", "experiments.run", command, "smoke/ppo", *settings, *more]
    environment = {**os.environ, "RLHF_JAX_CACHE": str(folder / "cache")}
    with tempfile.TemporaryDirectory(dir=folder) as place:
        started = time.monotonic()
        command_line, quiet = [*asked, "--workdir", f"{place}/run"], subprocess.DEVNULL
        subprocess.run(command_line, env=environment, check=True, stdout=quiet, stderr=quiet)
        return time.monotonic() - started


def main() -> None:
    measured: dict[str, float] = {}
    for name in ("sweep", "runs"):
        with tempfile.TemporaryDirectory() as folder:

            def all_seeds(iterations: int, seeds: int = SEEDS, name: str = name, folder: Path = Path(folder)) -> float:
                if name == "sweep":
                    return seconds_of("sweep", iterations, folder, "--over", f"seed=0..{seeds - 1}")
                return sum(seconds_of("run", iterations, folder, "--set", f"seed={seed}") for seed in range(seeds))

            measured[f"{name}_from_nothing_s"] = round(all_seeds(SHORT), 1)
            # The number of updates is in their program: these leave that of the longer ones in the cache.
            all_seeds(LONG, SEEDS if name == "sweep" else 1)
            for kind, iterations in (("short", SHORT), ("long", LONG)):
                measured[f"{name}_{kind}_s"] = round(all_seeds(iterations), 1)
        iterations_s = measured[f"{name}_long_s"] - measured[f"{name}_short_s"]
        measured[f"{name}_iteration_ms"] = round(1000 * iterations_s / (LONG - SHORT), 1)
    measured["iteration_share"] = round(measured["sweep_iteration_ms"] / measured["runs_iteration_ms"], 3)
    measured["whole_times_faster"] = round(measured["runs_from_nothing_s"] / measured["sweep_from_nothing_s"], 2)
    print(json.dumps({"seeds": SEEDS, "iterations": SHORT, **measured}))


if __name__ == "__main__":
    main()
