"""Several processes as one run: how they find each other, agree on what went wrong, and end together.

Each has some of the devices, runs the same program on the same data, and does the same in the same order. The first alone writes what
people read; checkpoints are written by all of them.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import numpy as np

Found = TypeVar("Found")

ADDRESS, COUNT, NUMBER = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
HEARTBEAT = "RLHF_JAX_HEARTBEAT"
LOST = 75  # as after SIGTERM: nothing is wrong with this process, try again
WORDS = 1024  # bytes of what a process says to the others
ALIKE = "alike_on_all_processes"  # marks an error that is known to come on all of them

_failures = itertools.count()


class Elsewhere(RuntimeError):
    """What went wrong on another process, in its words."""

    alike_on_all_processes = True


def count() -> int:
    """How many processes there are."""
    return _state().num_processes if _is_loaded() else 1


def number() -> int:
    """Which of them this is, from 0."""
    return _state().process_id if _is_loaded() else 0


def is_first() -> bool:
    """Whether this is the process that writes files and talks to people."""
    return number() == 0


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """The processes of a cluster as one run, for what happens inside; they leave together.

    Cloud TPU, GKE, Slurm and Open MPI say by themselves who is who; elsewhere the variables JAX_COORDINATOR_ADDRESS (host:port of the
    first), JAX_NUM_PROCESSES and JAX_PROCESS_ID do. Without any of it, with a count of 1, and where JAX has been started already, nothing
    is joined. A process that does not answer for RLHF_JAX_HEARTBEAT seconds (100) counts as dead, and the others end.
    Raises: ValueError for variables that do not go together, and where the others do not come.
    """
    if not join():
        yield
        return
    if count() > 1 and is_first():
        said = f"a process that is lost ends them all within {heartbeat()} s, and the run goes on with --resume"
        print(f"{count()} processes; {said}", file=sys.stderr, flush=True)
    try:
        yield
    except BaseException as error:
        all_fail(error)
        raise
    finally:
        import jax

        jax.distributed.shutdown()  # which waits for the others


def join() -> bool:
    """Whether this process has become one of a cluster's."""
    import jax

    if jax.distributed.is_initialized():
        return False
    if is_alone():
        return False
    named = {name: os.environ.get(name) for name in (ADDRESS, COUNT, NUMBER)}
    how: dict[str, Any] = {"heartbeat_timeout_seconds": heartbeat(), "shutdown_timeout_seconds": 3600}
    if named[COUNT] is not None or named[NUMBER] is not None:
        missing = [name for name, value in named.items() if not value]
        wrong = [name for name in (COUNT, NUMBER) if not (named[name] or "0").isdecimal()]
        if missing or wrong:
            raise ValueError(
                f"{', '.join(missing or wrong)}: {'missing' if missing else 'not a whole number'}; without a launcher, {ADDRESS} is "
                f"HOST:PORT of the first process, {COUNT} how many there are, {NUMBER} which one this is, from 0"
            )
        how |= {"num_processes": int(named[COUNT] or 0), "process_id": int(named[NUMBER] or 0)}
        # One process for all devices of its host, whatever the launcher is.
        how["cluster_detection_method"] = "deactivate"
    try:
        jax.distributed.initialize(**how)
    except Exception as error:  # of JAX, and of what it asks about the cluster
        said = str(error)
        asked = any(value is not None for value in named.values())
        if not asked and ("before any JAX calls" in said or "coordinator_address should be" in said):
            return False
        raise ValueError(
            f"the processes of this run cannot find each other: {said}; with {COUNT}=1 this one runs alone"
        ) from error
    return True


