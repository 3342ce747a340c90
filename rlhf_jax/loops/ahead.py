"""Programs that are compiled side by side before the first of them is called, rather than each when its turn has come."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed
from typing import Any

from rlhf_jax.report.environment import cores
from rlhf_jax.report.progress import progress


class Ahead:
    """Has programs compiled: called with one, and with the arrays that it will be called with, or their shapes, it gives the shapes of what
    comes out."""

    def __init__(self, pool: Executor) -> None:
        self._pool = pool
        self.compiling: list[Future] = []

    def __call__(self, program: Any, *args: Any) -> Any:
        shapes, compiling = program.ahead(self._pool, *args)
        self.compiling.append(compiling)
        return shapes


def compile_ahead(what: str, ask: Callable[[Ahead], None]) -> None:
    """Has the programs compiled that `ask` asks for, one to a core at a time, and shows how many are there. Raises: as compiling does."""
    pool = ThreadPoolExecutor(cores())
    try:
        ahead = Ahead(pool)
        ask(ahead)
        with progress(len(ahead.compiling), f"{what}: compile") as bar:
            for compiled in as_completed(ahead.compiling):
                compiled.result()
                bar.advance()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
