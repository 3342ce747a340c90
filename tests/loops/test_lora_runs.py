"""PPO and the reward model with adapters: what is trained, what is shared, and that a resumed run is the same."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.registry import find
from rlhf_jax.checkpoint import load_part, newest_intact
from rlhf_jax.config import LoRA
from rlhf_jax.loops.adapters import fingerprint
from rlhf_jax.loops.export import export_model
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


def sft_run(directory, *more: str):
    """A short run of SFT with adapters, begun or gone on with."""
    experiment = apply_overrides(find("smoke/sft").experiment("cpu"), [*SHORT[:8], *SFT, "lora.rank=2", *more])
    run_experiment(open_run(experiment, directory))
    return experiment


SFT = ["sft.optim.steps=2", "sft.optim.rows=8", "sft.optim.microbatches=1"]


def test_adapters_are_not_put_on_another_base_than_they_were_trained_on(tmp_path):
    experiment = sft_run(tmp_path / "seed_0")
    kept = tmp_path / "seed_0" / "bases.json"
    assert json.loads(kept.read_text()).keys() == {"sft"}
    export_model(experiment, tmp_path / "seed_0", tmp_path / "right")
    kept.write_text(json.dumps({"sft": "0" * 16}))
    with pytest.raises(ValueError, match=r"bases\.json: the adapters of stage sft were trained on another base"):
        export_model(experiment, tmp_path / "seed_0", tmp_path / "wrong")
    with pytest.raises(ValueError, match="trained on another base than is made now"):
        sft_run(tmp_path / "seed_0")
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize("change", [0, 1])
def test_every_bit_of_a_base_counts(change, tmp_path):
    run = open_run(find("smoke/sft").experiment("cpu"), tmp_path)
    params = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(3, jnp.bfloat16)}
    other = params | ({"a": params["a"].at[1, 2].set(5.0000005)} if change else {"b": params["b"].at[0].set(1.0078125)})
    swapped = params | {"a": params["a"].at[0].set(params["a"][1]).at[1].set(params["a"][0])}
    assert fingerprint(run, params) == fingerprint(run, jax.tree.map(jnp.copy, params))
    assert len({fingerprint(run, tree) for tree in (params, other, swapped)}) == 3


def test_a_reward_model_that_starts_at_random_is_trained_whole(tmp_path):
    more = ["reward.pairs=16", "reward.optim.steps=2", "reward.optim.rows=8", "reward.init=random", "lora.rank=2"]
    experiment = apply_overrides(find("smoke/reward").experiment("cpu"), [*SHORT[:8], *more])
    run_experiment(open_run(experiment, tmp_path / "seed_0"))
    newest, _ = newest_intact(tmp_path / "seed_0" / "checkpoints" / "reward")
    assert newest is not None
    assert {"layers", "tokens", "score"} <= load_part(newest, "params").keys()
    export_model(experiment, tmp_path / "seed_0", tmp_path / "out", model="reward")


def test_what_adapters_have_no_part_in_is_refused():
    with pytest.raises(ValueError, match="the critics of ilql are trained whole: set lora or ilql to none"):
        apply_overrides(find("smoke/ilql").experiment("cpu"), ["lora.rank=2"])
