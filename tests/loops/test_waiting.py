"""Models that nothing trains, in the memory of the hosts: what is computed stays the same, and the devices have room."""

from __future__ import annotations

import dataclasses
import gc
from collections import Counter

import jax
import numpy as np
import pytest

from experiments.smoke import smoke_mesh, smoke_preference
from rlhf_jax.config import MeshConfig
from rlhf_jax.loops.pipeline import run_experiment
from rlhf_jax.loops.run import open_run
from rlhf_jax.mesh import make_mesh
from rlhf_jax.models import build_model
from rlhf_jax.models.params import count_parameters
from rlhf_jax.sharding import HOST, in_device_memory, in_host_memory, place

DEVICES = 8
SMALL = {"prompts": 8, "rows": 8, "new_tokens": 4}


def lying() -> Counter[str]:
    """The bytes of all arrays, by the kind of memory that they lie in."""
    gc.collect()
    held: Counter[str] = Counter()
    for array in jax.live_arrays():
        if len(array.sharding.device_set) == DEVICES:  # others are pieces of them, which a checkpoint has looked at
            held[str(array.sharding.memory_kind)] += array.nbytes
    return held


def run(experiment, directory, stage: str):
    """(what the directory has in the end; how much more lay where, in the first step of the stage, than before the run)."""
    before, found = lying(), []

    def look(at: str, done: int) -> None:
        if (at, done) == (stage, 1):
            found.append(lying() - before)

    outcome = run_experiment(open_run(experiment, directory, on_step=look))
    figures = {name: value for name, value in outcome.figures.items() if "second" not in name}
    return ((directory / "metrics.jsonl").read_bytes(), (directory / "samples.jsonl").read_bytes(), figures), found[0]


def test_ppo_beside_models_that_wait_in_host_memory_is_the_same_and_leaves_the_devices_to_it(tmp_path):
    made = smoke_mesh("cpu")
    assert made.waiting == "host" and made.sft and made.reward and made.ppo
    experiment = dataclasses.replace(
        made,
        sft=dataclasses.replace(made.sft, optim=dataclasses.replace(made.sft.optim, steps=3)),
        reward=dataclasses.replace(made.reward, pairs=32, optim=dataclasses.replace(made.reward.optim, steps=3)),
        evaluation=dataclasses.replace(made.evaluation, **SMALL),
    )
    on_host, host = run(experiment, tmp_path / "host", "ppo")
    on_device, device = run(dataclasses.replace(experiment, waiting="device"), tmp_path / "device", "ppo")
    assert on_host == on_device
    # The policy before and behind SFT, and the reward model.
    waiting = sum(
        4 * count_parameters(jax.eval_shape(build_model(shape).init, jax.random.key(0)))
        for shape in (experiment.policy, experiment.policy, experiment.reward_shape)
    )
    assert host[HOST] == waiting and not device[HOST]
    assert device["device"] - host["device"] == pytest.approx(waiting, rel=0.05)


def test_dpo_with_its_reference_in_host_memory_is_the_same(tmp_path):
    made = smoke_preference("cpu")
    assert made.preference is not None
    preference = dataclasses.replace(
        made.preference, pairs=32, optim=dataclasses.replace(made.preference.optim, steps=3)
    )
    experiment = dataclasses.replace(
        made,
        preference=preference,
        evaluation=dataclasses.replace(made.evaluation, **SMALL),
        mesh=MeshConfig(fsdp=DEVICES),
    )
    on_device, _ = run(experiment, tmp_path / "device", "preference")
    on_host, held = run(dataclasses.replace(experiment, waiting="host"), tmp_path / "host", "preference")
    assert on_host == on_device
    assert held[HOST]


def test_arrays_go_to_host_memory_and_come_back_where_they_were():
    mesh = make_mesh(MeshConfig(fsdp=DEVICES))
    tree = place({"up": {"kernel": np.arange(128.0, dtype=np.float32).reshape(16, 8)}, "beta": np.float32(2)}, mesh)
    there = in_host_memory(tree)
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(there)} == {HOST}
    back = in_device_memory((there, 1.0))[0]
    assert jax.tree.map(lambda leaf: leaf.sharding, back) == jax.tree.map(lambda leaf: leaf.sharding, tree)
    jax.tree.map(np.testing.assert_array_equal, back, tree)
    assert in_device_memory(tree) is tree
