"""What goes wrong inside a stage: an update that is not finite, a loss that jumps, a reward that fails, a disk that is full."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import played
from test_resume import EVERY, MEASURED, STEPS, Interrupted, tiny

from experiments.run import main
from rlhf_jax.checkpoint import Checkpoints, newest_intact
from rlhf_jax.loops import replay as module
from rlhf_jax.loops import rlhf, sft
from rlhf_jax.loops.faults import FAULT, NotFinite, fault_folders
from rlhf_jax.loops.pipeline import run_experiment
from rlhf_jax.loops.replay import find_fault, replay
from rlhf_jax.loops.run import Advanced, open_run, run_stage
from rlhf_jax.report.metrics import read_metrics
from rlhf_jax.train import ppo, step

BROKEN = 3  # updates that are done when the one comes that is not finite


def broken_update(monkeypatch, module, *, times: int = 1) -> None:
    """The update behind the third is not finite, so many times."""
    right = step.apply_gradients

    def apply_gradients(state, grads, tx, **how):
        bad = (state.step == BROKEN) & (state.skipped < times)
        return right(state, grads, tx, **{**how, "loss": how.get("loss", 0.0) + jnp.where(bad, jnp.nan, 0.0)})

    monkeypatch.setattr(module, "apply_gradients", apply_gradients)


@pytest.mark.parametrize(("name", "at"), [("sft", step), ("reward", step), ("ppo", ppo)])
def test_an_update_that_is_not_finite_is_left_out_kept_and_the_same_after_an_interruption(
    name, at, tmp_path, monkeypatch, capsys
):
    broken_update(monkeypatch, at)

    def run(directory: Path, stop: int | None = None) -> None:
        def on_step(stage: str, done: int) -> None:
            if (stage, done) == (name, stop):
                raise Interrupted

        run_experiment(open_run(tiny(name), directory, on_step=on_step))

    run(tmp_path / "whole")
    left_out = read_metrics(tmp_path / "whole")[name]["skipped"].values
    assert len(left_out) == STEPS and left_out.sum() == 1
    (folder,) = fault_folders(tmp_path / "whole")
    fault = json.loads((folder / FAULT).read_text())
    assert (fault["stage"], left_out[fault["step"]], fault["metrics"]["skipped"]) == (name, 1, 1)
    assert f"{name} step {fault['step']}: the update was left out" in capsys.readouterr().err
    with np.load(folder / "batch.npz") as batch:
        assert any("tokens" in key for key in batch.files)
        assert all(np.isfinite(batch[key]).all() for key in batch.files)

    with pytest.raises(Interrupted):
        run(tmp_path / "broken", stop=fault["step"] + 1)
    run(tmp_path / "broken")
    for file in ("metrics.jsonl", "samples.jsonl"):
        assert (tmp_path / "broken" / file).read_text() == (tmp_path / "whole" / file).read_text(), file


def test_a_run_that_stays_not_finite_ends_and_says_what_to_look_at(tmp_path, monkeypatch):
    broken_update(monkeypatch, step, times=100)
    experiment = dataclasses.replace(tiny("sft"), max_skipped=2)
    said = r"sft: 3 updates in a row up to step 5 were not finite.*max_skipped=2.*experiments\.run replay"
    with pytest.raises(NotFinite, match=said):
        run_experiment(open_run(experiment, tmp_path / "seed_0"))
    assert [folder.name for folder in fault_folders(tmp_path / "seed_0")] == ["sft-3", "sft-4", "sft-5"]


def nan_where_tokens_sum_to(monkeypatch, total: int) -> None:
    """SFT's loss takes the root of a negative number on one batch alone."""
    right = sft.sft_loss

    def sft_loss(params, batch, **how):
        loss, aux = right(params, batch, **how)
        bad = batch.tokens.sum() == total
        return loss + jnp.sqrt(jnp.where(bad, -1.0, 0.0)), aux

    monkeypatch.setattr(sft, "sft_loss", sft_loss)


def token_sums(experiment, directory: Path) -> list[int]:
    """The sum of the tokens of each batch of SFT."""
    sums: list[int] = []

    def take(stage, advance, state, number):
        found = advance(state, number)
        sums.append(int(found.batch.tokens.sum()))
        return found

    run_experiment(open_run(experiment, directory, take=take))
    return sums


