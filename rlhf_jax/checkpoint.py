"""Checkpoints of a stage: orbax on disk, the newest few and the best one kept, restored onto whatever mesh the state is laid on now.

Each step's directory ends with a manifest: size and sha256 of every file in it. A checkpoint without one, or with a file that is not as
it says, is damaged: opening the directory moves it aside, and the newest intact one is the latest.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import shutil
import threading
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlhf_jax import processes
from rlhf_jax.files import link_or_copy, sha256, write_atomic
from rlhf_jax.frozen import join_frozen, split_frozen

MANIFEST = "checksums.json"
HELD_OUT, METRICS = "held_out_loss", "metrics/"
SHOWN = 4  # faults of one checkpoint, at most, in a warning
# Orbax numbers what it writes beside others in one process, and two that begin together get in each other's way.
WRITING = threading.Lock()


class Checkpoints:
    """The checkpoints of one stage in one directory, by step.

    `save` returns when the state may change again; writing goes on beside training, and ends with the manifest. The next `save`, `wait` and
    closing wait for that. Opening verifies the newest one. What is damaged moves to `DIRECTORY.damaged/STEP`, with a warning that names
    the files; nothing is deleted. A directory that a killed process left half-written is not listed by orbax and is cleaned up on opening.
    Of several processes each writes and reads its own parts, and the first alone does the rest.
    """

    def __init__(self, directory: Path, *, keep: int = 2):
        from orbax.checkpoint import v1 as ocp

        self._directory = directory.absolute()
        # Before orbax looks, which would count whatever is called like a step among those it keeps.
        processes.agreed(lambda: _set_damaged_aside(self._directory) if processes.is_first() else None)
        policies = ocp.training.preservation_policies
        lowest = policies.BestN(get_metric_fn=_held_out_loss, reverse=True, n=1, keep_checkpoints_without_metrics=False)
        kept: Any = policies.AnyPreservationPolicy([policies.LatestN(keep), lowest])
        self._checkpointer = ocp.training.Checkpointer(
            str(self._directory), preservation_policy=kept, cleanup_tmp_directories=True
        )
        self._beside = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future | None = None

    @property
    def latest(self) -> int | None:
        """The newest step, which was intact on opening or has been saved since; None where there is none."""
        self.wait()
        found = self._checkpointer.latest
        return None if found is None else found.step

    @property
    def best(self) -> tuple[int, float] | None:
        """(step, held-out loss) of the checkpoint whose loss is lowest; None where none was measured."""
        self.wait()
        return min(held_out_losses(self._checkpointer).items(), key=lambda found: found[1], default=None)

    def save(self, step: int, state: Any, *, held_out: float | None = None) -> None:
        """Begins to write the state under this step, replacing an older one of the same number; `held_out` is its held-out loss, if known.

        Frozen parts are left out: they are what they were when the stage began. Raises: OSError where the disk has no room for it, or the
        one before could not be written.
        """
        self.wait()
        live, _ = split_frozen(state)
        processes.agreed(lambda: check_room(self._directory, live))
        measured: Any = None if held_out is None else {HELD_OUT: held_out}
        WRITING.acquire()  # until it is finished
        try:
            begun = self._checkpointer.save_checkpointables_async(
                step, {"state": live}, force=True, overwrite=True, metrics=measured
            )
            if begun is None:
                raise OSError(f"{self._directory}: checkpoint of step {step} was not written")
            self._writing = self._beside.submit(self._finish, step, begun)
        except BaseException:
            WRITING.release()
            raise

    def wait(self) -> None:
        """Returns when everything that was saved is whole on disk. Raises: OSError naming the checkpoint that could not be written."""
        processes.agreed(self._wait)

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _finish(self, step: int, begun: Any) -> None:
        place = self._directory / str(step)
        try:
            begun.result()
            if processes.is_first():
                seal(place)
        except Exception as error:  # of the file system by way of several libraries, each with errors of its own
            raise OSError(f"{place}: this checkpoint could not be written: {error}") from error
        finally:
            WRITING.release()

    def link(self, step: int, place: Path) -> int | None:
        """Keeps the newest checkpoint of at most this step in another place too, whatever becomes of it here; None where there is none."""
        self.wait()
        found = max((kept.step for kept in self._checkpointer.checkpoints if kept.step <= step), default=None)
        if found is not None and processes.is_first():
            shutil.copytree(self._directory / str(found), place / str(found), copy_function=link_or_copy)
        return found

    def restore(self, step: int, like: Any) -> Any:
        """The state of this step with the structure, types and places of `like`, and its frozen parts, from whatever mesh it was saved on.

        Raises: ValueError naming the checkpoint where it does not fit, and the first array of another shape or type.
        """
        self.wait()
        live, frozen = split_frozen(like)
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), live)
        place = self._directory / str(step)
        try:
            check_arrays(place, target)
            found = self._checkpointer.load_checkpointables(step, {"state": target})["state"]
        except Exception as error:
            raise ValueError(f"{place}: cannot restore this checkpoint: {error}") from error
        return join_frozen(found, frozen)

    def close(self, *, alone: bool = False) -> None:
        """Waits for what is being written; `alone` where other processes may not do so."""
        try:
            (self._wait if alone else self.wait)()
        except BaseException:
            self._beside.shutdown()
            with contextlib.suppress(Exception):  # which orbax says again, without the checkpoint's name
                self._checkpointer.close()
            raise
        self._beside.shutdown()
        self._checkpointer.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self.close(alone=error is not None and not getattr(error, processes.ALIKE, False))


def held_out_losses(checkpointer: Any) -> dict[int, float]:
    """Step -> held-out loss, of the checkpoints that have one."""
    measured = {found.step: found.metrics for found in checkpointer.checkpoints}
    found = {step: _held_out_loss(metrics) for step, metrics in measured.items() if metrics}
    return {step: loss for step, loss in found.items() if math.isfinite(loss)}


def check_room(directory: Path, state: Any) -> None:
    """Raises: OSError where the disk has less room than the arrays of this state take."""
    # Of all processes together, which share the disk.
    needed = sum(getattr(leaf, "nbytes", 0) for leaf in jax.tree.leaves(state))
    directory.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(directory).free
    if free < needed:
        said = f"a checkpoint takes {needed / 2**30:.2f} GiB, and {free / 2**30:.2f} GiB are free; make room, and go on with --resume"
        raise OSError(errno.ENOSPC, said, str(directory))


def check_arrays(checkpoint: Path, target: Any) -> None:
    """Raises: ValueError naming the first array that was saved with another shape or type: orbax would convert it unasked."""
    from orbax.checkpoint import v1 as ocp

    saved: Any = ocp.checkpointables_metadata(str(checkpoint)).metadata["state"]
    found = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(saved)}
    for path, leaf in jax.tree_util.tree_leaves_with_path(target):
        there = found.get(_name(path))
        if there is not None and (tuple(there.shape), there.dtype) != (leaf.shape, leaf.dtype):
            raise ValueError(
                f"{_name(path)} was saved as {there.dtype}{list(there.shape)}, and this run has {leaf.dtype}{list(leaf.shape)}"
            )


def seal(checkpoint: Path) -> None:
    """Writes the manifest of a complete checkpoint. Raises: FileNotFoundError where nothing of it is there any more."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path != checkpoint / MANIFEST)
    if not files:
        raise FileNotFoundError(f"{checkpoint} has gone while it was written; does another process use this run?")
    # One after the other: a pool would not start any more while the interpreter ends, which this thread may outlive.
    listed = {
        path.relative_to(checkpoint).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in files
    }
    write_atomic(checkpoint / MANIFEST, json.dumps({"sha256": _digest(listed), "files": listed}, indent=1))


