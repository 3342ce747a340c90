"""The workloads: each builds its state and inputs, and gives the compiled programs of one step by phase."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.compiled import compile_function, compile_step
from rlhf_jax.config import PPO, MeshConfig, ModelConfig, Optim
from rlhf_jax.loops.rlhf import make_update
from rlhf_jax.losses.reward import comparison_loss
from rlhf_jax.losses.sft import sft_loss
from rlhf_jax.models import build_model
from rlhf_jax.rollout.generate import generate
from rlhf_jax.rollout.sampling import row_keys
from rlhf_jax.rollout.score import make_trajectory
from rlhf_jax.sharding import make_mesh, place
from rlhf_jax.train import init_state, make_step
from rlhf_jax.train.optimizer import make_optimizer
from rlhf_jax.train.ppo import start_ppo
from rlhf_jax.types import PreferenceBatch, TokenBatch

SIZES = {
    "S": ModelConfig(vocab=4096, width=256, layers=4, heads=4, kv_heads=2, mlp=1024, max_length=512),
    "M": ModelConfig(vocab=16_384, width=512, layers=8, heads=8, kv_heads=4, mlp=1408, max_length=512),
}
OPTIM = Optim(lr=1e-4, steps=1000, rows=8)
PROMPTS, PROMPT_LENGTH, NEW_TOKENS = 16, 64, 128


@dataclasses.dataclass(frozen=True)
class Workload:
    """`phases` run in order and pass one dict of values along; `unit` says what `amount` of one whole step counts."""

    unit: str
    amount: int
    values: dict[str, Any]
    phases: dict[str, Callable[[dict[str, Any]], dict[str, Any]]]


def token_batch(config: ModelConfig, rows: int, length: int, seed: int = 0) -> TokenBatch:
    """Random tokens without padding, all but the first to be learned."""
    tokens = np.random.default_rng(seed).integers(0, config.vocab, (rows, length), dtype=np.int32)
    columns = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
    arrays: Any = (tokens, columns, np.ones_like(columns), columns > 0)
    return TokenBatch(*(jnp.asarray(array) for array in arrays))


def sft(config: ModelConfig) -> Workload:
    """One update on 8 rows of 256 tokens."""
    model, tx, mesh = build_model(config), make_optimizer(OPTIM), make_mesh(MeshConfig())
    step = compile_step(make_step(partial(sft_loss, logprobs=model.logprobs), tx), mesh)
    values = {"state": place(init_state(model.init(jax.random.key(0)), tx), mesh), "batch": token_batch(config, 8, 256)}

    def update(v):
        return v | {"state": step(v["state"], v["batch"])[0]}

    return Workload("tokens/s", 8 * 256, values, {"update": update})


def reward(config: ModelConfig) -> Workload:
    """One update on 8 pairs of 256 tokens each side."""
    config = dataclasses.replace(config, head="scalar")
    model, tx, mesh = build_model(config), make_optimizer(OPTIM), make_mesh(MeshConfig())
    step = compile_step(make_step(partial(comparison_loss, scores=model.scores), tx), mesh)
    chosen, rejected = (token_batch(config, 8, 256, seed) for seed in (0, 1))
    batch = PreferenceBatch(chosen, rejected, margin=jnp.zeros(8), weight=jnp.ones(8))
    values = {"state": place(init_state(model.init(jax.random.key(0)), tx), mesh), "batch": batch}

    def update(v):
        return v | {"state": step(v["state"], v["batch"])[0]}

    return Workload("pairs/s", 8, values, {"update": update})


def generation(config: ModelConfig) -> Workload:
    """128 new tokens to each of 16 prompts of 64; no stop token, so that every row is written to its end."""
    model, mesh = build_model(config), make_mesh(MeshConfig())
    write = compile_function(partial(generate, model=model, new_tokens=NEW_TOKENS), mesh)
    values = _prompts(config) | {"params": place(model.init(jax.random.key(0)), mesh)}

    def rollout(v):
        return v | {"rollout": write(v["params"], v["prompts"], v["keys"], jnp.float32(1.0))}

    return Workload("new tokens/s", PROMPTS * NEW_TOKENS, values, {"rollout": rollout})


def ppo(config: ModelConfig) -> Workload:
    """One iteration on 16 samples (64 + 128 tokens): own value network and reward model of the policy's size, 1 epoch of 2 minibatches."""
    optim = Optim(lr=1e-5, rows=8)
    recipe = PPO(
        optim=optim, value_optim=optim, iterations=100, prompts=PROMPTS, new_tokens=NEW_TOKENS, missing_stop_score=-1.0
    )
    policy, scalar = build_model(config), build_model(dataclasses.replace(config, head="scalar"))
    mesh = make_mesh(MeshConfig())
    write = compile_function(partial(generate, model=policy, new_tokens=NEW_TOKENS), mesh)
    score = compile_function(scalar.scores, mesh)
    judge = compile_function(partial(make_trajectory, policy=policy, values=scalar.values, config=recipe), mesh)
    learn = compile_step(make_update(policy, scalar, recipe), mesh)
    tx = make_optimizer(recipe.with_steps(optim))
    reference, rewarder = policy.init(jax.random.key(0)), scalar.init(jax.random.key(1))
    state = start_ppo(init_state(reference, tx), init_state(rewarder, tx), jnp.float32(0.05))
    roles = place({"state": state, "reference": reference, "rewarder": rewarder}, mesh)
    values = _prompts(config) | roles

    def rollout(v):
        return v | {"rollout": write(v["state"].policy.params, v["prompts"], v["keys"], jnp.float32(1.0))}

    def scoring(v):
        scores = score(v["rewarder"], v["rollout"].batch)
        state = v["state"]
        trajectory, seen = judge(
            state.policy.params, v["reference"], state.value.params, v["rollout"], scores, state.kl_coef
        )
        return v | {"trajectory": trajectory, "kl": seen["kl_sequence"]}

    def update(v):
        return v | {"state": learn(v["state"], v["trajectory"], v["kl"], jax.random.key(2))[0]}

    return Workload("samples/s", PROMPTS, values, {"rollout": rollout, "score": scoring, "update": update})


def _prompts(config: ModelConfig) -> dict[str, Any]:
    batch = token_batch(config, PROMPTS, PROMPT_LENGTH)
    places = jnp.arange(PROMPTS)
    return {
        "prompts": dataclasses.replace(batch, loss_mask=jnp.zeros_like(batch.loss_mask)),
        "keys": row_keys(jax.random.key(3), 0, places, jnp.zeros_like(places)),
    }


WORKLOADS: dict[str, Callable[[ModelConfig], Workload]] = {
    "sft": sft,
    "reward": reward,
    "generation": generation,
    "ppo": ppo,
}