@pytest.fixture
def faulty(tmp_path, monkeypatch):
    """(run directory, step) of a run of smoke/sft, one batch of which makes a NaN."""
    experiment = tiny("sft")
    optim = dataclasses.replace(experiment.sft.optim, microbatches=1)
    experiment = dataclasses.replace(experiment, sft=dataclasses.replace(experiment.sft, optim=optim))
    sums = token_sums(experiment, tmp_path / "before")
    assert len(set(sums)) == STEPS
    number = MEASURED + 1  # one update behind a checkpoint
    nan_where_tokens_sum_to(monkeypatch, sums[number])
    from rlhf_jax.overrides import to_dict

    directory = tmp_path / "run"
    run_experiment(open_run(experiment, directory / "seed_0"))
    (directory / "config.json").write_text(json.dumps(to_dict(experiment)))
    return directory, number


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_fault_is_replayed_from_the_checkpoint_before_it_and_its_nan_traced_to_a_line(faulty, capsys):
    directory, number = faulty
    before = contents(directory)
    assert main(["replay", str(directory)]) == 0
    said = capsys.readouterr().out
    assert f"sft step {number}, from the checkpoint of step {MEASURED}" in said
    assert "left out again; its metrics are those of the first time, digit for digit" in said
    assert "the first NaN: invalid value (nan) encountered in sqrt" in said and "test_faults.py" in said
    after = contents(directory)
    (text,) = after.keys() - before.keys()
    assert text == f"seed_0/faults/sft-{number}/batch.txt" and after[text].count(b"\n") == 8
    assert {name: after[name] for name in before} == before


def test_a_fault_before_any_checkpoint_is_replayed_from_the_beginning(tmp_path, monkeypatch):
    broken_update(monkeypatch, step)
    run_experiment(open_run(tiny("sft"), tmp_path / "seed_0"))
    found = replay(tiny("sft"), find_fault(tmp_path / "seed_0", "sft-3"))
    assert (found.begun, found.skipped, found.same_batch, found.same_metrics) == (None, True, True, True)


def test_a_replay_says_when_the_batch_is_another(faulty):
    directory, number = faulty
    folder = directory / "seed_0" / "faults" / f"sft-{number}"
    (folder / "batch.npz").write_bytes(b"another")
    found = replay(tiny("sft"), folder)
    assert not found.same_batch


def test_what_cannot_be_replayed_says_so(faulty, capsys):
    directory, number = faulty
    folder = directory / "seed_0" / "faults" / f"sft-{number}"
    assert main(["replay", str(directory), "--fault", "sft-1"]) == 2
    assert f"no fault sft-1; there are: sft-{number}" in capsys.readouterr().err
    shutil.rmtree(folder / "checkpoint")
    assert main(["replay", str(directory)]) == 2
    assert "has no checkpoint any more" in capsys.readouterr().err


def test_only_the_last_few_faults_keep_their_checkpoint(tmp_path, monkeypatch):
    right = step.apply_gradients

    def every_second(state, grads, tx, **how):
        bad = (state.step > 0) & (state.skipped == 0)
        return right(state, grads, tx, **{**how, "loss": how["loss"] + jnp.where(bad, jnp.inf, 0.0)})

    monkeypatch.setattr(step, "apply_gradients", every_second)
    experiment = tiny("sft")
    optim = dataclasses.replace(experiment.sft.optim, steps=10)
    experiment = dataclasses.replace(
        experiment, checkpoint_every=1, sft=dataclasses.replace(experiment.sft, optim=optim)
    )
    run_experiment(open_run(experiment, tmp_path))
    folders = fault_folders(tmp_path)
    assert [folder.name for folder in folders] == [f"sft-{n}" for n in (1, 3, 5, 7, 9)]
    assert [(folder / "checkpoint").is_dir() for folder in folders] == [False, False, True, True, True]
    assert all(newest_intact(folder / "checkpoint")[0] is not None for folder in folders[2:])


def counted(state, number: int) -> Advanced:
    return Advanced({"x": state["x"] + 1}, {"loss": 1.0}, None)


def test_a_step_that_fails_leaves_a_checkpoint_of_what_was_before_it(tmp_path):
    def fails(state, number):
        if number == 3:
            raise ZeroDivisionError
        return counted(state, number)

    run, start = open_run(tiny("sft"), tmp_path), {"x": jnp.zeros(())}
    with pytest.raises(ZeroDivisionError):
        run_stage(run, "sft", start, fails, 6)
    with Checkpoints(tmp_path / "checkpoints" / "sft") as checkpoints:
        assert checkpoints.latest == 3
    done = run_stage(run, "sft", start, counted, 6)
    assert run.resumed["sft"] == 3 and float(done["x"]) == 6
    assert read_metrics(tmp_path)["sft"]["loss"].steps.tolist() == list(range(6))


def test_an_interruption_while_metrics_are_fetched_saves_the_step_and_leaves_no_hole(tmp_path):
    class Slow(float):
        def __float__(self) -> float:
            raise KeyboardInterrupt

    def interrupted(state, number):
        found = counted(state, number)
        return dataclasses.replace(found, later=lambda: {"gold": Slow()}) if number == 2 else found

    run, start = open_run(tiny("sft"), tmp_path), {"x": jnp.zeros(())}
    with pytest.raises(KeyboardInterrupt):
        run_stage(run, "sft", start, interrupted, 6)
    assert read_metrics(tmp_path)["sft"]["loss"].steps.tolist() == [0, 1]
    run_stage(run, "sft", start, counted, 6)
    assert read_metrics(tmp_path)["sft"]["loss"].steps.tolist() == list(range(6))


