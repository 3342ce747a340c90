"""Checkpoints of a stage: orbax on disk, the newest few kept, restored onto whatever mesh the state is laid on now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax


class Checkpoints:
    """The checkpoints of one stage in one directory, by step. A save is complete on disk when `save` returns.

    A directory that a killed process left half-written is not listed by orbax and is cleaned up on opening.
    """

    def __init__(self, directory: Path, *, keep: int = 2):
        from orbax.checkpoint import v1 as ocp

        self._directory = directory.absolute()
        keep_newest: Any = ocp.training.preservation_policies.LatestN(keep)
        self._checkpointer = ocp.training.Checkpointer(
            str(self._directory), preservation_policy=keep_newest, cleanup_tmp_directories=True
        )

    @property
    def latest(self) -> int | None:
        """The newest step, None where nothing was saved."""
        found = self._checkpointer.latest
        return None if found is None else found.step

    def save(self, step: int, state: Any) -> None:
        """Writes the state under this step, replacing an older one of the same number."""
        if not self._checkpointer.save_checkpointables(step, {"state": state}, force=True, overwrite=True):
            raise OSError(f"{self._directory}: checkpoint of step {step} was not written")

    def restore(self, step: int, like: Any) -> Any:
        """The state of this step with the structure, types and places of `like`.

        Raises: ValueError naming the checkpoint where it does not fit.
        """
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        try:
            found = self._checkpointer.load_checkpointables(step, {"state": target})["state"]
        except Exception as error:
            raise ValueError(f"{self._directory / str(step)}: cannot restore this checkpoint: {error}") from error
        return found

    def close(self) -> None:
        self._checkpointer.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
