"""Ahead of time: the programs of an experiment, traced from shapes alone, for any mesh."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rlhf_jax.compiled import compile_function, compile_step
from rlhf_jax.config import Experiment, ModelConfig, Optim
from rlhf_jax.loops.classify import make_class_step
from rlhf_jax.loops.ilql import make_ilql_step
from rlhf_jax.loops.preference import make_preference_step
from rlhf_jax.loops.reward import make_reward_step
from rlhf_jax.loops.rlhf import make_update, reader_of
from rlhf_jax.loops.sft import make_sft_step
from rlhf_jax.models import Model, build_model
from rlhf_jax.models.critics import build_critics
from rlhf_jax.models.lora import with_lora
from rlhf_jax.rollout.generate import Ending, responses
from rlhf_jax.rollout.score import read_rollout
from rlhf_jax.sharding import batch_shapes, tree_shardings
from rlhf_jax.train import TrainState, init_state
from rlhf_jax.train.critics import start_critics
from rlhf_jax.train.optimizer import make_optimizer
from rlhf_jax.train.ppo import start_ppo
from rlhf_jax.types import (
    LabelBatch,
    Moments,
    PreferenceBatch,
    ReferencedLabels,
    ReferencedPairs,
    RewardedBatch,
    Rollout,
    TokenBatch,
    TokenWeights,
    Trajectory,
)


def lower_updates(experiment: Experiment, mesh: Mesh) -> dict[str, Any]:
    """Stage -> lowered update of the stages the experiment has; as `trace_updates`."""
    return {stage: traced.lower() for stage, traced in trace_updates(experiment, mesh).items()}


def trace_updates(experiment: Experiment, mesh: Mesh) -> dict[str, Any]:
    """Stage -> traced update (SFT, reward, preference, ILQL, classify, PPO) of the stages the experiment has; no weight is allocated.

    A reward stage is traced for comparisons.
    """
    length = experiment.text.length
    policy = trained_model(experiment, dataclasses.replace(experiment.policy, head="lm"))
    traced: dict[str, Any] = {}
    if experiment.sft is not None:
        optim = experiment.sft.optim
        _, update = make_sft_step(policy, optim)
        batch = batch_shapes(token_shapes(optim.rows, experiment.sft.pack_length or length), mesh)
        traced["sft"] = compile_step(update, mesh).trace(state_shapes(policy, optim, mesh), batch)
    if experiment.reward is not None:
        optim = experiment.reward.optim
        fresh = experiment.reward.init == "random"
        model = build_model(experiment.reward_shape) if fresh else trained_model(experiment, experiment.reward_shape)
        _, update = make_reward_step(model, optim)
        side, row = token_shapes(optim.rows, length), _shape((optim.rows,), jnp.float32)
        batch = batch_shapes(PreferenceBatch(side, side, row, row), mesh)
        traced["reward"] = compile_step(update, mesh).trace(state_shapes(model, optim, mesh), batch)
    if experiment.preference is not None:
        optim = experiment.preference.optim
        _, update = make_preference_step(policy, experiment.preference)
        side, row = token_shapes(optim.rows, length), _shape((optim.rows,), jnp.float32)
        if experiment.preference.objective == "kto":
            batch: Any = ReferencedLabels(LabelBatch(side, row, row), row, _shape((), jnp.float32))
        else:
            batch = ReferencedPairs(PreferenceBatch(side, side, row, row), row, row)
        batch = batch_shapes(batch, mesh)
        traced["preference"] = compile_step(update, mesh).trace(state_shapes(policy, optim, mesh), batch)
    if experiment.ilql is not None:
        optim = experiment.ilql.optim
        critics = build_critics(experiment.policy)
        _, update = make_ilql_step(critics, experiment.ilql)
        state = jax.eval_shape(lambda key: start_critics(critics.init(key), make_optimizer(optim)), jax.random.key(0))
        batch = RewardedBatch(token_shapes(optim.rows, length), _shape((optim.rows,), jnp.float32))
        traced["ilql"] = compile_step(update, mesh).trace(on_mesh(state, mesh), batch_shapes(batch, mesh))
    if experiment.classify is not None and experiment.classifier_shape is not None:
        optim, model = experiment.classify.optim, trained_model(experiment, experiment.classifier_shape)
        _, update = make_class_step(model, optim)
        row = _shape((optim.rows,), jnp.float32)
        batch = batch_shapes(LabelBatch(token_shapes(optim.rows, length), row, row), mesh)
        traced["classify"] = compile_step(update, mesh).trace(state_shapes(model, optim, mesh), batch)
    if experiment.ppo is not None:
        traced["ppo"] = trace_ppo(experiment, mesh)
    return traced


def lower_ppo(experiment: Experiment, mesh: Mesh) -> Any:
    """The lowered update of one PPO iteration."""
    return trace_ppo(experiment, mesh).lower()


def ppo_models(experiment: Experiment) -> tuple[Model, Model | None]:
    """The policy and the value model that PPO trains; no value model where the policy has its head, or none is used."""
    config = experiment.ppo
    assert config is not None, "called for experiments with a PPO stage"
    shared = config.baseline == "value" and config.value_optim is None
    policy = trained_model(experiment, dataclasses.replace(experiment.policy, head="lm+scalar" if shared else "lm"))
    if config.value_optim is None:
        return policy, None
    from_reward = config.value_init == "reward" and experiment.reward is not None
    shape = experiment.reward_shape if from_reward else experiment.policy
    return policy, trained_model(experiment, dataclasses.replace(shape, head="scalar"))


def trace_ppo(experiment: Experiment, mesh: Mesh) -> Any:
    """The traced update of one PPO iteration."""
    config = experiment.ppo
    assert config is not None
    policy, value = ppo_models(experiment)
    value_state = None
    if config.value_optim is not None:
        assert value is not None
        value_state = state_shapes(value, config.with_steps(config.value_optim), mesh)
    number = _shape((), jnp.float32)
    policy_state = state_shapes(policy, config.policy_optim, mesh, ema=config.ema is not None)
    state = on_mesh(jax.eval_shape(start_ppo, policy_state, value_state, number), mesh)
    rollout = rollout_shapes(experiment)
    per_token, per_row = rollout.logprobs, _shape((rollout.logprobs.shape[0],), jnp.float32)
    trajectory = Trajectory(
        rollout=rollout,
        old_logprobs=per_token,
        ref_logprobs=per_token,
        values=per_token,
        rewards=per_token,
        advantages=per_token,
        returns=per_token,
        scores=per_row,
        weights=TokenWeights(per_token, per_row),
        loss_kl_coef=number,
        average=number,
        moments=Moments(number, number, number),
    )
    demonstrations = None
    if config.ptx_rows is not None:
        one = token_shapes(config.ptx_rows, experiment.text.length)
        count = config.epochs * config.minibatches
        demonstrations = batch_shapes(jax.tree.map(lambda x: _shape((count, *x.shape), x.dtype), one), mesh, axis=1)
    update = compile_step(make_update(policy, value, config), mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    args = (state, batch_shapes(trajectory, mesh), number, key, demonstrations)
    reference = on_mesh(jax.eval_shape(policy.init, key), mesh) if config.kl_estimator == "exact" else None
    return update.trace(*args, reference)


def trace_rollout(experiment: Experiment, mesh: Mesh) -> dict[str, Any]:
    """The other programs of a PPO iteration that read a model: responses (at most so many turns of a loop), the reward model's scores, and
    what policy, reference and critic say of the responses."""
    config = experiment.ppo
    assert config is not None
    policy, value = ppo_models(experiment)
    key, number = jax.eval_shape(lambda: jax.random.key(0)), _shape((), jnp.float32)
    params = on_mesh(jax.eval_shape(policy.init, key), mesh)
    rows = config.prompts * config.samples
    keys = batch_shapes(jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows)), mesh)
    asked = batch_shapes(token_shapes(config.prompts, experiment.text.prompt_length), mesh)
    respond = compile_function(responses(policy, Ending(0), config.new_tokens, slots=config.slots), mesh)
    traced = {"ppo/responses": respond.trace(params, asked, keys, number)}
    rollout = batch_shapes(rollout_shapes(experiment), mesh)
    if experiment.reward is not None:
        reward = build_model(experiment.reward_shape)
        reward_params = on_mesh(jax.eval_shape(reward.init, key), mesh)
        scores = reward.in_groups(config.samples, config.new_tokens).scores
        traced["ppo/reward"] = compile_function(scores, mesh).trace(reward_params, rollout.batch)
    critic = reader_of(value or policy, config).values if config.baseline == "value" else None
    value_params = params if value is None else on_mesh(jax.eval_shape(value.init, key), mesh)
    read = partial(read_rollout, policy=reader_of(policy, config), values=critic, config=config)
    read = compile_function(read, mesh)
    traced["ppo/scoring"] = read.trace(params, params, value_params, rollout)
    return traced


def rollout_shapes(experiment: Experiment) -> Rollout:
    """What sampling gives in one PPO iteration, as shapes."""
    config = experiment.ppo
    assert config is not None
    rows, length = config.prompts * config.samples, experiment.text.prompt_length + config.new_tokens
    per_token = _shape((rows, length), jnp.float32)
    batch, finished, temperature = token_shapes(rows, length), _shape((rows,), jnp.bool), _shape((), jnp.float32)
    return Rollout(batch, per_token, finished, temperature, (experiment.text.prompt_length, config.new_tokens))


def trained_model(experiment: Experiment, shape: ModelConfig) -> Model:
    """The model of this shape as the experiment's stages train it: whole, or adapters of it."""
    model = build_model(shape)
    return model if experiment.lora is None else with_lora(model, experiment.lora)


def state_shapes(model: Model, optim: Optim, mesh: Mesh, *, ema: bool = False) -> TrainState:
    """The training state of a model as shapes with the places where its parts live."""
    tx = make_optimizer(optim)
    return on_mesh(jax.eval_shape(lambda key: init_state(model.init(key), tx, ema=ema), jax.random.key(0)), mesh)


def token_shapes(rows: int, length: int) -> TokenBatch:
    """A token batch as shapes."""
    numbers, truth = _shape((rows, length), jnp.int32), _shape((rows, length), jnp.bool)
    return TokenBatch(numbers, numbers, numbers, truth)


def on_mesh(tree: Any, mesh: Mesh) -> Any:
    """Shapes of parameters or states with their shardings."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, tree_shardings(tree, mesh)
    )


def _shape(shape: tuple[int, ...], dtype: Any) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)
