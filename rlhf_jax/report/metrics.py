"""Metrics of a run: one JSON object per line in `metrics.jsonl`, and TensorBoard event files beside it.

A line is `{"step": 3, "stage": "sft", "sft/nll": 1.25}`. Numbers are written with all their digits; nan and the
infinities, which JSON lacks, as the strings "nan", "inf" and "-inf". A last line without its newline is one that is
still being written, or that a killed run never finished: it does not count.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax.files import write_atomic

FILE = "metrics.jsonl"
RESERVED = ("step", "stage")

Later = Callable[[], Mapping[str, Any]]
"""Metrics that need the host, asked for when the line is written."""


class Series(NamedTuple):
    """One metric over time."""

    steps: np.ndarray  # int64 [n]
    values: np.ndarray  # float64 [n]


class _Entry(NamedTuple):
    """What will be a line, its arrays perhaps still being computed."""

    stage: str
    step: int
    metrics: Mapping[str, Any]
    later: Later | None


class MetricsWriter:
    """Appends metrics to `directory`, one step late: each call converts the arrays of the call before it, so that no
    step is waited for before the next one runs. Several writers may share a directory.

    With `resume_step`, lines of `stage` at that step or later are dropped first, because a crashed run may have written
    more than its checkpoint knows. `look(step, metrics)` is called for every line, once it is written.
    """

    def __init__(
        self,
        directory: Path | str,
        stage: str | None = None,
        *,
        resume_step: int | None = None,
        tensorboard: bool = True,
        look: Callable[[int, Mapping[str, float]], None] | None = None,
    ) -> None:
        if resume_step is not None and stage is None:
            raise ValueError(f"resume_step={resume_step} needs the stage whose lines are to be dropped")
        self.path = Path(directory) / FILE
        self.latest: dict[str, float] = {}  # the metrics last written, already on the host
        self.last: int | None = None  # their step
        self._resumed = (stage, resume_step)
        self._tensorboard, self._look = tensorboard, look
        self._events: dict[str, Any] = {}
        self._pending: _Entry | None = None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()
        _repair(self.path, stage, resume_step)

    def write(self, stage: str, step: int, metrics: Mapping[str, Any], *, later: Later | None = None) -> None:
        """Takes numbers or arrays of one element, by name; on disk after the next `write`, `flush` or `close`.

        `later` gives further metrics that only the host can compute; it is called when the line is written. Raises
        ValueError for a value that is not one number, or a name that every line has already.
        """
        for name, value in metrics.items():
            _check(name, value)
            if hasattr(value, "copy_to_host_async"):
                value.copy_to_host_async()
        self._advance(_Entry(stage, int(step), dict(metrics), later))

    def flush(self) -> None:
        """Everything given so far is on disk."""
        self._advance(None)
        for events in self._events.values():
            events.flush()

    def close(self) -> None:
        """Flushes, and closes the event files; a second call does nothing."""
        self.flush()
        for events in self._events.values():
            events.close()
        self._events = {}

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _advance(self, entry: _Entry | None) -> None:
        """Writes the pending entry and keeps this one. Interrupted, it keeps the pending one."""
        previous = self._pending
        if previous is not None:
            self._append(previous)
        self._pending = entry
        if previous is not None and self._look is not None:
            self._look(previous.step, self.latest)

    def _append(self, previous: _Entry) -> None:
        metrics = {**previous.metrics, **(previous.later() if previous.later is not None else {})}
        self.latest = {name: _number(name, value) for name, value in metrics.items()}
        line = {"step": previous.step, "stage": previous.stage} | {k: _to_json(v) for k, v in self.latest.items()}
        # Opened for every line: another writer of this directory may just have replaced the file.
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")
        self.last = previous.step
        if self._tensorboard:
            from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue] (protobuf makes it)
            from tensorboardX.summary import scalar

            # One event for all of a step: each goes through a queue between processes.
            values = [value for name, number in self.latest.items() for value in scalar(name, number).value]
            self._events_of(previous.stage).file_writer.add_summary(Summary(value=values), previous.step)

    def _events_of(self, stage: str) -> Any:
        # One folder of events per stage: purging what a crashed run wrote too much hides everything in the folder.
        if stage not in self._events:
            from tensorboardX import SummaryWriter

            resumed, step = self._resumed
            folder = self.path.parent / "tensorboard" / stage
            self._events[stage] = SummaryWriter(str(folder), purge_step=step if stage == resumed else None)
        return self._events[stage]


def read_metrics(path: Path | str) -> dict[str, dict[str, Series]]:
    """Stage -> metric -> (steps, values), in the order written. `path` is the file or the directory of the run.

    Raises FileNotFoundError, and ValueError with file and line for a line that is not an object with step, stage and
    numbers.
    """
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    columns: dict[str, dict[str, tuple[list[int], list[float]]]] = {}
    for number, line in enumerate(_lines(path), start=1):
        entry = _parse(line, f"{path}:{number}")
        stage, step = entry.pop("stage"), entry.pop("step")
        for name, value in entry.items():
            steps, values = columns.setdefault(stage, {}).setdefault(name, ([], []))
            steps.append(step)
            values.append(value)
    return {
        stage: {
            name: Series(np.array(steps, np.int64), np.array(values, np.float64))
            for name, (steps, values) in by_name.items()
        }
        for stage, by_name in columns.items()
    }


def _check(name: str, value: Any) -> None:
    if name in RESERVED:
        raise ValueError(f"a metric cannot be called {name!r}: every line has a {name} of its own")
    if math.prod(np.shape(value)) != 1:
        raise ValueError(f"metric {name!r} has shape {np.shape(value)}; write one number per name")


def _number(name: str, value: Any) -> float:
    _check(name, value)
    return float(np.asarray(value).reshape(()))


def _to_json(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def _lines(path: Path) -> list[bytes]:
    """The finished lines of a file."""
    return path.read_bytes().split(b"\n")[:-1]


def _parse(line: bytes, place: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError as error:  # not JSON, or not even UTF-8
        raise ValueError(
            f'{place}: not JSON ({error}); a line looks like {{"step": 3, "stage": "sft", "loss": 1.5}}'
        ) from error
    if not isinstance(entry, dict):
        raise ValueError(f"{place}: a {type(entry).__name__}, where a line is an object with step, stage and metrics")
    if type(entry.get("step")) is not int or not isinstance(entry.get("stage"), str):
        raise ValueError(
            f"{place}: needs a whole number 'step' and a text 'stage', "
            f"got {entry.get('step')!r} and {entry.get('stage')!r}"
        )
    for name, value in entry.items():
        if name in RESERVED:
            continue
        if value in ("nan", "inf", "-inf"):
            entry[name] = float(value)
        elif isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{place}: metric {name!r} is {value!r}; it must be a number, or 'nan', 'inf' or '-inf'")
    return entry


def _repair(path: Path, stage: str | None, resume_step: int | None) -> None:
    """Drops an unfinished last line and, when resuming, the lines of `stage` from `resume_step` on."""
    lines = _lines(path)
    if resume_step is not None:
        parsed = [_parse(line, f"{path}:{number}") for number, line in enumerate(lines, start=1)]
        lines = [x for x, e in zip(lines, parsed, strict=True) if e["stage"] != stage or e["step"] < resume_step]
    kept = b"".join(line + b"\n" for line in lines)
    if kept != path.read_bytes():
        write_atomic(path, kept.decode())
