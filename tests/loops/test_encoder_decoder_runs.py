"""An encoder-decoder in whole runs: as policy, reward model and value model, with adapters, and from shapes alone."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from experiments.smoke import smoke_encoder_decoder
from rlhf_jax.config import ILQL, LoRA, Optim, Preference
from rlhf_jax.loops.pipeline import run_experiment
from rlhf_jax.loops.run import open_run
from rlhf_jax.mesh import make_mesh
from rlhf_jax.plan.programs import lower_updates
from rlhf_jax.report.metrics import read_metrics

OPTIM = Optim(lr=1e-3, rows=8, steps=3)


def tiny(**stages):
    """The smoke experiment, shrunk."""
    made = smoke_encoder_decoder("cpu")
    ppo = dataclasses.replace(
        made.ppo, prompts=8, new_tokens=4, optim=Optim(lr=1e-3, rows=8), value_optim=Optim(lr=1e-3, rows=8)
    )
    parts = {
        "policy": dataclasses.replace(made.policy, width=16, layers=1, encoder_layers=1),
        "sft": dataclasses.replace(made.sft, optim=OPTIM, pack_length=128),
        "reward": dataclasses.replace(made.reward, pairs=32, optim=OPTIM),
        "ppo": ppo,
        "evaluation": dataclasses.replace(made.evaluation, prompts=8, rows=8, new_tokens=4),
        "world": dataclasses.replace(made.world, demonstrations=64, prompts=32),
    }
    return dataclasses.replace(made, **{**parts, **stages})


OFFLINE = {"reward": None, "ppo": None}
RUNS = {
    "reward model, value model, PPO": {},
    "value head on the policy": {"ppo": dataclasses.replace(tiny().ppo, value_optim=None)},
    "DPO of adapters": {
        **OFFLINE,
        "lora": LoRA(rank=2, alpha=4.0),
        "preference": Preference(data=None, pairs=16, optim=OPTIM),
    },
    "ILQL": {**OFFLINE, "ilql": ILQL(data=None, replies=16, optim=OPTIM)},
}


@pytest.mark.parametrize("name", RUNS)
def test_every_loop_runs(name, tmp_path):
    experiment = tiny(**RUNS[name])
    run_experiment(open_run(experiment, tmp_path / "run"))
    figures = json.loads((tmp_path / "run" / "summary.json").read_text())
    metrics = read_metrics(tmp_path / "run")
    assert all(math.isfinite(value) for value in figures.values())
    stages = {
        stage for stage in ("sft", "reward", "preference", "ilql", "ppo") if getattr(experiment, stage) is not None
    }
    assert stages <= metrics.keys()
    if "ppo" in stages:
        assert np.max(metrics["ppo"]["sampler_gap"].values) < 1e-5
        assert metrics["ppo"]["kl"].values[0] == 0.0
        assert metrics["ppo"]["first_ratio"].values[0] == pytest.approx(1.0, abs=1e-6)
    assert lower_updates(experiment, make_mesh(experiment.mesh)).keys() == stages
