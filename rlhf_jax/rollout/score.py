"""From a rollout and its scores to a trajectory: reference, values, KL, rewards, advantages over the whole batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rlhf_jax.losses.advantages import gae
from rlhf_jax.losses.kl import k1
from rlhf_jax.losses.ppo import explained_variance, token_rewards
from rlhf_jax.masking import masked_mean, whiten
from rlhf_jax.models.api import Model, TokenStats
from rlhf_jax.models.output import token_kl, token_stats
from rlhf_jax.types import Params, Rollout, TokenBatch, Trajectory

Metrics = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class Scoring:
    """The numbers of PPO that turn scores into advantages."""

    gamma: float
    lam: float
    whiten_rewards: bool
    whiten_advantages: bool
    missing_stop_score: float | None


def compare_policies(
    policy_params: Params, reference_params: Params, rollout: Rollout, *, policy: Model
) -> tuple[TokenStats, TokenStats, Float[Array, "B T"]]:
    """(stats under the policy, stats under the reference, exact KL(policy || reference) per token), at the rollout's temperature."""
    batch, chunk = rollout.batch, policy.config.logit_chunk

    def unembed(params: Params):
        return lambda x: policy.unembed(params, x)

    first, second = unembed(policy_params), unembed(reference_params)
    hidden, ref_hidden = policy.hidden(policy_params, batch), policy.hidden(reference_params, batch)
    stats = token_stats(first, hidden, batch, rollout.temperature, chunk=chunk)
    ref_stats = token_stats(second, ref_hidden, batch, rollout.temperature, chunk=chunk)
    kl = token_kl(first, hidden, second, ref_hidden, batch, rollout.temperature, chunk=chunk)
    return stats, ref_stats, kl


def describe_rows(
    policy_params: Params, reference_params: Params, rollout: Rollout, *, policy: Model
) -> dict[str, Float[Array, "B"]]:
    """Per response: exact KL to the reference, log-probability under each, entropy (all in nats, summed), and length in tokens."""
    stats, ref_stats, kl = compare_policies(policy_params, reference_params, rollout, policy=policy)
    mask = rollout.batch.loss_mask

    def total(x):
        return jnp.sum(jnp.where(mask, x, 0.0), axis=1)

    return {
        "kl": total(kl),
        "logprob": total(stats.logprobs),
        "ref_logprob": total(ref_stats.logprobs),
        "entropy": total(stats.entropy),
        "length": jnp.sum(mask, axis=1, dtype=jnp.float32),
    }


def final_scores(scores: Float[Array, "B"], rollout: Rollout, missing_stop_score: float | None) -> Float[Array, "B"]:
    """The scores, with those of responses without a stop token replaced by a fixed one (Stiennon et al. 2020: -1)."""
    if missing_stop_score is None:
        return scores
    return jnp.where(rollout.finished, scores, missing_stop_score)


def make_trajectory(
    policy_params: Params,
    reference_params: Params,
    value_params: Params,
    rollout: Rollout,
    scores: Float[Array, "B"],
    kl_coef: Float[Array, ""],
    *,
    policy: Model,
    values: Callable[[Params, TokenBatch], jax.Array],
    config: Scoring,
) -> tuple[Trajectory, Metrics]:
    """Everything PPO learns from, and what one wants to see of a rollout.

    Old log-probs are recomputed by the training graph at the rollout's temperature, so that the first ratio is 1. `kl` is exact over the
    vocabulary; `kl_sequence` sums it over the response; `kl_sampled` is the estimate that enters the reward.
    """
    batch, mask = rollout.batch, rollout.batch.loss_mask
    old, ref, kl = compare_policies(policy_params, reference_params, rollout, policy=policy)
    predictions = jnp.where(mask, values(value_params, batch), 0.0)

    scores = final_scores(scores, rollout, config.missing_stop_score)
    rewards = token_rewards(scores, old.logprobs, ref.logprobs, mask, kl_coef=kl_coef)
    learned_from = whiten(rewards, mask, shift_mean=False) if config.whiten_rewards else rewards
    advantages, returns = gae(learned_from, predictions, mask, gamma=config.gamma, lam=config.lam)
    metrics = {
        "score": jnp.mean(scores),
        "score_std": jnp.std(scores),
        "reward": jnp.mean(jnp.sum(rewards, axis=1)),
        "kl": masked_mean(kl, mask),
        "kl_sequence": jnp.mean(jnp.sum(jnp.where(mask, kl, 0.0), axis=1)),
        "kl_sampled": jnp.mean(jnp.sum(jnp.where(mask, k1(old.logprobs, ref.logprobs), 0.0), axis=1)),
        "rollout_entropy": masked_mean(old.entropy, mask),
        "length": jnp.mean(jnp.sum(mask, axis=1, dtype=jnp.float32)),
        "finished": jnp.mean(rollout.finished.astype(jnp.float32)),
        "explained_variance": explained_variance(predictions, returns, mask),
        "value": masked_mean(predictions, mask),
        "sampler_gap": jnp.max(jnp.where(mask, jnp.abs(rollout.logprobs - old.logprobs), 0.0)),
    }
    trajectory = Trajectory(
        rollout=rollout,
        old_logprobs=old.logprobs,
        ref_logprobs=ref.logprobs,
        values=predictions,
        rewards=rewards,
        advantages=whiten(advantages, mask) if config.whiten_advantages else advantages,
        returns=returns,
        scores=scores,
    )
    return trajectory, metrics
