"""A machine that is about to be taken away: SIGTERM, as a wish that the loop grants at the end of a step."""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading
from collections.abc import Iterator

from rlhf_jax import processes

PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, try again


class Preempted(BaseException):
    """A run that was asked to end, and has saved what it had. Not an Exception: nothing that handles errors should hold it up."""

    alike_on_all_processes = True  # which have agreed on the step


class Notice:
    """Whether SIGTERM has come. Inside `held` it waits to be asked for; elsewhere it ends what goes on, and leaves nothing half-written.

    Of several processes JAX watches for it, so that all of them save after the same step; it is heard in `asked` alone.
    """

    def __init__(self) -> None:
        self.given = False
        self._held: set[int] = set()  # threads
        self._questions = itertools.count()

    def asked(self) -> bool:
        """Whether it is to end after this step: once a step, from all processes."""
        if processes.count() > 1:
            from jax.experimental import multihost_utils

            self.given = self.given or multihost_utils.reached_preemption_sync_point(next(self._questions))
        return self.given

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """While this is open, a notice interrupts nothing."""
        thread = threading.get_ident()
        self._held.add(thread)
        try:
            yield
        finally:
            self._held.discard(thread)
        self.heed()

    def heed(self) -> None:
        """Raises: Preempted where the notice has come, and this thread does not hold it: of threads, the main one alone is interrupted."""
        if self.given and threading.get_ident() not in self._held:
            raise Preempted("asked to end between two stages")

    def _come(self, number: int, frame: object) -> None:
        first, self.given = not self.given, True
        if (
            first and threading.get_ident() not in self._held
        ):  # a second one must not end what the first has begun to put in order
            raise Preempted("asked to end outside a step")


@contextlib.contextmanager
def noticing() -> Iterator[Notice]:
    """A notice of SIGTERM, until the block ends; outside the main thread, where no signal can be caught, one that never comes."""
    notice = Notice()
    if processes.count() > 1 or threading.current_thread() is not threading.main_thread():
        yield notice
        return
    before = signal.signal(signal.SIGTERM, notice._come)
    try:
        yield notice
    finally:
        signal.signal(signal.SIGTERM, before)
