"""`python -m benchmarks.peers.compare`: our workloads and the same work by TRL and Tunix, in turns; one JSON line per workload."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

from benchmarks.peers.load import Others
from benchmarks.peers.protocol import Unavailable
from benchmarks.peers.ratios import ratio, spread
from benchmarks.peers.sides import MOST_APART, PEERS, WORKLOADS, Side, interpreter, make_task, start, steps_for
from benchmarks.workloads import SIZES
from rlhf_jax.config import ModelConfig

OURS = "our"


def compare(
    workload: str, config: ModelConfig, pythons: dict[str, Path], rounds: int, seconds: float
) -> dict[str, Any]:
    """Seconds per step of every side, and how many times as long as ours each peer takes.

    Sides are set up and warmed up one after the other, then timed in rounds, in which all of them do as many steps, a different one
    first each time. A side that cannot do the workload, or ends before its last round, is left out, and `unavailable` says why. `others`
    is how many cores the rest of the machine kept busy in a round: where that is not about 0, the sides were not alone, and they do not
    suffer alike.
    """
    task, sides, missing = make_task(workload, config), {}, {}
    try:
        for name, python in pythons.items():
            try:
                sides[name] = start(name, task, python)
            except Unavailable as reason:
                missing[name] = str(reason)
        _check_parameters(sides, missing)
        probes = _round(sides, missing, list(sides), 1)
        steps = steps_for(seconds, list(probes.values())) if probes else 0
        times: dict[str, list[float]] = {name: [] for name in sides}
        others = Others([side.process.pid for side in sides.values()])
        busy = []
        for turn in range(rounds):
            names = list(sides)
            shift = turn % max(len(names), 1)
            for name, spent in _round(sides, missing, names[shift:] + names[:shift], steps).items():
                times[name].append(spent)
            busy.append(others.busy())
        whole = {name: times[name] for name in sides}
        return {
            "workload": workload,
            "rounds": rounds,
            "steps": steps,
            "seconds": {name: spread(spent) for name, spent in whole.items()},
            "ratio": {name: ratio(whole[name], whole[OURS]) for name in whole if name != OURS and OURS in whole},
            "others": spread([cores for cores in busy if cores is not None]),
            **{key: {name: side.ready[key] for name, side in sides.items()} for key in _OF_READY},
            "unavailable": missing,
        }
    finally:
        for side in sides.values():
            side.close()


_OF_READY = ("first_seconds", "parameters", "versions")


def _round(sides: dict[str, Side], missing: dict[str, str], names: list[str], steps: int) -> dict[str, float]:
    """Seconds per step by side; one that ends is taken out of `sides`."""
    times = {}
    for name in names:
        try:
            times[name] = sides[name].round(steps)
        except Unavailable as reason:
            missing[name] = str(reason)
            sides.pop(name).close()
    return times


def _check_parameters(sides: dict[str, Side], missing: dict[str, str]) -> None:
    """Takes out the peers whose model is not as large as ours."""
    if OURS not in sides:
        return
    ours = sides[OURS].ready["parameters"]
    for name in [name for name in sides if abs(sides[name].ready["parameters"] / ours - 1) > MOST_APART]:
        missing[name] = f"its model has {sides[name].ready['parameters']} parameters, ours {ours}"
        sides.pop(name).close()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.compare", description=__doc__)
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--size", choices=SIZES, default="S")
    parser.add_argument("--peer", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="about how long the fastest side's round is")
    parser.add_argument(
        "--venv", type=Path, default=Path(".venv"), help="where the peers' environments trl and tunix are"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="append the lines to this file too")
    options = parser.parse_args(argv)
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: at least 1")
    try:
        pythons = {name: interpreter(name, options.venv) for name in (OURS, *options.peer)}
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 2
    for workload in options.workload:
        measured = compare(workload, SIZES[options.size], pythons, options.rounds, options.seconds)
        line = json.dumps({"size": options.size, **measured, "machine": platform.machine()})
        print(line, flush=True)
        if options.out is not None:
            with options.out.open("a", encoding="utf-8") as out:
                out.write(line + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