def faults(checkpoint: Path, below: str = "") -> list[str]:
    """What is wrong with a checkpoint, file by file; nothing where all that was saved is there. Files that came later do not matter.

    With `below` those files are looked at whose name begins so.

    Raises: PermissionError for a file that may be intact, but not for this user.
    """
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_bytes())
        listed = manifest["files"]
        if manifest["sha256"] != _digest(listed):
            return [f"{MANIFEST} changed"]
        if not listed:
            return [f"{MANIFEST} lists no file"]
    except (FileNotFoundError, NotADirectoryError):
        return [f"{MANIFEST} missing: the save goes on, was cut off, or is of a version that wrote none"]
    except PermissionError:
        raise
    except OSError as error:
        return [f"{MANIFEST} unreadable ({error.strerror})"]
    except (ValueError, KeyError, TypeError):
        return [f"{MANIFEST} changed"]
    listed = {name: expected for name, expected in listed.items() if name.startswith(below)}
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda name: _fault(checkpoint / name, listed[name]), listed)
        return [f"{name} {fault}" for name, fault in zip(listed, found, strict=True) if fault is not None]


def newest_intact(directory: Path) -> tuple[Path | None, dict[Path, list[str]]]:
    """(the newest checkpoint that is intact, None without one; each newer one with its faults). Reads only."""
    damaged: dict[Path, list[str]] = {}
    named = [path for path in directory.glob("*") if path.name.isdecimal()]
    for checkpoint in sorted(named, key=lambda path: int(path.name), reverse=True):
        wrong = faults(checkpoint)
        if not wrong:
            return checkpoint, damaged
        damaged[checkpoint] = wrong
    return None, damaged


