"""Iterations of reinforcement learning: PPO with a value network, GRPO without one."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.workloads.common import (
    SHAPE,
    Shape,
    Values,
    Workload,
    decode_bytes,
    fastest_mesh,
    forward_flops,
    prompts,
)
from benchmarks.workloads.sampling import writer
from rlhf_jax.compiled import compile_function, compile_step
from rlhf_jax.config import PPO, MeshConfig, ModelConfig, Optim
from rlhf_jax.loops.rlhf import make_update, reader_of
from rlhf_jax.mesh import make_mesh
from rlhf_jax.models import build_model
from rlhf_jax.rollout.score import judge_rollout, read_rollout
from rlhf_jax.sharding import initialise, place
from rlhf_jax.train import init_state
from rlhf_jax.train.optimizer import make_optimizer
from rlhf_jax.train.ppo import start_ppo

OPTIM = Optim(lr=1e-5, rows=SHAPE.rows)
NEW_TOKENS, PROMPT_LENGTH = SHAPE.new_tokens, SHAPE.prompt_length


def ppo(config: ModelConfig, shape: Shape = SHAPE) -> Workload:
    """One iteration on 16 samples (64 + 128 tokens): own value network and reward model of the policy's size, 1 epoch of 2 minibatches."""
    return _with_critic(config, shape, epochs=1)


def ppo_epochs(config: ModelConfig) -> Workload:
    """The same on 64 samples, 4 epochs of 8 minibatches."""
    return _with_critic(config, dataclasses.replace(SHAPE, prompts=64), epochs=4)


def reading_flops(config: ModelConfig, shape: Shape, together: int | None = None) -> float:
    """Operations of reading all responses once, a prompt once for so many of them that stand together; None: for all of its samples."""
    count = shape.prompts * shape.samples
    whole, again = shape.prompt_length + shape.new_tokens, count - count // (together or shape.samples)
    responses = forward_flops(config, np.full(count, whole), np.full(count, shape.new_tokens))
    return responses - forward_flops(config, np.full(again, shape.prompt_length), np.zeros(again))


def _with_critic(config: ModelConfig, shape: Shape, epochs: int) -> Workload:
    optim = dataclasses.replace(OPTIM, rows=shape.rows, microbatches=shape.microbatches)
    sampled = config.dtype == "float32"  # then the log-probs of the sampler are those of the update
    recipe = PPO(
        optim=optim,
        value_optim=optim,
        iterations=100,
        prompts=shape.prompts,
        samples=shape.samples,
        new_tokens=shape.new_tokens,
        epochs=epochs,
        missing_stop_score=-1.0,
        old_logprobs="sampled" if sampled else "scored",
        shuffle="prompts" if shape.samples > 1 else "responses",
    )
    policy, scalar = build_model(config), build_model(dataclasses.replace(config, head="scalar"))
    # One device: where minibatches have few rows, adding up gradients takes longer than a device for each core gains in sampling.
    mesh, tx = make_mesh(MeshConfig()), make_optimizer(recipe.policy_optim)
    write, prompts_read = writer(policy, mesh, shape.new_tokens)
    score = compile_function(scalar.in_groups(shape.samples, shape.new_tokens).scores, mesh)
    policy_reader, critic = (reader_of(model, recipe) for model in (policy, scalar))
    read = compile_function(partial(read_rollout, policy=policy_reader, values=critic.values, config=recipe), mesh)
    judge = compile_function(partial(judge_rollout, config=recipe), mesh)
    learn = compile_step(make_update(policy, scalar, recipe), mesh)
    reference, rewarder = (initialise(m.init, jax.random.key(n), mesh=mesh) for n, m in enumerate((policy, scalar)))
    state = start_ppo(init_state(reference, tx), init_state(rewarder, tx), jnp.float32(0.05))
    roles = place({"state": state, "reference": reference, "rewarder": rewarder}, mesh)

    def rollout(v: Values) -> Values:
        return v | {"rollout": write(v["state"].policy.params, v)}

    def scoring(v: Values) -> Values:
        state, rollout = v["state"], v["rollout"]
        reading = read(state.policy.params, v["reference"], state.value.params, rollout)
        trajectory, seen = judge(reading, rollout, score(v["rewarder"], rollout.batch), state.kl_coef)
        return v | {"trajectory": trajectory, "kl": seen["kl_sequence"]}

    def update(v: Values) -> Values:
        return v | {"state": learn(v["state"], v["trajectory"], v["kl"], jax.random.key(2))[0]}

    phases = {"rollout": rollout, "score": scoring, "update": update}
    count, together = shape.prompts * shape.samples, recipe.together
    # Written by the policy, scored by it where it must be, read by the reference, the value network and the reward model; epochs of two.
    flops = reading_flops(config, shape) + reading_flops(scalar.config, shape)
    flops += (2 - sampled + 3 * recipe.epochs) * reading_flops(config, shape, together)
    flops += (1 + 3 * recipe.epochs) * reading_flops(scalar.config, shape, together)
    moved = decode_bytes(config, count, shape.prompt_length, shape.new_tokens, shape.samples)
    asked = prompts(config, mesh, shape.prompts, shape.samples, shape.prompt_length)
    return Workload(
        "samples/s",
        count,
        asked | roles,
        phases,
        flops,
        moved,
        lambda v: prompts_read(v["state"].policy.params, v),
    )


