"""Where a step spends its time: a trace by JAX's profiler, and the operations that took most of it."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import jax

from benchmarks.workloads import Workload

SHOWN = 15


def top_operations(workload: Workload, values: dict[str, Any], folder: Path) -> dict[str, dict[str, float]]:
    """Seconds of what took most of one step, over all threads: operations, and kinds of them, which are their names without a number.

    A loop has its own operations inside, and counts twice. The trace lies in the folder, for Perfetto or xprof.
    """
    with jax.profiler.trace(str(folder), create_perfetto_trace=True):
        for run in workload.phases.values():
            values = jax.block_until_ready(run(values))
    newest = max(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    spent: collections.Counter[str] = collections.Counter()
    for plane in jax.profiler.ProfileData.from_file(str(newest)).planes:
        for line in plane.lines:
            for event in line.events:
                if any(name == "hlo_op" for name, _ in event.stats):
                    spent[event.name] += int(event.duration_ns)
    kinds: collections.Counter[str] = collections.Counter()
    for name, nanoseconds in spent.items():
        kinds[name.rstrip(".0123456789")] += nanoseconds

    def most(counted: collections.Counter[str]) -> dict[str, float]:
        return {name: round(nanoseconds / 1e9, 4) for name, nanoseconds in counted.most_common(SHOWN)}

    return {"top_operations": most(spent), "top_kinds": most(kinds)}
