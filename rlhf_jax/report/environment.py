"""Where and with what a run ran."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = (
    "rlhf_jax",
    "jax",
    "jaxlib",
    "libtpu",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "sentencepiece",
    "transformers",
)


def environment() -> dict[str, Any]:
    """What one needs to know to run the same again, ready for JSON. Starts JAX's devices if they are not started yet.

    Keys: time (UTC), command, directory, python, platform, cpus (usable by this process), packages (version, None if
    not installed), git ({commit, dirty}, None outside a repository), jax ({backend, processes, devices by kind}),
    variables (those that change what JAX does).
    """
    import jax

    kinds = [device.device_kind for device in jax.devices()]
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.orig_argv),
        "directory": str(Path.cwd()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": cores(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git": git_state(Path(__file__).resolve().parent),
        "jax": {
            "backend": jax.default_backend(),
            "processes": jax.process_count(),
            "devices": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
        },
        "variables": {
            k: v for k, v in sorted(os.environ.items()) if k.startswith(("JAX_", "XLA_", "LIBTPU_", "GLIBC_"))
        },
    }


def cores() -> int:
    """How many cores of the CPU this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def git_state(folder: Path) -> dict[str, Any] | None:
    """{"commit": hash, "dirty": whether tracked files differ from it} of the repository that `folder` is tracked in,
    else None."""
    try:
        # A package installed into somebody's project lies inside their repository without being part of it.
        if not _git(folder, "ls-files", "."):
            return None
        return {
            "commit": _git(folder, "rev-parse", "HEAD"),
            "dirty": bool(_git(folder, "status", "--porcelain", "-uno")),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
