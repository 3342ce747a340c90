"""Checkpoints of a stage: orbax on disk, the newest few kept, restored onto whatever mesh the state is laid on now.

Each step's directory ends with a manifest: size and sha256 of every file in it. A checkpoint without one, or with a file that is not as
it says, is damaged: opening the directory moves it aside, and the newest intact one is the latest.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlhf_jax.files import sha256, write_atomic
from rlhf_jax.frozen import join_frozen, split_frozen

MANIFEST = "checksums.json"
SHOWN = 4  # faults of one checkpoint, at most, in a warning


class Checkpoints:
    """The checkpoints of one stage in one directory, by step. A save is complete on disk when `save` returns.

    Opening verifies the newest one. What is damaged moves to `DIRECTORY.damaged/STEP`, with a warning that names the files; nothing is
    deleted. A directory that a killed process left half-written is not listed by orbax and is cleaned up on opening.
    """

    def __init__(self, directory: Path, *, keep: int = 2):
        from orbax.checkpoint import v1 as ocp

        self._directory = directory.absolute()
        # Before orbax looks, which would count whatever is called like a step among those it keeps.
        _set_damaged_aside(self._directory)
        keep_newest: Any = ocp.training.preservation_policies.LatestN(keep)
        self._checkpointer = ocp.training.Checkpointer(
            str(self._directory), preservation_policy=keep_newest, cleanup_tmp_directories=True
        )

    @property
    def latest(self) -> int | None:
        """The newest step, which was intact on opening or has been saved since; None where there is none."""
        found = self._checkpointer.latest
        return None if found is None else found.step

    def save(self, step: int, state: Any) -> None:
        """Writes the state under this step, replacing an older one of the same number; the manifest is the last thing written.

        Frozen parts are left out: they are what they were when the stage began.
        """
        live, _ = split_frozen(state)
        if not self._checkpointer.save_checkpointables(step, {"state": live}, force=True, overwrite=True):
            raise OSError(f"{self._directory}: checkpoint of step {step} was not written")
        seal(self._directory / str(step))

    def restore(self, step: int, like: Any) -> Any:
        """The state of this step with the structure, types and places of `like`, and its frozen parts.

        Raises: ValueError naming the checkpoint where it does not fit.
        """
        live, frozen = split_frozen(like)
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), live)
        try:
            found = self._checkpointer.load_checkpointables(step, {"state": target})["state"]
        except Exception as error:
            raise ValueError(f"{self._directory / str(step)}: cannot restore this checkpoint: {error}") from error
        return join_frozen(found, frozen)

    def close(self) -> None:
        self._checkpointer.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def seal(checkpoint: Path) -> None:
    """Writes the manifest of a complete checkpoint. Raises: FileNotFoundError where nothing of it is there any more."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path != checkpoint / MANIFEST)
    if not files:
        raise FileNotFoundError(f"{checkpoint} has gone while it was written; does another process use this run?")
    with ThreadPoolExecutor() as pool:
        digests = pool.map(sha256, files)
        listed = {
            path.relative_to(checkpoint).as_posix(): {"bytes": path.stat().st_size, "sha256": digest}
            for path, digest in zip(files, digests, strict=True)
        }
    write_atomic(checkpoint / MANIFEST, json.dumps({"sha256": _digest(listed), "files": listed}, indent=1))


def faults(checkpoint: Path) -> list[str]:
    """What is wrong with a checkpoint, file by file; nothing where all that was saved is there. Files that came later do not matter.

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


def _digest(listed: Any) -> str:
    return hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()
