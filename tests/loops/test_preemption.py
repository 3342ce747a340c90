"""SIGTERM: the step is finished, the state saved, the code 75, and the same command with --resume goes on to the bit."""

from __future__ import annotations

import os
import signal
import threading

import jax.numpy as jnp
import pytest
from test_resume import STEPS, run, stage_of, tiny

from experiments import run as command
from rlhf_jax.checkpoint import Checkpoints
from rlhf_jax.loops.pipeline import run_experiment
from rlhf_jax.loops.preemption import PREEMPTED, Notice, Preempted, noticing
from rlhf_jax.loops.run import Advanced, open_run, run_stage
from rlhf_jax.report.metrics import read_metrics


@pytest.mark.parametrize(("name", "when"), [("sft", 2), ("reward", 3), ("ppo", 1), ("ppo", STEPS)])
def test_a_run_that_is_asked_to_end_saves_the_step_it_is_at_and_continues_to_the_bit(name, when, tmp_path):
    whole, broken, stage = tmp_path / "whole", tmp_path / "broken", stage_of(name)
    run(name, whole)

    def take(at, advance, state, number):
        if (at, number) == (stage, when - 1):
            os.kill(os.getpid(), signal.SIGTERM)
        return advance(state, number)

    with noticing() as notice, pytest.raises(Preempted, match=f"{stage}: saved at step {when} of {STEPS}"):
        run_experiment(open_run(tiny(name), broken, take=take, notice=notice))
    with Checkpoints(broken / "checkpoints" / stage) as checkpoints:
        assert checkpoints.latest == when
    run(name, broken)
    for file in ("metrics.jsonl", "samples.jsonl", "calibration.json"):
        assert (broken / file).read_text() == (whole / file).read_text(), file


@pytest.mark.parametrize("where", ["evaluate", "on_step"])
def test_a_notice_that_comes_behind_the_step_saves_it_too(where, tmp_path):
    def advance(state, number):
        return Advanced({"x": state["x"] + 1}, {"loss": 1.0}, None)

    def come(done: int) -> None:
        if done == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    def evaluate(state):
        if where == "evaluate":
            come(int(state["x"]))
        return {"loss": 1.0}

    with noticing() as notice, pytest.raises(Preempted, match="saved at step 3 of 6"):
        run = open_run(
            tiny("sft"), tmp_path, notice=notice, on_step=lambda at, done: come(done) if where == "on_step" else None
        )
        run_stage(run, "sft", {"x": jnp.zeros(())}, advance, 6, evaluate=evaluate, eval_every=3)
    with Checkpoints(tmp_path / "checkpoints" / "sft") as checkpoints:
        assert checkpoints.latest == 3
    assert read_metrics(tmp_path)["sft"]["loss"].steps.tolist() == [0, 1, 2]


def test_outside_a_step_the_end_comes_at_once():
    with noticing(), pytest.raises(Preempted, match="outside a step"):
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("not reached")


def test_a_second_signal_does_not_interrupt_what_the_first_has_begun_to_put_in_order():
    put_in_order = []
    with noticing(), pytest.raises(Preempted):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            put_in_order.append(True)
    assert put_in_order == [True]


def test_inside_held_it_comes_at_the_end_and_an_error_comes_first():
    with noticing() as notice:
        with pytest.raises(Preempted, match="between two stages"), notice.held():
            os.kill(os.getpid(), signal.SIGTERM)
            assert notice.given
        with pytest.raises(ZeroDivisionError), notice.held():
            raise ZeroDivisionError


def test_the_handler_that_there_was_comes_back():
    before = signal.getsignal(signal.SIGTERM)
    with noticing():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_in_another_thread_there_is_a_notice_that_never_comes():
    found = []

    def inside():
        with noticing() as notice:
            found.append(notice.given)

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert found == [False]


def test_the_command_ends_with_75_and_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def preempted(plan):
        assert isinstance(plan.notice, Notice)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("experiments.execute.execute", preempted)
    arguments = ["run", "smoke/sft", "--workdir", str(tmp_path / "run")]
    assert command.main(arguments) == PREEMPTED == 75
    said = capsys.readouterr().err
    assert f"go on with: python -m experiments.run run smoke/sft --workdir {tmp_path / 'run'} --resume" in said
    assert command.main([*arguments, "--resume", "auto"]) == PREEMPTED
    assert capsys.readouterr().err.rstrip().endswith("--resume auto")
