"""What goes wrong inside a stage: updates that were left out, losses that jump, and what is kept of the first to look at them again.

SEED/faults/STAGE-STEP/fault.json      stage, step and metrics of the step
SEED/faults/STAGE-STEP/batch.npz       what it learned from, every array by its name
SEED/faults/STAGE-STEP/checkpoint      the newest checkpoint before it, from which a replay goes; of the last few faults
"""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlhf_jax.checkpoint import Checkpoints
from rlhf_jax.files import write_atomic
from rlhf_jax.processes import on_host
from rlhf_jax.report.metrics import FILE, read_metrics
from rlhf_jax.report.runs import SEED
from rlhf_jax.report.spikes import WATCHED, Spikes

FOLDER, FAULT, BATCH, CHECKPOINT = "faults", "fault.json", "batch.npz", "checkpoint"
REPLAYABLE = 3  # faults that keep their checkpoint


class NotFinite(ValueError):
    """A run whose losses or gradients stay not finite."""


class Faults:
    """Looks at every step of a stage when its metrics have come to the host, one step late. `say` shows a person what was seen.

    Raises: NotFinite, from `look`, where more than `allowed` updates in a row were left out.
    """

    def __init__(
        self, directory: Path, stage: str, checkpoints: Checkpoints, allowed: int, say: Callable[[str], None]
    ) -> None:
        self._directory, self._stage, self._checkpoints = directory, stage, checkpoints
        self._allowed, self._say = allowed, say
        self._batches: dict[int, Any] = {}
        self._spikes = {name: Spikes() for name in WATCHED}
        self._ended = False

    def remember(self) -> None:
        """Goes on from the metrics that the directory has, as if the run had not been interrupted."""
        path = self._directory / FILE
        known = read_metrics(path).get(self._stage, {}) if path.is_file() else {}
        for name, spikes in self._spikes.items():
            for step, value in zip(*known[name], strict=True) if name in known else ():
                spikes.look(int(step), float(value))

    def keep(self, step: int, batch: Any) -> None:
        """The batch of a step, until its metrics are known."""
        self._batches[step] = batch

    def look(self, step: int, metrics: Mapping[str, float]) -> None:
        """What the metrics of a step say."""
        batch = self._batches.pop(step, None)
        for name, spikes in self._spikes.items():
            spike = spikes.look(step, metrics[name]) if name in metrics else None
            if spike is not None:
                self._say(f"{self._stage} step {step}: {name} jumped to {spike}")
        if not metrics.get("skipped") or self._ended:
            return
        folder = self._record(step, metrics, batch)
        wrong = ", ".join(f"{name} {value}" for name, value in metrics.items() if not math.isfinite(value))
        self._say(f"{self._stage} step {step}: the update was left out ({wrong or 'not finite'}); kept in {folder}")
        row = int(metrics["skipped_in_a_row"])
        if row > self._allowed:
            self._ended = True  # closing looks at the steps that were under way
            raise NotFinite(
                f"{self._stage}: {row} updates in a row up to step {step} were not finite ({wrong}), and max_skipped={self._allowed}; "
                f"look at one with: python -m experiments.run replay {self._directory.parent}{_seed(self._directory)}, then try a smaller "
                "learning rate"
            )

    def _record(self, step: int, metrics: Mapping[str, float], batch: Any) -> Path:
        folder = self._directory / FOLDER / f"{self._stage}-{step}"
        shutil.rmtree(folder, ignore_errors=True)  # of the same step, before an interruption
        folder.mkdir(parents=True)
        write_atomic(folder / BATCH, as_npz(batch))
        begin = self._checkpoints.link(step, folder / CHECKPOINT)
        shown = {name: value if math.isfinite(value) else str(value) for name, value in metrics.items()}
        about = {"stage": self._stage, "step": step, "checkpoint": begin, "metrics": shown}
        write_atomic(folder / FAULT, json.dumps(about, indent=1) + "\n")
        for older in fault_folders(self._directory)[:-REPLAYABLE]:
            shutil.rmtree(older / CHECKPOINT, ignore_errors=True)
        return folder


def _seed(directory: Path) -> str:
    return f" --seed {directory.name.removeprefix(SEED)}" if directory.name.startswith(SEED) else ""


def as_npz(tree: Any) -> bytes:
    """Every array of a tree as an npz file, by its path in the tree."""
    file = io.BytesIO()
    leaves, _ = jax.tree_util.tree_flatten_with_path(on_host(tree))
    named: Any = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    np.savez(file, **named)
    return file.getvalue()


def fault_folders(directory: Path) -> list[Path]:
    """The faults of a seed that are whole on disk, in the order in which they came."""
    found = [path.parent for path in (directory / FOLDER).glob(f"*/{FAULT}")]
    return sorted(found, key=lambda folder: ((folder / FAULT).stat().st_mtime_ns, folder.name))
