"""The three sides as processes of their own: where their environments are, what they are asked to do, and one round of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.protocol import Unavailable
from benchmarks.workloads import OPTIM
from benchmarks.workloads.common import SHAPE, lengths
from benchmarks.workloads.learning import OPTIM as RL_OPTIM
from benchmarks.workloads.training import TEXTS
from rlhf_jax.config import ModelConfig
from rlhf_jax.report.environment import cores

ROOT = Path(__file__).parents[2]
PEERS = ("trl", "tunix")
WORKLOADS = ("sft", "sft_padded", "sft_packed", "reward", "dpo", "generation", "grpo", "ppo")
GRPO_PROMPTS, GRPO_SAMPLES = 4, 4
# As KEEP of the Makefile.
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "1000000000000"}
MOST_APART = 0.01  # of the numbers of parameters; a reward model has a head of its own
FIELDS = ("vocab", "width", "layers", "heads", "kv_heads", "mlp", "max_length", "norm_eps")


def make_task(workload: str, config: ModelConfig, warmup: int = 2) -> dict[str, Any]:
    """What every side is told: the shape of the model and the sizes of our workload."""
    return {
        "workload": workload,
        "warmup": warmup,
        "threads": cores(),
        "model": {name: getattr(config, name) for name in FIELDS},
        "lr": (RL_OPTIM if workload in ("grpo", "ppo") else OPTIM).lr,
        "rows": SHAPE.rows,
        "length": SHAPE.length,
        "lengths": np.maximum(lengths(TEXTS, 100, SHAPE.length), 2).tolist(),
        "prompts": GRPO_PROMPTS if workload == "grpo" else SHAPE.prompts,
        "samples": GRPO_SAMPLES if workload == "grpo" else 1,
        "prompt_length": SHAPE.prompt_length,
        "new_tokens": SHAPE.new_tokens,
    }


def interpreter(name: str, venv: Path) -> Path:
    """The Python of a side. Raises: FileNotFoundError with the command that makes its environment."""
    if name not in PEERS:
        return Path(sys.executable)
    # Not resolved: what the environment's Python links to knows nothing of the environment.
    python = (venv / name / "bin" / "python").absolute()
    if not python.exists():
        raise FileNotFoundError(
            f"no environment of {name} at {venv / name}; make it with: python -m venv {venv / name} && "
            f"{venv / name}/bin/pip install -r benchmarks/peers/{name}.txt"
        )
    return python


@dataclasses.dataclass
class Side:
    """A process that does rounds when asked. `ready` is what it said of itself."""

    name: str
    process: subprocess.Popen[str]
    errors: Any
    ready: dict[str, Any]

    def round(self, steps: int) -> float:
        """Seconds per step. Raises: Unavailable if the process ends, or gives up."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # what it said last tells more
            self.process.stdin.write(f"go {steps}\n")
            self.process.stdin.flush()
        return float(self.hear()["seconds"])

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            self.errors.seek(0)
            said = self.errors.read().decode(errors="replace").strip().splitlines()
            raise Unavailable(f"ended with {code}: {said[-1] if said else 'without a word'}")
        told = json.loads(line)
        if "unavailable" in told:
            raise Unavailable(told["unavailable"])
        return told

    def close(self) -> None:
        """Lets it end, and waits until it has."""
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.errors.close()


def start(name: str, task: dict[str, Any], python: Path) -> Side:
    """A side that has done its first steps. Raises: Unavailable with what it says, or the last line of its errors."""
    errors = tempfile.TemporaryFile()  # noqa: SIM115, as the side closes it
    process = subprocess.Popen(
        [str(python), "-m", f"benchmarks.peers.{name}_side", json.dumps(task)],
        cwd=ROOT,
        env=os.environ | MALLOC,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    )
    side = Side(name, process, errors, {})
    try:
        side.ready = side.hear()
    except BaseException:
        side.close()
        raise
    return side


def steps_for(seconds: float, probes: list[float], most: int = 100) -> int:
    """Steps of a round, so that the fastest side takes about so many seconds."""
    return min(most, max(1, math.ceil(seconds / min(probes))))
