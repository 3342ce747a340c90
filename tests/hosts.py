"""Runs of several processes on this machine, as a launcher starts them on several."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
HEARTBEAT = 10  # seconds
PATIENCE = 300  # seconds that a run may take, on a machine that is busy
QUIET = {"JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "ignore", "RLHF_JAX_HEARTBEAT": str(HEARTBEAT)}
OURS = ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS", "NPROC")  # which the processes decide for themselves


class Ended(NamedTuple):
    """How a process ended."""

    code: int
    told: str  # on standard output
    said: str  # on standard error


class Several:
    """A process for each command, told its number as `variables(number, count, port)` says."""

    def __init__(
        self,
        commands: Sequence[Sequence[str]],
        folder: Path,
        variables: Callable[[int, int, int], dict[str, str]] | None = None,
    ) -> None:
        port, count = free_port(), len(commands)
        self.files = [(folder / f"{port}.{number}.out", folder / f"{port}.{number}.err") for number in range(count)]
        self.running = []
        for number, (command, (out, errors)) in enumerate(zip(commands, self.files, strict=True)):
            told = (variables or by_hand)(number, count, port) if count > 1 else {}
            with out.open("wb") as output, errors.open("wb") as said:
                self.running.append(
                    subprocess.Popen(command, cwd=ROOT, env=environment(told), stdout=output, stderr=said)
                )

    def wait(self) -> list[Ended]:
        """How each of them ends. Raises: subprocess.TimeoutExpired, when all of them are killed."""
        until = time.monotonic() + PATIENCE
        try:
            codes = [process.wait(max(until - time.monotonic(), 0.1)) for process in self.running]
        finally:
            for process in self.running:
                process.kill()
        return [
            Ended(code, *(file.read_text() for file in files)) for code, files in zip(codes, self.files, strict=True)
        ]


def environment(told: dict[str, str]) -> dict[str, str]:
    """That of a process on its own, and what it is told."""
    return {name: value for name, value in os.environ.items() if name not in OURS} | QUIET | told


def by_hand(number: int, count: int, port: int) -> dict[str, str]:
    """The variables that name the processes where no launcher does."""
    return {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(number),
    }


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def run(count: int, name: str, directory: Path, *arguments: str) -> Several:
    """An experiment on so many processes, or what is left of it."""
    return Several([command(name, directory, *arguments)] * count, directory.parent)


def command(name: str, directory: Path, *arguments: str) -> list[str]:
    """What runs an experiment, or goes on with it."""
    there = ["--workdir", str(directory), "--resume"]
    return [sys.executable, "-m", "experiments.run", "run", name, *there, *arguments]
