"""Tunix's iterations of reinforcement learning: GRPO and PPO on one cluster in this process."""

# pyright: reportMissingImports=false

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from flax import nnx
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.ppo.ppo_learner import PPOConfig, PPOLearner
from tunix.rl.rl_cluster import ClusterConfig, RLCluster, RLTrainingConfig, Role
from tunix.rl.rollout.base_rollout import RolloutConfig

from benchmarks.peers import inputs
from benchmarks.peers.protocol import Gate
from benchmarks.peers.tunix_parts import VERSIONS, Numbers, Scores, adam, llama, parameters, turns

NEVER = 1_000_000_000


def _cluster(task: dict[str, Any], training: dict[str, Any], **models: nnx.Module) -> RLCluster:
    """All models on this machine, and the policy that learns the one that writes, without a copy."""
    length, new = task["prompt_length"], task["new_tokens"]
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    config = ClusterConfig(
        role_to_mesh=dict.fromkeys(Role, mesh),
        rollout_engine="vanilla",
        training_config=RLTrainingConfig(
            actor_optimizer=adam(task), eval_every_n_steps=NEVER, max_steps=NEVER, **training
        ),
        rollout_config=RolloutConfig(
            max_tokens_to_generate=new,
            max_prompt_length=length,
            kv_cache_size=length + new,  # what is not used is computed all the same
            temperature=1.0,
            top_p=1.0,
        ),
    )
    tokenizer = Numbers(task["model"]["vocab"])
    return RLCluster(actor=llama(task), reference=llama(task), tokenizer=tokenizer, cluster_config=config, **models)


def _prompts(task: dict[str, Any]) -> list[dict[str, np.ndarray]]:
    ids = inputs.tokens(task["model"]["vocab"], task["prompts"], task["prompt_length"]).tolist()
    return [{"prompts": np.array([inputs.words(row) for row in ids])}]


def _different(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
    return inputs.different_words(completions)


def grpo(task: dict[str, Any], gate: Gate) -> None:
    cluster = _cluster(task, {"mini_batch_size": task["prompts"], "train_micro_batch_size": task["prompts"]})
    config = GRPOConfig(num_generations=task["samples"], num_iterations=1, beta=0.04, kl_loss_mode="low_var_kl")
    learner = GRPOLearner(cluster, config, reward_fns=_different)
    policy = cluster.actor_trainer.model
    gate.describe(parameters(policy), VERSIONS)
    learner.train(turns(gate, _prompts(task), policy))


def ppo(task: dict[str, Any], gate: Gate) -> None:
    """Every minibatch is written just before it is learned: Tunix rolls out a minibatch at a time."""
    sizes = dict.fromkeys(("mini_batch_size", "train_micro_batch_size"), task["rows"])
    scorers = {"critic": llama(task, Scores, seed=1), "reward": llama(task, Scores, seed=2)}
    cluster = _cluster(task, {"critic_optimizer": adam(task), **sizes}, **scorers)
    learner = PPOLearner(cluster, PPOConfig(num_iterations=1, beta=0.05, gae_lambda=0.95))
    policy, critic = cluster.actor_trainer.model, cluster.critic_trainer.model
    gate.describe(parameters(policy), VERSIONS)
    learner.train(turns(gate, _prompts(task), policy, critic))
