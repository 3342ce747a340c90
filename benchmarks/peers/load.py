"""How busy the rest of the machine is while the sides are timed."""

from __future__ import annotations

import os
import time
from pathlib import Path

PROC = Path("/proc")


class Others:
    """Cores kept busy by processes other than these and this one, the host's other guests among them where it tells."""

    def __init__(self, processes: list[int]):
        self._processes = [*processes, os.getpid()]
        self._before = self._read()

    def busy(self) -> float | None:
        """Of the time since the last call, in cores; None where the system does not say (other than Linux) or a process has ended."""
        before, self._before = self._before, self._read()
        if before is None or self._before is None:
            return None
        everyone, these, clock = (now - then for now, then in zip(self._before, before, strict=True))
        return round(max(everyone - these, 0.0) / clock, 2)

    def _read(self) -> tuple[float, float, float] | None:
        """CPU seconds of everyone, of these processes, and the time."""
        try:
            # user, nice, system, idle, waiting, two kinds of interrupts, stolen
            used = [int(part) for part in (PROC / "stat").read_text().split("\n", 1)[0].split()[1:9]]
            mine = [_cpu((PROC / str(process) / "stat").read_text()) for process in self._processes]
        except OSError:
            return None
        ticks = os.sysconf("SC_CLK_TCK")
        return (sum(used) - used[3] - used[4]) / ticks, sum(mine) / ticks, time.perf_counter()


def _cpu(stat: str) -> int:
    """Ticks in user and system mode; the name before them stands in parentheses and may have spaces."""
    user, system = stat.rpartition(")")[2].split()[11:13]
    return int(user) + int(system)
