"""A run that was interrupted and continued leaves what one that was not leaves, to the bit."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.registry import find
from rlhf_jax.checkpoint import Checkpoints
from rlhf_jax.config import Experiment
from rlhf_jax.loops.pipeline import run_experiment
from rlhf_jax.loops.run import open_run
from rlhf_jax.report.metrics import read_metrics

STEPS, EVERY, MEASURED, STOP = 7, 4, 5, 6
"""Updates in all, between checkpoints, before the evaluation, whose checkpoint is kept as the best, and before the interruption."""


class Interrupted(Exception):
    """Stands for whatever may end a process."""


def stage_of(name: str) -> str:
    """The last stage of a smoke experiment."""
    return {"dapo": "ppo", "kto": "preference"}.get(name, name)


def tiny(name: str) -> Experiment:
    """The smoke experiment of that name, shrunk, with an evaluation between the checkpoint and the interruption."""
    experiment, stage = find(f"smoke/{name}").experiment("cpu"), stage_of(name)
    config = getattr(experiment, stage)
    if stage == "ppo":
        config = dataclasses.replace(
            config, iterations=STEPS, prompts=8, samples=2, optim=rows(config, 8), new_tokens=4, ema=0.5
        )
        config = dataclasses.replace(config, score_unit="scaled")
    else:
        config = dataclasses.replace(
            config, optim=dataclasses.replace(rows(config, 8), steps=STEPS), eval_every=MEASURED
        )
    if stage in ("reward", "preference"):
        config = dataclasses.replace(config, pairs=32)
    if stage == "ilql":
        config = dataclasses.replace(config, replies=32)
    return dataclasses.replace(
        experiment,
        policy=dataclasses.replace(experiment.policy, width=16, layers=1),
        evaluation=dataclasses.replace(experiment.evaluation, prompts=8, rows=8, new_tokens=4),
        world=dataclasses.replace(experiment.world, demonstrations=64, prompts=32),
        checkpoint_every=EVERY,
        **{stage: config},
    )


def rows(config, count: int):
    return dataclasses.replace(config.optim, rows=count)


def run(name: str, directory: Path, *, interrupted: bool = False) -> None:
    """The experiment from whatever the directory holds; `interrupted` ends it after STOP updates."""

    def on_step(at: str, done: int) -> None:
        if interrupted and (at, done) == (stage_of(name), STOP):
            raise Interrupted

    run_experiment(open_run(tiny(name), directory, on_step=on_step))


@pytest.fixture
def saved(monkeypatch) -> dict[tuple[Path, int], dict[str, np.ndarray]]:
    """(folder of checkpoints, step) -> every array that was saved there, by its path in the state."""
    states = {}

    class Recorded(Checkpoints):
        def save(self, step, state, **how):
            super().save(step, state, **how)
            leaves, _ = jax.tree_util.tree_flatten_with_path(state)
            states[self._directory, step] = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}

    monkeypatch.setattr("rlhf_jax.loops.run.Checkpoints", Recorded)
    return states


def summary(directory: Path) -> dict[str, float]:
    """The figures of a run that do not measure time."""
    figures = json.loads((directory / "summary.json").read_text())
    return {name: value for name, value in figures.items() if "second" not in name}


def assert_same_state(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert expected.keys() == found.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array, err_msg=path)


@pytest.mark.parametrize("name", ["sft", "reward", "preference", "kto", "ilql", "ppo", "dapo"])
def test_an_interrupted_and_continued_run_equals_one_that_was_not_to_the_bit(name, tmp_path, saved):
    whole, broken, stage = tmp_path / "whole", tmp_path / "broken", stage_of(name)
    run(name, whole)
    with pytest.raises(Interrupted):
        run(name, broken, interrupted=True)
    assert not (broken / "summary.json").exists()
    assert f'"step": {STOP - 1}' in (broken / "metrics.jsonl").read_text(), "nothing beyond the checkpoint was written"
    run(name, broken)

    for file in ("metrics.jsonl", "samples.jsonl", "calibration.json"):
        assert (broken / file).read_text() == (whole / file).read_text(), file
    assert summary(broken) == summary(whole)
    middle, expected = (saved[whole / "checkpoints" / stage, step] for step in (EVERY, STEPS))
    found = saved[broken / "checkpoints" / stage, STEPS]
    assert_same_state(found, expected)
    moved = [path for path, array in expected.items() if not np.array_equal(array, middle[path])]
    assert any("params" in path for path in moved), "nothing was learnt after the interruption"
    assert any("mu" in path for path in moved)
    assert stage != "ppo" or any("moments" in path for path in moved)
    if name == "dapo":
        metrics = read_metrics(whole)["ppo"]
        before, after, rollouts = (metrics[figure].values for figure in ("signal_before_refills", "signal", "rollouts"))
        assert (after >= before).all() and (after > before).any()
        assert ((rollouts == 1) == (before == 1)).all() and rollouts.max() == 3


def flip_a_bit(checkpoint: Path) -> None:
    """In the largest file, which holds arrays."""
    path = max((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "stage", "damaged"),
    [("sft", "sft", [STEPS]), ("sft", "sft", [STEPS, MEASURED]), ("ppo", "ppo", [STEPS]), ("dapo", "sft", [30, 28])],
)
def test_a_run_whose_newest_checkpoints_are_damaged_ends_as_if_they_were_not(name, stage, damaged, tmp_path, saved):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(name, whole)
    shutil.copytree(whole, broken)
    for step in damaged:
        flip_a_bit(broken / "checkpoints" / stage / str(step))
    for file in ("summary.json", "samples.jsonl", "calibration.json"):
        (broken / file).unlink()
    goes_on = f"starts from its beginning|goes on from .*/checkpoints/{stage}/[45]"
    with pytest.warns(UserWarning, match=rf"checkpoints/{stage}/{damaged[0]} is not intact: state/(.|\n)*({goes_on})"):
        run(name, broken)

    assert sorted(int(path.name) for path in (broken / "checkpoints" / f"{stage}.damaged").iterdir()) == damaged[::-1]
    assert_same_state(*(saved[directory / "checkpoints" / stage, damaged[0]] for directory in (broken, whole)))
    for file in ("samples.jsonl", "calibration.json"):
        assert (broken / file).read_text() == (whole / file).read_text(), file
    assert summary(broken) == summary(whole)
    # Lines of an earlier stage come after those of a later one when it is run again; each stage's are the same.
    lines = [(directory / "metrics.jsonl").read_text().splitlines() for directory in (whole, broken)]
    assert sorted(lines[0]) == sorted(lines[1])
    assert lines[0] == lines[1] or stage != stage_of(name)


def test_a_tokenizer_that_changed_since_the_run_began_is_refused(tmp_path):
    with pytest.raises(Interrupted):
        run("sft", tmp_path, interrupted=True)
    kept = tmp_path / "tokenizer.model"
    content = bytearray(kept.read_bytes())
    content[100] ^= 1
    kept.write_bytes(content)
    with pytest.raises(ValueError, match=r"tokenizer\.model is damaged.*; take both from another seed"):
        run("sft", tmp_path)
    kept.unlink()
    run("sft", tmp_path)