def test_what_cannot_be_saved_does_not_hide_what_went_wrong(tmp_path, monkeypatch, capsys):
    def fails(state, number):
        if number == 2:
            monkeypatch.setattr(Checkpoints, "save", full)
            raise ZeroDivisionError
        return counted(state, number)

    def full(self, step, state, **how):
        raise OSError("no room")

    with pytest.raises(ZeroDivisionError):
        run_stage(open_run(tiny("sft"), tmp_path), "sft", {"x": jnp.zeros(())}, fails, 6)
    assert "the state of step 2 could not be saved: no room" in capsys.readouterr().err


def test_a_held_out_loss_that_is_no_number_does_not_push_out_the_best(tmp_path):
    losses = iter([9.0, 2.0, float("nan"), float("nan"), 3.0])
    run = dataclasses.replace(open_run(tiny("sft"), tmp_path))
    run_stage(
        run,
        "sft",
        {"x": jnp.zeros(())},
        counted,
        4,
        evaluate=lambda state: {"loss": next(losses)},
        eval_every=1,
        show=("loss",),
    )
    with Checkpoints(tmp_path / "checkpoints" / "sft") as checkpoints:
        assert checkpoints.best == (1, 2.0) and checkpoints.latest == 4


def test_a_step_that_fails_when_it_has_taken_the_state_leaves_the_checkpoint_before(tmp_path):
    taken = jax.jit(lambda x: x + 1, donate_argnums=0)

    def fails(state, number):
        x = taken(state["x"])
        if number == 5:
            raise ZeroDivisionError
        return Advanced({"x": x}, {"loss": 1.0}, None)

    run = open_run(tiny("sft"), tmp_path)
    with pytest.raises(ZeroDivisionError):
        run_stage(run, "sft", {"x": jnp.zeros(4)}, fails, 6)
    with Checkpoints(tmp_path / "checkpoints" / "sft") as checkpoints:
        assert checkpoints.latest == EVERY


@pytest.mark.parametrize(
    ("reward", "error", "said"),
    [
        (lambda right: 1 / 0, rlhf.RewardError, r"failed on prompt \d+ and reply '.*': ZeroDivisionError"),
        (lambda right: float("nan"), ValueError, r"the reward of prompt \d+ and reply '.*' is nan"),
        (lambda right: float("inf"), ValueError, "is inf; it must be a finite number"),
    ],
)
def test_a_reward_function_that_fails_is_named_and_nothing_is_learned_from_it(
    tmp_path, monkeypatch, reward, error, said
):
    experiment = tiny("ppo")
    experiment = dataclasses.replace(
        experiment, reward=None, ppo=dataclasses.replace(experiment.ppo, reward="gold", value_init="policy")
    )
    right, calls = rlhf.text_scorer, []

    def scorer(run, texts, score):
        def sometimes(prompt, reply):
            calls.append(prompt)
            broken = len(calls) == 2 * 16 + 5  # in the third iteration of 8 prompts and 2 samples
            return reward(score(prompt, reply)) if broken else score(prompt, reply)

        return right(run, texts, sometimes)

    monkeypatch.setattr("rlhf_jax.loops.pipeline.text_scorer", scorer)
    with pytest.raises(error, match=said):
        run_experiment(open_run(experiment, tmp_path / "broken"))
    with Checkpoints(tmp_path / "broken" / "checkpoints" / "ppo") as checkpoints:
        assert checkpoints.latest == 2
    run_experiment(open_run(experiment, tmp_path / "broken"))  # whose fifth call is a good one now
    run_experiment(open_run(experiment, tmp_path / "whole"))
    for file in ("metrics.jsonl", "samples.jsonl"):
        assert (tmp_path / "broken" / file).read_text() == (tmp_path / "whole" / file).read_text(), file


@pytest.mark.parametrize("shape", [(3,), (8, 1), ()])
def test_scores_that_are_not_one_to_a_reply_are_refused(shape):
    with pytest.raises(ValueError, match=r"scores of shape \[.*\] to 8 replies; it must give one to each"):
        rlhf.scores_of(lambda rollout, index: np.zeros(shape), played().rollout, np.arange(8))


def test_a_loss_that_jumps_is_told_and_the_run_goes_on(tmp_path, capsys):
    def jumps(state, number):
        value = 9.0 if number == 30 else 1.0 + 0.01 * (number % 3)
        return Advanced(state, {"loss": value, "grad_norm": 1.0}, None)

    run_stage(open_run(tiny("sft"), tmp_path), "sft", {"x": jnp.zeros(())}, jumps, 40)
    assert capsys.readouterr().err == "sft step 30: loss jumped to 9, where 1.01 was usual\n"


def test_the_module_of_replays_names_libraries_that_exist():
    assert all(Path(place).is_dir() for place in module.LIBRARIES)
