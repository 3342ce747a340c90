"""PPO and the reward model with adapters: what is trained, what is shared, and that a resumed run is the same."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from experiments.registry import find
from rlhf_jax.checkpoint import load_part, newest_intact
from rlhf_jax.config import LoRA
from rlhf_jax.loops.pipeline import run_experiment
from rlhf_jax.loops.run import open_run
from rlhf_jax.overrides import apply_overrides
from rlhf_jax.report.metrics import read_metrics

SHORT = [
    "policy.width=16",
    "policy.layers=1",
    "evaluation.prompts=8",
    "evaluation.rows=8",
    "evaluation.new_tokens=4",
    "world.demonstrations=32",
    "world.prompts=32",
    "checkpoint_every=1",
    "ppo.prompts=8",
    "ppo.optim.rows=8",
    "ppo.iterations=3",
    "ppo.new_tokens=4",
]


def tiny(name: str):
    own = ["ppo.value_optim.rows=8"] if name == "smoke/ppo_max" else []
    return apply_overrides(find(name).experiment("cpu"), [*SHORT, *own, "lora.rank=2"])


@pytest.fixture(scope="module", params=["smoke/ppo", "smoke/ppo_max"])
def finished(request, tmp_path_factory):
    """A tiny PPO run with adapters: the value as a head on the policy, and as a model of its own."""
    directory = tmp_path_factory.mktemp("runs") / "adapters"
    experiment = tiny(request.param)
    return experiment, directory, run_experiment(open_run(experiment, directory))


def test_ppo_with_adapters_starts_at_the_reference_and_moves_away(finished):
    _, directory, outcome = finished
    ppo = read_metrics(directory)["ppo"]
    np.testing.assert_allclose(ppo["kl_sequence"].values[0], 0, atol=1e-5)
    assert ppo["kl_sequence"].values[-1] > 1e-6
    assert ppo["sampler_gap"].values.max() < 1e-4
    assert outcome.figures["ppo/kl"] > 0


def test_checkpoints_hold_the_adapters_and_not_the_base(finished):
    experiment, directory, _ = finished
    newest, _ = newest_intact(directory / "checkpoints" / "ppo")
    assert newest is not None
    params = load_part(newest, "policy", "params")
    assert "lora" in params and not jax.tree.leaves(params.get("base"))
    held = sum(np.size(leaf) for leaf in jax.tree.leaves(params))
    # Rank 2: two columns and two rows of seven kernels, and the scalar head where the policy has one.
    width, kv, mlp = 16, 8, experiment.policy.mlp
    sides = 4 * width + 2 * (width + kv) + 3 * (width + mlp)
    assert held == 2 * sides + (width + 1 if "score" in params else 0)


def test_setting_one_field_of_the_adapters_gives_the_others_their_defaults():
    assert tiny("smoke/ppo").lora == LoRA(rank=2)
