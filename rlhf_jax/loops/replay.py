"""A step whose update was left out, once more: from the checkpoint before it to the bit, and then under JAX's search for NaN."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.config import Experiment
from rlhf_jax.data.tokens.shown import spelled
from rlhf_jax.data.tokens.tokenizer import Tokenizer
from rlhf_jax.files import link_or_copy, write_atomic
from rlhf_jax.loops.faults import BATCH, CHECKPOINT, FAULT, FOLDER, as_npz, fault_folders
from rlhf_jax.loops.pipeline import run_experiment
from rlhf_jax.loops.run import Advance, Advanced, open_run
from rlhf_jax.loops.sources import open_texts
from rlhf_jax.report.runs import read_json
from rlhf_jax.types import TokenBatch

TEXT = "batch.txt"
LIBRARIES = tuple(str(Path(module.__file__).parent.parent) for module in (jax, np) if module.__file__)


@dataclasses.dataclass(frozen=True)
class Replayed:
    """What a replay has shown. `origin` is where the first NaN came from, None where infinities are all there is, or nothing."""

    stage: str
    step: int
    begun: int | None  # the checkpoint that it went on from; None: the beginning of the stage
    skipped: bool
    same_batch: bool
    same_metrics: bool
    origin: str | None


class _Done(BaseException):
    """The step has come, and nothing after it is wanted."""

    def __init__(self, found: Replayed, batch: Any) -> None:
        self.found, self.batch = found, batch


def find_fault(directory: Path, name: str | None) -> Path:
    """The folder of a seed's fault, by default of the last. Raises: FileNotFoundError naming those that there are."""
    found = fault_folders(directory)
    wanted = [folder for folder in found if name in (None, folder.name)]
    if not wanted:
        there = ", ".join(folder.name for folder in found) or "none: no update of it was left out"
        raise FileNotFoundError(f"{directory / FOLDER} has no fault{f' {name}' if name else ''}; there are: {there}")
    return wanted[-1]


def replay(experiment: Experiment, folder: Path, data_root: Path | None = None) -> Replayed:
    """The step of a fault once more, in a copy of its seed's folder, which stays as it is; its batch as text goes to `batch.txt` beside it.

    Raises: FileNotFoundError where the checkpoint that it begins with has been given up; ValueError where the run does not come to it.
    """
    fault, directory = read_json(folder / FAULT, {}), folder.parents[1]
    stage, step, begun = fault["stage"], fault["step"], fault["checkpoint"]
    if begun is not None and not (folder / CHECKPOINT).is_dir():
        raise FileNotFoundError(
            f"{folder} has no checkpoint any more: only the last few faults keep theirs; its batch is in {BATCH}"
        )

    def take(at: str, advance: Advance, state: Any, number: int) -> Advanced:
        if (at, number) != (stage, step):
            return advance(state, number)
        found = advance(jax.tree.map(jnp.copy, state), number)
        metrics = {name: float(value) for name, value in found.metrics.items()}
        said = {name: float(value) for name, value in fault["metrics"].items() if name in metrics}
        same = all(np.array_equal(metrics[name], value, equal_nan=True) for name, value in said.items())
        kept = as_npz(found.batch) == (folder / BATCH).read_bytes()
        origin, skipped = origin_of_nan(advance, state, number), bool(metrics.get("skipped"))
        raise _Done(Replayed(stage, step, begun, skipped, kept, same, origin), found.batch)

    with tempfile.TemporaryDirectory(dir=folder, prefix=".replay.") as scratch:
        place = Path(scratch) / directory.name
        copy_seed(directory, place, stage)
        if begun is not None:
            shutil.copytree(folder / CHECKPOINT, place / "checkpoints" / stage, copy_function=link_or_copy)
        run = open_run(experiment, place, data_root=data_root, take=take)
        try:
            run_experiment(run)
        except _Done as done:
            texts = open_texts(run)
            write_atomic(folder / TEXT, "".join(rows_as_text(done.batch, texts.tokenizer)))
            return done.found
    raise ValueError(f"{folder}: the run came to its end without step {step} of {stage}; was its config changed?")


def origin_of_nan(advance: Advance, state: Any, step: int) -> str | None:
    """The operation that makes the first NaN of a step, with the line of code; None where nothing is NaN. The state is used up."""
    try:
        with jax.debug_nans(True):
            jax.block_until_ready(advance(state, step).state)
    except FloatingPointError as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if not frame.filename.startswith(LIBRARIES)]
        place = (ours or frames)[-1]
        return f"{error}, {place.filename}:{place.lineno} in {place.name}: {place.line}"
    return None


def copy_seed(directory: Path, place: Path, stage: str) -> None:
    """A seed's folder as it was before a stage began: what the stage leaves is left out."""
    left_out = shutil.ignore_patterns(FOLDER, "tensorboard", "checkpoints")
    shutil.copytree(directory, place, ignore=left_out)
    for earlier in (directory / "checkpoints").glob("*"):
        if earlier.suffix != ".damaged" and earlier.name != stage:
            shutil.copytree(earlier, place / "checkpoints" / earlier.name, copy_function=link_or_copy)


def rows_as_text(batch: Any, tokenizer: Tokenizer) -> Iterator[str]:
    """Every row of every TokenBatch in a record, what is learned between « and »."""
    found = jax.tree_util.tree_leaves_with_path(batch, is_leaf=lambda node: isinstance(node, TokenBatch))
    for path, tokens in found:
        if not isinstance(tokens, TokenBatch):
            continue
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        rows = [np.asarray(field) for field in (tokens.tokens, tokens.segments != 0, tokens.loss_mask)]
        for number, (ids, real, learned) in enumerate(zip(*rows, strict=True)):
            yield f"{name}{' ' if name else ''}row {number}: {_row(ids[real], learned[real], tokenizer)}\n"


def _row(ids: np.ndarray, learned: np.ndarray, tokenizer: Tokenizer) -> str:
    pieces, inside = [], False
    for token, learn in zip(ids.tolist(), learned.tolist(), strict=True):
        if learn != inside:
            pieces.append("«" if learn else "»")
            inside = learn
        pieces.append(spelled(token, tokenizer).replace("\n", "⏎"))
    return "".join([*pieces, "»"] if inside else pieces)