def grpo(config: ModelConfig) -> Workload:
    """One iteration on 4 responses to each of 4 prompts (64 + 128 tokens), rewarded by a Python function; 1 update, exact log-ratios to a
    reference in the loss (k3)."""
    optim = Optim(lr=1e-5, rows=16)
    recipe = PPO(
        optim=optim,
        value_optim=None,
        iterations=100,
        prompts=4,
        samples=4,
        new_tokens=NEW_TOKENS,
        baseline="group_normalised",
        credit="sequence",
        normaliser="sequence",
        whiten_advantages=False,
        kl_in="loss",
        kl_estimator="k3",
        kl_coef=0.04,
        old_logprobs="sampled",
    )
    mesh, policy, tx = fastest_mesh(config), build_model(config), make_optimizer(recipe.policy_optim)
    write, prompts_read = writer(policy, mesh, NEW_TOKENS)
    read = partial(read_rollout, policy=reader_of(policy, recipe), values=None, config=recipe)
    read = compile_function(read, mesh)
    judge = compile_function(partial(judge_rollout, config=recipe), mesh)
    learn = compile_step(make_update(policy, None, recipe), mesh)
    reference = initialise(policy.init, jax.random.key(0), mesh=mesh)
    state = start_ppo(init_state(reference, tx), None, jnp.float32(recipe.kl_coef))
    roles = place({"state": state, "reference": reference}, mesh)

    def rollout(v: Values) -> Values:
        return v | {"rollout": write(v["state"].policy.params, v)}

    def scoring(v: Values) -> Values:
        state, rollout = v["state"], v["rollout"]
        reading = read(state.policy.params, v["reference"], None, rollout)
        tokens, mask = np.asarray(rollout.batch.tokens), np.asarray(rollout.batch.loss_mask)
        scores = np.array([len(set(row[own].tolist())) for row, own in zip(tokens, mask, strict=True)], np.float32)
        trajectory, seen = judge(reading, rollout, scores, state.kl_coef)
        return v | {"trajectory": trajectory, "kl": seen["kl_sequence"]}

    def update(v: Values) -> Values:
        return v | {"state": learn(v["state"], v["trajectory"], v["kl"], jax.random.key(2))[0]}

    values = prompts(config, mesh, recipe.prompts, recipe.samples) | roles
    phases = {"rollout": rollout, "score": scoring, "update": update}
    count = recipe.prompts * recipe.samples
    # Written, read by the reference, and one update.
    flops = 5 * reading_flops(config, dataclasses.replace(SHAPE, prompts=recipe.prompts, samples=recipe.samples))
    moved = decode_bytes(config, count, PROMPT_LENGTH, NEW_TOKENS, recipe.samples)
    return Workload(
        "samples/s",
        count,
        values,
        phases,
        flops,
        moved,
        lambda v: prompts_read(v["state"].policy.params, v),
    )
