"""How far a loop is: a bar on a terminal, a line every few seconds elsewhere, nothing when asked to be quiet but what goes wrong."""

from __future__ import annotations

import contextvars
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from rlhf_jax import processes

Mode = Literal["auto", "bar", "lines", "quiet"]
MODES: tuple[Mode, ...] = ("auto", "bar", "lines", "quiet")
VARIABLE = "RLHF_JAX_PROGRESS"
ASIDE: contextvars.ContextVar[bool] = contextvars.ContextVar("aside", default=False)
"""Whether what goes on here, in a thread of several, is not to show how far it is."""

Show = Callable[["Progress"], None]
Say = Callable[[str], None]


class Progress:
    """Counts steps. `done` starts where a resumed run left off; rate and time left look only at steps of this run.

    `say` shows a line that stays.
    """

    def __init__(
        self, total: int, description: str, done: int, show: Show, clock: Callable[[], float], say: Say
    ) -> None:
        self.total, self.description, self.done, self.text = total, description, done, ""
        self._show, self._clock, self.say = show, clock, say
        self._first, self._started = done, clock()

    def update(self, done: int, text: str = "") -> None:
        """`done` steps are finished, of all; `text` says in a few words how it goes, e.g. "nll 1.52"."""
        self.done, self.text = done, text or self.text
        self._show(self)

    def advance(self, text: str = "") -> None:
        """One more step is finished."""
        self.update(self.done + 1, text)

    @property
    def rate(self) -> float:
        """Steps per second of this run so far; 0 before the first."""
        seconds = self._clock() - self._started
        return (self.done - self._first) / seconds if seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Expected seconds until the end; None before the first step."""
        return (self.total - self.done) / self.rate if self.rate > 0 else None

    def line(self) -> str:
        """All of it in one line: `sft  120/1000  12%  34.1 steps/s  26 s left  nll 1.52`."""
        left = self.seconds_left
        share = self.done / self.total if self.total else 1.0
        parts = [self.description, f"{self.done}/{self.total}", f"{share:.0%}", _rate(self.rate)]
        parts += [f"{duration(left)} left"] if left else []
        return "  ".join([*parts, self.text] if self.text else parts)


@contextmanager
def progress(
    total: int,
    description: str,
    *,
    done: int = 0,
    mode: Mode = "auto",
    every: float = 10.0,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Progress]:
    """A Progress that shows itself on standard error while the block runs.

    "auto" is the environment variable RLHF_JAX_PROGRESS if set, else a bar on a terminal and lines elsewhere: one every
    `every` seconds, and one at the end. Of several processes the first alone shows something.
    """
    if not processes.is_first():
        yield Progress(total, description, done, _nothing, clock, _nothing)
        return
    mode = _resolve(mode)
    if mode == "bar":
        with _bar(total, description, done, clock) as counter:
            yield counter
        return
    last, shown = clock(), -1

    def show(counter: Progress, end: bool = False) -> None:
        nonlocal last, shown
        if mode == "lines" and counter.done != shown and (end or clock() - last >= every):
            last, shown = clock(), counter.done
            print(counter.line(), file=sys.stderr, flush=True)

    counter = Progress(total, description, done, show, clock, _say)
    try:
        yield counter
    finally:
        show(counter, end=True)


def duration(seconds: float) -> str:
    """Seconds as people say them: 8.4 s, 42 s, 3 min 05 s, 2 h 07 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _resolve(mode: Mode) -> Mode:
    if ASIDE.get():
        return "quiet"
    if mode != "auto":
        return mode
    asked = os.environ.get(VARIABLE, "auto")
    if asked not in MODES:
        raise ValueError(f"{VARIABLE}={asked!r}; it must be one of {', '.join(MODES)}")
    return asked if asked != "auto" else "bar" if sys.stderr.isatty() else "lines"


@contextmanager
def _bar(total: int, description: str, done: int, clock: Callable[[], float]) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as RichProgress

    # Without markup: "[0.1, 0.3]" in a text is not a style.
    name = TextColumn("{task.description}", markup=False)
    numbers = TextColumn("{task.fields[rate]}  {task.fields[left]}  {task.fields[text]}", markup=False)
    columns = (name, BarColumn(), MofNCompleteColumn(), numbers)
    with RichProgress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total, completed=done, rate="", left="", text="")

        def show(counter: Progress) -> None:
            left = counter.seconds_left
            words = f"{duration(left)} left" if left else ""
            bar.update(task, completed=counter.done, rate=_rate(counter.rate), left=words, text=counter.text)

        def say(text: str) -> None:
            bar.console.print(text, markup=False, highlight=False)

        yield Progress(total, description, done, show, clock, say)


def _nothing(_: Any) -> None:
    pass


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _rate(rate: float) -> str:
    if 0 < rate < 1:
        return f"{duration(1 / rate)}/step"
    return f"{rate:.1f} steps/s"
