"""Policy gradients whose models read a prompt once for all of its responses: when they may, and that nothing else changes."""

from __future__ import annotations

import dataclasses
import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import LLAMA, STOPS, VALUE, assert_trees_close, built, left_padded, lively, nearby, right_padded

from rlhf_jax.compiled import compile_function
from rlhf_jax.config import PPO, MeshConfig, Optim
from rlhf_jax.doctor.subjects import BOTH_HEADS
from rlhf_jax.loops.rlhf import make_update, reader_of
from rlhf_jax.mesh import make_mesh
from rlhf_jax.models import Model
from rlhf_jax.rollout.generate import generate
from rlhf_jax.rollout.score import make_trajectory
from rlhf_jax.sharding import place, place_batch
from rlhf_jax.train import init_state
from rlhf_jax.train.optimizer import make_optimizer
from rlhf_jax.train.ppo import start_ppo

PROMPTS, SAMPLES, NEW = 4, 4, 6
OPTIM = Optim(lr=0.01, rows=8, microbatches=2, eps=1e-2)
GROUPED = PPO(
    optim=OPTIM,
    value_optim=OPTIM,
    iterations=3,
    prompts=PROMPTS,
    samples=SAMPLES,
    new_tokens=NEW,
    shuffle="prompts",
    epochs=2,
    kl_in="loss",
    kl_estimator="exact",
    ptx_coef=0.5,
    ptx_rows=2,
)


def alone(model: Model) -> Model:
    """The model without the means to read rows together."""
    return dataclasses.replace(model, grouped=None)


@functools.cache
def rollout():
    prompts = left_padded([1, 3, 2, 4], 4, seed=7)
    write = jax.jit(partial(generate, model=built(LLAMA), new_tokens=NEW, stop=STOPS))
    return write(lively(LLAMA), prompts, jax.random.split(jax.random.key(5), PROMPTS * SAMPLES), 0.7)


def trajectory(policy: Model, value: Model, config: PPO):
    make = partial(make_trajectory, policy=policy, values=value.values, config=config)
    scores = jnp.asarray(np.random.default_rng(3).normal(size=PROMPTS * SAMPLES), jnp.float32)
    return jax.jit(make)(lively(LLAMA), nearby(), lively(VALUE), rollout(), scores, jnp.float32(0.1))


@pytest.mark.parametrize("reward_at", ["eos", "eos_plus_1"])
def test_responses_say_the_same_to_models_that_read_their_prompt_once(reward_at):
    config = dataclasses.replace(GROUPED, reward_at=reward_at)
    models = built(LLAMA), built(VALUE)
    one = trajectory(*map(alone, models), config)
    together = trajectory(*(reader_of(model, config) for model in models), config)
    assert float(jnp.abs(one[0].values).max()) > 0.1 and float(jnp.abs(one[1]["kl"])) > 1e-4
    assert_trees_close(one, together, atol=2e-5, rtol=1e-5)


ONE_MINIBATCH = {
    "shuffle": "responses",
    "optim": dataclasses.replace(OPTIM, rows=16, microbatches=1),
    "value_optim": None,
    "ptx_coef": 0.0,
    "ptx_rows": None,
    "kl_estimator": "k3",
}


@pytest.mark.parametrize(
    ("changes", "mesh"),
    [({}, MeshConfig()), ({}, MeshConfig(data=2)), ({}, MeshConfig(data=4)), (ONE_MINIBATCH, MeshConfig())],
    ids=["prompts in microbatches", "on two devices", "fewer prompts than devices", "one minibatch, a shared trunk"],
)
def test_an_update_by_prompts_is_the_one_that_reads_every_row_by_itself(changes, mesh):
    """Exact KL in the loss and a critic of its own; demonstrations, which share nothing, in the same gradient."""
    config, there = dataclasses.replace(GROUPED, **changes), make_mesh(mesh)
    shared = config.value_optim is None
    model = built(BOTH_HEADS if shared else LLAMA)
    params, critic = lively(model.config), None if shared else built(VALUE)
    found, _ = trajectory(built(LLAMA), built(VALUE), GROUPED)
    tx, demonstrations = make_optimizer(config.policy_optim), None
    if config.ptx_coef:
        demonstrations = right_padded([9, 3, 7, 5, 4, 6, 8, 2], 9, seed=1)
        demonstrations = jax.tree.map(lambda x: np.asarray(x).reshape(4, 2, -1), demonstrations)
    value = None if shared else init_state(lively(VALUE), tx)
    state = place(start_ppo(init_state(params, tx), value, jnp.float32(0.1)), there)
    given = place_batch(jax.tree.map(np.asarray, found), there), jnp.float32(0.0), jax.random.key(1), demonstrations
    reference = place(nearby(), there) if config.kl_estimator == "exact" else None

    def run(policy: Model, value: Model | None):
        update = compile_function(make_update(policy, value, config), there)
        return update(state, *given, reference)

    one, together = run(alone(model), critic and alone(critic)), run(model, critic)
    assert_trees_close(one, together, atol=1e-5, rtol=1e-4)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), one[0].policy.params, params)
    assert max(jax.tree.leaves(moved)) > 1e-3


@pytest.mark.parametrize(
    ("changes", "together"),
    [
        ({}, SAMPLES),
        ({"shuffle": "responses"}, 1),
        ({"shuffle": "responses", "optim": Optim(lr=1.0, rows=16), "value_optim": None, "baseline": "none"}, SAMPLES),
        (
            {
                "shuffle": "responses",
                "optim": Optim(lr=1.0, rows=16, microbatches=8),
                "value_optim": None,
                "baseline": "none",
                "ptx_rows": 8,
            },
            1,
        ),
    ],
    ids=["prompts", "responses", "one minibatch", "microbatches too small for a prompt"],
)
def test_rows_stay_together_where_a_microbatch_can_have_all_of_a_prompt(changes, together):
    config = dataclasses.replace(GROUPED, **changes)
    assert config.together == together
    asked = []

    def grouped(group):
        asked.append(tuple(group))
        return built(LLAMA)

    make_update(dataclasses.replace(built(LLAMA), grouped=grouped), None, config)
    assert set(asked) == {(together, NEW)}


@pytest.mark.parametrize(
    "changes",
    [{"samples": 1, "prompts": 16}, {"optim": Optim(lr=1.0, rows=2), "value_optim": Optim(lr=1.0, rows=2)}],
    ids=["one response", "half of a prompt"],
)
def test_prompts_that_cannot_stay_whole_are_refused(changes):
    with pytest.raises(ValueError, match=r"shuffle='prompts' keeps the \d responses .* multiple of .* = \d"):
        dataclasses.replace(GROUPED, **changes)
