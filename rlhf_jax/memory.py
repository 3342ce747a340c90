"""How much memory a device has, and how much of it is in use."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
SHARE = 0.8  # of a device's memory that programs may need


def memory_of(device: Any, devices: int = 1) -> int:
    """Bytes of a device that programs may need. Where that does not say what it has, its part of what this process may use of the
    machine's, which is no more than a container, or the job of a scheduler, is allowed.
    """
    told = device.memory_stats() or {}
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in limits():
        with contextlib.suppress(OSError, ValueError):  # none here, or "max"
            whole = min(whole, int(path.read_text()))
    return int(SHARE * told.get("bytes_limit", whole // devices))


def limits() -> Iterator[Path]:
    """Where the limits of this process may stand: of its control groups, of version 1 or 2, and of all that these are in."""
    lines: list[str] = []
    with contextlib.suppress(OSError):  # no Linux
        lines = OWN_CGROUPS.read_text().splitlines()
    for line in lines:
        _, controllers, own = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, name = (CGROUPS / "memory", "memory.limit_in_bytes") if controllers else (CGROUPS, "memory.max")
        folder = root / own.lstrip("/")
        # A container that has no names of its own for its groups is told those of the machine, and finds its limit at the root.
        yield from (place / name for place in (folder, *folder.parents) if place.is_relative_to(root))


def held_on(device: Any) -> int:
    """Bytes in use on a device; where that does not say so, those of all arrays there, each memory counted once."""
    told = device.memory_stats() or {}
    if "bytes_in_use" in told:
        return told["bytes_in_use"]
    found: dict[int, int] = {}
    for array in jax.live_arrays():
        with contextlib.suppress(RuntimeError):  # given up by another thread just now
            for shard in array.addressable_shards:
                if shard.device == device:
                    found[shard.data.unsafe_buffer_pointer()] = shard.data.nbytes
    return sum(found.values())
