"""How a side talks to the driver: one JSON line when it is ready, and one for every `go` that it reads. Standard library only, as every
side imports it, each in an environment of its own."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO


class Unavailable(Exception):
    """This side cannot do the workload; the message says why."""


class Gate:
    """Counts the updates of a side, and lets it go on only while the driver wants a round timed.

    A step of the workload is as many updates as `describe` was told. `passed()` is called after every update. After `warmup` steps it says
    that the side is ready, and at the end of a round how many seconds a step took; then it waits for the next round, `go` and a number of
    steps. The clock runs from there, so that all that a library does between two updates (data, logs, bookkeeping) is timed, and waiting
    for the driver is not.
    """

    def __init__(self, warmup: int, told: TextIO, asked: TextIO):
        self._steps, self._updates, self._done, self._ready = warmup, 1, 0, False
        self._told, self._asked = told, asked
        self._start, self._details = time.perf_counter(), {}

    def describe(self, parameters: int, versions: dict[str, str], updates: int = 1) -> None:
        """What the line `ready` will say, and how many updates a step has; call it just before the first."""
        self._details = {"parameters": parameters, "versions": versions}
        self._updates, self._start = updates, time.perf_counter()

    def passed(self) -> bool:
        """Whether to do another update. False: the driver has closed its end."""
        now = time.perf_counter()
        self._done += 1
        if not self._ready and self._done == 1:
            self._details["first_seconds"] = round(now - self._start, 3)
        if self._done < self._steps * self._updates:
            return True
        if self._ready:
            self.tell({"seconds": (now - self._start) / self._steps})
        else:
            self.tell({"ready": True, **self._details})
        self._done, self._ready = 0, True
        word, _, steps = self._asked.readline().strip().partition(" ")
        if word != "go":
            return False
        self._steps, self._start = int(steps or 1), time.perf_counter()
        return True

    def tell(self, line: dict[str, Any]) -> None:
        self._told.write(json.dumps(line) + "\n")
        self._told.flush()


def repeat(gate: Gate, update: Callable[[], object]) -> None:
    """Updates until the driver closes its end: for sides that leave the loop to the caller."""
    more = True
    while more:
        update()
        more = gate.passed()


def run_side(serve: Callable[[dict[str, Any], Gate], None]) -> None:
    """The whole of a side's process: reads the task from the command line, and has `serve` do it. Whatever else the process prints goes to
    stderr. A workload that this side cannot do ends it in one line `unavailable`; so does an error, after its traceback."""
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    task = json.loads(sys.argv[1])
    gate = Gate(task["warmup"], told, sys.stdin)
    try:
        serve(task, gate)
    except Unavailable as reason:
        gate.tell({"unavailable": str(reason)})
    except Exception as error:
        gate.tell({"unavailable": f"{type(error).__name__}: {error}"})
        raise
