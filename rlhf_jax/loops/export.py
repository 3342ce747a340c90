"""A trained policy out of a run: a llama2.c file with the tokenizer beside it."""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

from rlhf_jax.checkpoint import in_words, load_part, newest_intact
from rlhf_jax.config import Experiment
from rlhf_jax.data.sources import find_data_root
from rlhf_jax.data.tokenizer import load_tokenizer, save_tokenizer
from rlhf_jax.loops.sources import TOKENIZER, kept_tokenizer
from rlhf_jax.models.convert.llama2c import check_llama2c, save_llama2c
from rlhf_jax.overrides import from_dict
from rlhf_jax.report.runs import CONFIG, SEED, read_json, seed_directories

MODEL = "model.bin"


class Exported(NamedTuple):
    """What was exported: the policy after so many of the steps of a stage."""

    stage: str
    step: int
    steps: int


def read_experiment(directory: Path) -> Experiment:
    """The experiment whose run a directory holds. Raises: FileNotFoundError where it holds none, ValueError for a study."""
    config = read_json(directory / CONFIG, None)
    if config is None:
        raise FileNotFoundError(f"{directory} holds no run: there is no {CONFIG} in it")
    if "policy" not in config:
        raise ValueError(f"{directory} holds a study of algorithms, which leaves no policy to export")
    return from_dict(Experiment, config)


def seed_directory(directory: Path, seed: int | None) -> Path:
    """The folder of a run's seed, by default of the first. Raises: FileNotFoundError naming the seeds that there are."""
    found = seed_directories(directory)
    wanted = [path for path in found if seed is None or path.name == f"{SEED}{seed}"]
    if not wanted:
        there = ", ".join(path.name.removeprefix(SEED) for path in found) or "none"
        raise FileNotFoundError(f"{directory} has no seed {'at all' if seed is None else seed}; there are: {there}")
    return wanted[0]


def export_policy(experiment: Experiment, directory: Path, out: Path, data_root: Path | None = None) -> Exported:
    """Writes the policy of one seed's folder to the folder `out`, from the newest intact checkpoint of its last policy stage.

    The run is only read, so that it may still be going. Raises: ValueError for an experiment that trains no policy, or one that the format
    cannot express; FileNotFoundError where the stage has no checkpoint, FileExistsError where `out` is not empty.
    """
    stage, steps, keys = last_policy(experiment)
    check_llama2c(experiment.policy)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is there already; choose another --out")
    kept = directory / TOKENIZER
    if experiment.text.tokenizer.startswith("train:"):
        tokenizer = kept_tokenizer(kept)
    else:
        tokenizer = load_tokenizer(find_data_root(data_root) / experiment.text.tokenizer)
    folder = directory / "checkpoints" / stage
    newest, damaged = newest_intact(folder)
    for checkpoint, wrong in damaged.items():
        warnings.warn(f"{in_words(checkpoint, wrong)}. It was left where it is.", stacklevel=2)
    if newest is None:
        raise FileNotFoundError(f"{folder} has no intact checkpoint: stage {stage!r} of this run has not come to one")
    params = {name: part for name, part in load_part(newest, *keys).items() if name != "score"}
    if experiment.ilql is not None:
        warnings.warn(
            "the critics of the ilql stage are left out: the file holds the policy that they guide", stacklevel=2
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        written = Path(folder) / out.name
        written.mkdir()
        save_llama2c(written / MODEL, experiment.policy, params)
        save_tokenizer(tokenizer, written)
        os.replace(written, out)  # whole or not at all; an empty folder gives way
    return Exported(stage, int(newest.name), steps)


def last_policy(experiment: Experiment) -> tuple[str, int, tuple[str, ...]]:
    """(the last stage that trains the policy, its steps, where in its state the policy is). Raises: ValueError without one."""
    if experiment.ppo is not None:
        return "ppo", experiment.ppo.iterations, ("policy", "params" if experiment.ppo.ema is None else "ema")
    for stage in ("preference", "sft"):
        config = getattr(experiment, stage)
        if config is not None:
            return stage, config.optim.total, ("params",)
    raise ValueError(f"{experiment.name} trains no policy: it has no stage sft, preference or ppo")