def best_measured(directory: Path) -> Path | None:
    """The checkpoint whose held-out loss is lowest; None where none has been measured. Reads only. Raises: ValueError for damage."""
    from orbax.checkpoint import v1 as ocp

    if not directory.is_dir():
        return None
    try:
        with ocp.training.Checkpointer(str(directory.absolute())) as checkpointer:
            losses = held_out_losses(checkpointer)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{directory}: the held-out loss of a checkpoint is damaged: {error}") from error
    return directory / str(min(losses, key=lambda step: losses[step])) if losses else None


def load_part(checkpoint: Path, *keys: str) -> Any:
    """One part of a saved state, such as ("policy", "params"), as nested dicts of arrays on the host; nothing else is read.

    Raises: ValueError where the state has no such part.
    """
    from orbax.checkpoint import v1 as ocp

    folder = str(checkpoint.absolute())  # orbax finds nothing in a relative one
    shapes: Any = ocp.checkpointables_metadata(folder).metadata["state"]
    for depth, key in enumerate(keys):
        shapes = shapes.get(key) if isinstance(shapes, Mapping) else None
        if shapes is None:
            raise ValueError(f"{checkpoint}: the state that was saved has no {'.'.join(keys[: depth + 1])!r}")
    target = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), shapes)
    for key in reversed(keys):
        target = {key: target}
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        found = ocp.load_checkpointables(folder, {"state": target})["state"]
    for key in keys:
        found = found[key]
    return found


def in_words(checkpoint: Path, wrong: list[str]) -> str:
    """A damaged checkpoint and the first of its faults."""
    more = f"; {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
    return f"{checkpoint} is not intact: {'; '.join(wrong[:SHOWN])}{more}"


def _set_damaged_aside(directory: Path) -> None:
    newest, damaged = newest_intact(directory)
    # Orbax reads the held-out losses of all of them, so that one that is damaged would keep it from reading any.
    for path in directory.glob("*"):
        if newest is not None and path.name.isdecimal() and int(path.name) < int(newest.name):
            wrong = faults(path, METRICS)
            if wrong:
                damaged[path] = wrong
    if not damaged:
        return
    said = []
    for checkpoint, wrong in damaged.items():
        aside = _free(directory.with_name(f"{directory.name}.damaged") / checkpoint.name)
        aside.parent.mkdir(exist_ok=True)
        shutil.move(checkpoint, aside)
        said.append(f"{in_words(checkpoint, wrong)}. It was moved to {aside}.")
    goes_on = "starts from its beginning: no checkpoint is intact" if newest is None else f"goes on from {newest}"
    warnings.warn("\n".join([*said, f"{directory.name} {goes_on}."]), stacklevel=3)


def _free(path: Path) -> Path:
    """The path, or with the first number behind it that nothing has yet."""
    free, number = path, 1
    while free.exists():
        free, number = path.with_name(f"{path.name}-{number + 1}"), number + 1
    return free


def _fault(path: Path, expected: Mapping[str, Any]) -> str | None:
    """What is wrong with one file."""
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            return f"{'cut short' if size < expected['bytes'] else 'grown'}: {size} bytes of {expected['bytes']}"
        return None if sha256(path) == expected["sha256"] else "changed"
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except PermissionError:
        raise
    except OSError as error:
        return f"unreadable ({error.strerror})"


def _held_out_loss(metrics: Any) -> float:
    return float(metrics[HELD_OUT])


def _name(path: Any) -> str:
    """An array's place in the state, as words between slashes, whatever kinds of nodes it is below."""
    return "/".join(str(getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", entry)))) for entry in path)


def _digest(listed: Any) -> str:
    return hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()
