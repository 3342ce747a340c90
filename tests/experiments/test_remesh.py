"""A run that goes on on another mesh than it began on, asked for by name."""

from __future__ import annotations

import dataclasses
import json
import os
import signal

import numpy as np

from experiments import run
from rlhf_jax.loops import pipeline
from rlhf_jax.report.metrics import read_metrics

STEPS = 6
SMALL = {
    "policy.width": 16,
    "policy.layers": 1,
    "evaluation.prompts": 8,
    "evaluation.rows": 8,
    "evaluation.new_tokens": 4,
    "world.demonstrations": 64,
    "sft.optim.steps": STEPS,
    "sft.optim.rows": 8,
    "sft.optim.microbatches": 1,
}


def command(directory, *options: str, **fields) -> list[str]:
    settings = [word for field, value in {**SMALL, **fields}.items() for word in ("--set", f"{field}={value}")]
    return ["run", "smoke/sft", "--workdir", str(directory), *settings, *options]


def test_a_run_goes_on_on_another_mesh_if_that_is_asked_for_and_its_numbers_are_the_same_to_rounding(
    tmp_path, monkeypatch, capsys
):
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    assert run.main(command(whole)) == 0

    def stopped(begun):
        def take(stage, advance, state, number):
            if number == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return advance(state, number)

        return right(dataclasses.replace(begun, take=take))

    right = pipeline.run_experiment
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "run_experiment", stopped)
        assert run.main(command(moved)) == 75
    other = {"mesh.fsdp": 2, "mesh.tensor": 2}
    capsys.readouterr()
    assert run.main(command(moved, "--resume", **other)) == 2
    said = capsys.readouterr().err
    assert "on another mesh (mesh.fsdp: 1 -> 2, mesh.tensor: 1 -> 2); with --remesh it goes on" in said
    assert run.main(command(moved, "--resume", "--remesh", **other)) == 0
    assert json.loads((moved / "config.json").read_text())["mesh"]["fsdp"] == 2
    curves = [read_metrics(directory / "seed_0")["sft"]["nll"].values for directory in (whole, moved)]
    assert len(curves[1]) == STEPS
    np.testing.assert_array_equal(curves[0][:3], curves[1][:3])
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-5)
    assert run.main(command(moved, "--resume", "--remesh", **other, **{"sft.optim.lr": 0.5})) == 2
    assert "sft.optim.lr" in capsys.readouterr().err


def test_another_mesh_goes_with_resume(tmp_path, capsys):
    assert run.main(command(tmp_path / "run", "--remesh")) == 2
    assert "it goes with --resume" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
