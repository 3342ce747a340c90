"""Ahead of time: the updates of an experiment as lowered programs, from shapes alone, on any mesh."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from rlhf_jax.config import Experiment, ModelConfig, Optim
from rlhf_jax.loops.classify import make_class_step
from rlhf_jax.loops.ilql import make_ilql_step
from rlhf_jax.loops.preference import make_preference_step
from rlhf_jax.loops.reward import make_reward_step
from rlhf_jax.loops.rlhf import make_update
from rlhf_jax.loops.sft import make_sft_step
from rlhf_jax.models import Model, build_model
from rlhf_jax.models.critics import build_critics
from rlhf_jax.models.lora import with_lora
from rlhf_jax.sharding import batch_shardings, compile_step, tree_shardings
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
    """Stage -> lowered update (SFT, reward, preference, ILQL, classify, PPO) of the stages the experiment has; no weight is allocated.

    A reward stage is lowered for comparisons.
    """
    length = experiment.text.length
    policy = trained_model(experiment, dataclasses.replace(experiment.policy, head="lm"))
    lowered: dict[str, Any] = {}
    if experiment.sft is not None:
        optim = experiment.sft.optim
        _, update = make_sft_step(policy, optim)
        batch = on_mesh_rows(token_shapes(optim.rows, experiment.sft.pack_length or length), mesh)
        lowered["sft"] = compile_step(update, mesh).lower(state_shapes(policy, optim, mesh), batch)
    if experiment.reward is not None:
        optim = experiment.reward.optim
        fresh = experiment.reward.init == "random"
        model = build_model(experiment.reward_shape) if fresh else trained_model(experiment, experiment.reward_shape)
        _, update = make_reward_step(model, optim)
        side, row = token_shapes(optim.rows, length), _shape((optim.rows,), jnp.float32)
        batch = on_mesh_rows(PreferenceBatch(side, side, row, row), mesh)
        lowered["reward"] = compile_step(update, mesh).lower(state_shapes(model, optim, mesh), batch)
    if experiment.preference is not None:
        optim = experiment.preference.optim
        _, update = make_preference_step(policy, experiment.preference)
        side, row = token_shapes(optim.rows, length), _shape((optim.rows,), jnp.float32)
        if experiment.preference.objective == "kto":
            batch: Any = ReferencedLabels(LabelBatch(side, row, row), row, _shape((), jnp.float32))
        else:
            batch = ReferencedPairs(PreferenceBatch(side, side, row, row), row, row)
        batch = on_mesh_rows(batch, mesh)
        lowered["preference"] = compile_step(update, mesh).lower(state_shapes(policy, optim, mesh), batch)
    if experiment.ilql is not None:
        optim = experiment.ilql.optim
        critics = build_critics(experiment.policy)
        _, update = make_ilql_step(critics, experiment.ilql)
        state = jax.eval_shape(lambda key: start_critics(critics.init(key), make_optimizer(optim)), jax.random.key(0))
        batch = RewardedBatch(token_shapes(optim.rows, length), _shape((optim.rows,), jnp.float32))
        lowered["ilql"] = compile_step(update, mesh).lower(on_mesh(state, mesh), on_mesh_rows(batch, mesh))
    if experiment.classify is not None and experiment.classifier_shape is not None:
        optim, model = experiment.classify.optim, trained_model(experiment, experiment.classifier_shape)
        _, update = make_class_step(model, optim)
        row = _shape((optim.rows,), jnp.float32)
        batch = on_mesh_rows(LabelBatch(token_shapes(optim.rows, length), row, row), mesh)
        lowered["classify"] = compile_step(update, mesh).lower(state_shapes(model, optim, mesh), batch)
    if experiment.ppo is not None:
        lowered["ppo"] = lower_ppo(experiment, mesh)
    return lowered


def lower_ppo(experiment: Experiment, mesh: Mesh) -> Any:
    """The lowered update of one PPO iteration."""
    config = experiment.ppo
    assert config is not None
    shared = config.baseline == "value" and config.value_optim is None
    policy = trained_model(experiment, dataclasses.replace(experiment.policy, head="lm+scalar" if shared else "lm"))
    from_reward = config.value_init == "reward" and experiment.reward is not None
    value_shape = experiment.reward_shape if from_reward else experiment.policy
    value, value_state = None, None
    if config.value_optim is not None:
        value = trained_model(experiment, dataclasses.replace(value_shape, head="scalar"))
        value_state = state_shapes(value, config.with_steps(config.value_optim), mesh)
    number = _shape((), jnp.float32)
    policy_state = state_shapes(policy, config.policy_optim, mesh, ema=config.ema is not None)
    state = on_mesh(jax.eval_shape(start_ppo, policy_state, value_state, number), mesh)
    rows, length = config.prompts * config.samples, experiment.text.prompt_length + config.new_tokens
    per_token, per_row = _shape((rows, length), jnp.float32), _shape((rows,), jnp.float32)
    trajectory = Trajectory(
        rollout=Rollout(token_shapes(rows, length), per_token, _shape((rows,), jnp.bool), _shape((), jnp.float32)),
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
        demonstrations = on_mesh_rows(jax.tree.map(lambda x: _shape((count, *x.shape), x.dtype), one), mesh, axis=1)
    update = compile_step(make_update(policy, value, config), mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    args = (state, on_mesh_rows(trajectory, mesh), number, key, demonstrations)
    reference = on_mesh(jax.eval_shape(policy.init, key), mesh) if config.kl_estimator == "exact" else None
    return update.lower(*args, reference)


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


def on_mesh_rows(tree: Any, mesh: Mesh, *, axis: int = 0) -> Any:
    """Shapes of batches with their rows, along `axis`, split over the mesh."""
    places = batch_shardings(tree, mesh, axis=axis)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, places)


def _shape(shape: tuple[int, ...], dtype: Any) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)