def is_alone() -> bool:
    """Whether the environment says that there is one process. It has all devices of its host then, which Slurm would deal to several."""
    told = os.environ.get(COUNT)
    launched = {os.environ.get(name) for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")} - {None}
    return told == "1" if told is not None else launched == {"1"}


def heartbeat() -> int:
    """Seconds after which a process that does not answer counts as dead. Raises: ValueError."""
    said = os.environ.get(HEARTBEAT, "100")
    if not said.isdecimal() or int(said) < 1:
        raise ValueError(f"{HEARTBEAT}={said!r}; it must be a whole number of seconds above 0")
    return int(said)


def agreed(action: Callable[[], Found]) -> Found:
    """What the action gives here; where it fails on one process, it fails on all, and none goes on before all have done it.

    Raises: what the action raises; Elsewhere with the words of the first process on which it has failed.
    """
    if count() == 1:
        return action()
    error, found = None, None
    try:
        found = action()
    except Exception as caught:
        error = caught
    said = exchanged("" if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        setattr(error, ALIKE, True)
        raise error
    for other, words in enumerate(said):
        if words:
            raise Elsewhere(f"process {other}: {words}")
    return found  # pyright: ignore[reportReturnType]


def exchanged(words: str) -> list[str]:
    """What each process says, of which a kilobyte at most is heard."""
    from jax.experimental import multihost_utils

    said = words.encode()[:WORDS]
    sent = np.frombuffer(said.ljust(WORDS, b"\0"), np.uint8)
    heard = np.asarray(multihost_utils.process_allgather(sent)).reshape(-1, WORDS)
    return [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in heard]


def same(words: str) -> bool:
    """Whether all processes say this. All of them must ask."""
    return count() == 1 or len(set(exchanged(words))) == 1


def check_same(what: str, value: str) -> None:
    """Raises: ValueError, on all processes, where this text is not the same on all of them."""
    said = [value] if count() == 1 else exchanged(value)
    other = next((number for number, words in enumerate(said) if words != said[0]), None)
    if other is not None:
        error = ValueError(
            f"{what} is not the same for all processes: {said[0]} on process 0, {said[other]} on process {other}; they must run the same "
            "command on the same data"
        )
        setattr(error, ALIKE, True)
        raise error


def added(values: np.ndarray) -> np.ndarray:
    """The sum of what each process has, on all of them."""
    from jax.experimental import multihost_utils

    return values if count() == 1 else np.asarray(multihost_utils.process_allgather(values)).sum(axis=0)


def on_host(tree: Any) -> Any:
    """Every array of a tree as a numpy array, whole, on every process. All of them must ask for it."""
    import jax
    from jax.experimental import multihost_utils

    def whole(leaf: Any) -> np.ndarray:
        spread = isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated)
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True) if spread else leaf)

    return jax.tree.map(whole, tree)


def all_fail(error: BaseException) -> None:
    """Returns where all processes come here with an error, which can still do something together; else this one ends at once.

    They have as long as the heartbeat, unless the error is known to come on all. One that failed alone ends with 2 and a line where it is
    one of files, 130 where it was interrupted, 75 where an operation of all processes failed, as another one is lost, and else with 1.
    The others wait for what it would have done next, and hear of its end by the connection that breaks, or by the missing heartbeat.
    """
    if count() == 1 or getattr(error, ALIKE, False):
        return
    if _lost(error):  # told at once: JAX may end the process while it waits
        why = str(error).strip().partition("\n")[0]
        print(
            f"process {number()} of {count()}: an operation of all processes has failed ({why}). Most likely another process has ended "
            "or cannot be reached: its own output says why. Start all of them again with --resume",
            file=sys.stderr,
            flush=True,
        )
    try:
        _state().client.wait_at_barrier(f"failed {next(_failures)}", heartbeat() * 1000)
    except Exception:
        _leave(error)
    setattr(error, ALIKE, True)


def _leave(error: BaseException) -> NoReturn:
    if isinstance(error, OSError):
        print(f"error: {error}", file=sys.stderr)
    else:
        traceback.print_exception(error)
    if not _lost(error):
        print(f"process {number()} of {count()} has failed alone, and ends; the others will follow", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    ends = {OSError: 2, KeyboardInterrupt: 130}
    os._exit(LOST if _lost(error) else next((code for kind, code in ends.items() if isinstance(error, kind)), 1))


def _lost(error: BaseException) -> bool:
    """Whether an operation has failed as operations of all processes do where one has ended, by XLA's code in front."""
    import jax

    # What goes wrong while a program is started comes as a ValueError.
    of_jax = isinstance(error, jax.errors.JaxRuntimeError | ValueError)
    return of_jax and bool(re.match("(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|DEADLINE_EXCEEDED): ", str(error)))


def _is_loaded() -> bool:
    return "jax" in sys.modules


def _state() -> Any:
    """What JAX knows of the processes; all that it says of them in public starts its devices first."""
    from jax._src import distributed

    return distributed.global_state
