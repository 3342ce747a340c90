"""An encoder as the reward model of a whole run: trained, its zero moved, and asked by PPO for the scores of rollouts."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np

from experiments.smoke import smoke_encoder_reward
from rlhf_jax.loops.pipeline import run_experiment
from rlhf_jax.loops.run import open_run
from rlhf_jax.mesh import make_mesh
from rlhf_jax.plan.programs import lower_updates
from rlhf_jax.report.metrics import read_metrics


def tiny():
    """The smoke experiment, shrunk."""
    experiment = smoke_encoder_reward("cpu")
    shrunk = {"width": 16, "layers": 1}
    return dataclasses.replace(
        experiment,
        policy=dataclasses.replace(experiment.policy, **shrunk),
        reward_model=dataclasses.replace(experiment.reward_model, **shrunk),
        sft=None,
        reward=dataclasses.replace(
            experiment.reward, pairs=32, optim=dataclasses.replace(experiment.reward.optim, rows=8, steps=4)
        ),
        ppo=dataclasses.replace(
            experiment.ppo, prompts=8, new_tokens=4, optim=dataclasses.replace(experiment.ppo.optim, rows=8)
        ),
        evaluation=dataclasses.replace(experiment.evaluation, prompts=8, rows=8, new_tokens=4),
        world=dataclasses.replace(experiment.world, demonstrations=64, prompts=32),
    )


def test_an_encoder_judges_a_run_from_comparisons_to_ppo(tmp_path):
    run_experiment(open_run(tiny(), tmp_path / "run"))
    figures = json.loads((tmp_path / "run" / "summary.json").read_text())
    metrics = read_metrics(tmp_path / "run")
    assert 0.0 <= figures["reward/accuracy"] <= 1.0
    _, losses = metrics["reward"]["loss"]
    assert len(losses) >= 4
    scores = [figures[f"{policy}/score"] for policy in ("sft", "ppo") if f"{policy}/score" in figures]
    assert scores
    assert all(math.isfinite(score) for score in scores)
    assert np.isfinite(metrics["ppo"]["score"][1]).all()


def test_its_update_is_lowered_from_shapes():
    experiment = tiny()
    assert lower_updates(experiment, make_mesh(experiment.mesh)).keys() == {"reward", "ppo"}
