"""From a rollout and its scores to a trajectory: reference, values, KL, rewards, advantages over the whole batch."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float

from rlhf_jax.config import PolicyGradient
from rlhf_jax.losses.advantages import (
    best_of_group,
    gae,
    group_normalised,
    leave_one_out,
    minus_batch_mean,
    minus_group_mean,
    minus_moving_average,
    over_tokens,
    preferred,
    rewards_to_go,
)
from rlhf_jax.losses.kl import k1
from rlhf_jax.losses.policy import only_finished, overlong_penalty, token_weights
from rlhf_jax.losses.ppo import explained_variance, token_rewards, value_steps
from rlhf_jax.losses.scores import in_unit, no_moments, with_batch
from rlhf_jax.masking import masked_mean, whiten
from rlhf_jax.models.api import Model, TokenStats
from rlhf_jax.models.output import compare_tokens
from rlhf_jax.rollout.refill import signal_share
from rlhf_jax.types import Moments, Params, Rollout, TokenBatch, Trajectory, pytree

Metrics = dict[str, Float[Array, ""]]


def compare_policies(
    policy_params: Params, reference_params: Params, rollout: Rollout, *, policy: Model
) -> tuple[TokenStats, TokenStats, Float[Array, "B T"]]:
    """(stats under the policy, stats under the reference, exact KL(policy || reference) per token), at the rollout's temperature."""
    batch, chunk = policy.decoded(rollout.batch), policy.config.logit_chunk
    first, second = (Partial(policy.unembed, params) for params in (policy_params, reference_params))
    hidden, ref_hidden = (policy.hidden(params, rollout.batch) for params in (policy_params, reference_params))
    return compare_tokens(first, hidden, second, ref_hidden, batch, rollout.temperature, chunk=chunk, last=rollout.last)


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


def token_kl_to(policy: Model) -> Callable[[Params, Params, Rollout], Float[Array, "B T"]]:
    """The function (params, reference, rollout) -> exact KL per token, for a KL term in the loss."""
    return lambda params, reference, rollout: compare_policies(params, reference, rollout, policy=policy)[2]


def final_scores(scores: Float[Array, "B"], rollout: Rollout, config: PolicyGradient) -> Float[Array, "B"]:
    """The scores, with what the config has for responses that do not end in time: a penalty, a fixed score (Stiennon et al. 2020: -1)."""
    if config.overlong_cache is not None:
        length = jnp.sum(rollout.batch.loss_mask, axis=1, dtype=jnp.float32)
        scores = scores + overlong_penalty(length, longest=config.new_tokens, cache=config.overlong_cache)
    if config.missing_stop_score is not None:
        scores = jnp.where(rollout.finished, scores, config.missing_stop_score)
    return scores


def advantages_of(
    rewards: Float[Array, "B T"],
    values: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    average: Float[Array, ""],
    log_ratio: Float[Array, "B"],
    beta: Float[Array, ""],
    *,
    config: PolicyGradient,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"], Float[Array, ""]]:
    """(advantages, value targets, moving average of the rewards per response) by the config's baseline and credit.

    Responses to one prompt stand side by side, `config.samples` of them; `log_ratio` is log(pi / ref) of each, `beta` the price of KL.
    """
    if config.baseline == "value":
        return (*gae(rewards, values, mask, gamma=config.gamma, lam=config.lam), average)
    totals = jnp.sum(jnp.where(mask, rewards, 0.0), axis=1)
    table = totals.reshape(-1, config.samples)
    match config.baseline:
        case "none":
            relative = table
        case "moving_average":
            relative, average = minus_moving_average(table, average, decay=config.decay)
        case "batch_mean":
            relative = minus_batch_mean(table)
        case "leave_one_out":
            relative = leave_one_out(table)
        case "group_mean":
            relative = minus_group_mean(table)
        case "group_normalised":
            relative = group_normalised(table, ddof=1)
        case "best":
            relative = best_of_group(table)
        case "preferred":
            relative = preferred(table, log_ratio.reshape(table.shape), beta=beta, labels=config.labels)
    relative = relative.reshape(-1)
    advantages = over_tokens(relative, mask)
    if config.credit == "token":
        to_go = rewards_to_go(rewards, mask, gamma=config.gamma)
        advantages = jnp.where(mask, to_go + (relative - totals)[:, None], 0.0)
    return advantages, jnp.zeros_like(advantages), average


@pytree
class Reading:
    """What the models say of the responses, whatever their scores will be: log-probs under policy and reference and KL per token in nats,
    values where there is a critic, and what one wants to see of it."""

    old: Float[Array, "B T"]
    ref: Float[Array, "B T"]
    kl: Float[Array, "B T"]
    values: Float[Array, "B T"] | None
    metrics: Metrics


def read_rollout(
    policy_params: Params,
    reference_params: Params,
    value_params: Params | None,
    rollout: Rollout,
    *,
    policy: Model,
    values: Callable[[Params, TokenBatch], jax.Array] | None,
    config: PolicyGradient,
) -> Reading:
    """The rollout as the models read it; without `values` there is no critic. The scores may be made meanwhile.

    Old log-probs are recomputed by the training graph at the rollout's temperature, so that the first ratio is 1, or with
    old_logprobs='sampled' those that the rollout came with, which spares the policy's reading. `kl` is exact over the vocabulary, or k1 of
    the tokens without that reading.
    """
    batch, mask = rollout.batch, rollout.batch.loss_mask
    predictions = None
    if values is not None:
        read = value_steps(batch, config.reward_at)
        predictions = jnp.where(read.loss_mask, values(value_params, read), 0.0)
    if config.old_logprobs == "sampled":
        ref = policy.token_stats(reference_params, batch, rollout.temperature, rollout.last).logprobs
        return Reading(rollout.logprobs, ref, k1(rollout.logprobs, ref), predictions, {})
    stats, ref_stats, kl = compare_policies(policy_params, reference_params, rollout, policy=policy)
    seen = {
        "rollout_entropy": masked_mean(stats.entropy, mask),
        "sampler_gap": jnp.max(jnp.where(mask, jnp.abs(rollout.logprobs - stats.logprobs), 0.0)),
    }
    return Reading(stats.logprobs, ref_stats.logprobs, kl, predictions, seen)


def judge_rollout(
    reading: Reading,
    rollout: Rollout,
    scores: Float[Array, "B"],
    kl_coef: Float[Array, ""],
    average: Float[Array, ""] | float = 0.0,
    moments: Moments | None = None,
    *,
    config: PolicyGradient,
) -> tuple[Trajectory, Metrics]:
    """Everything that policy gradients learn from, and what one wants to see of a rollout that was read and scored.

    `kl_sequence` sums the KL of the reading over the response; `kl_sampled` is the estimate that enters the reward. `average` is the moving
    average of the batches before, which a baseline may use; `moments` those of their scores (None: there are none), which the unit of the
    score may come from. Scores are reported as they are, rewards in that unit. `signal` is the share of prompts whose responses differ in
    score, penalties aside.
    """
    mask, old, ref = rollout.batch.loss_mask, reading.old, reading.ref
    # Of the last step behind a response, where it earns the score, nothing but the value is learned.
    steps = value_steps(rollout.batch, config.reward_at).loss_mask
    predictions = jnp.zeros_like(old) if reading.values is None else reading.values

    signal = signal_share(scores, samples=config.samples)
    scores = final_scores(scores, rollout, config)
    moments = with_batch(no_moments() if moments is None else moments, scores)
    measured = in_unit(scores, moments, unit=config.score_unit, clip=config.score_clip)
    in_reward = config.kl_in == "reward"
    penalised = kl_coef if in_reward else 0.0
    rewards = token_rewards(measured, old, ref, mask, kl_coef=penalised, steps=steps)
    learned_from = whiten(rewards, steps, shift_mean=False) if config.whiten_rewards else rewards
    log_ratio = jnp.sum(jnp.where(mask, k1(old, ref), 0.0), axis=1)
    advantages, returns, average = advantages_of(
        learned_from, predictions, steps, jnp.asarray(average), log_ratio, kl_coef, config=config
    )
    advantages = jnp.where(mask, advantages, 0.0)
    if config.whiten_advantages:
        advantages = whiten(advantages, mask)
    if config.advantage_clip is not None:
        advantages = jnp.clip(advantages, -config.advantage_clip, config.advantage_clip)
    metrics = {
        "score": jnp.mean(scores),
        "score_std": jnp.std(scores),
        "reward": jnp.mean(jnp.sum(rewards, axis=1)),
        "kl": masked_mean(reading.kl, mask),
        "kl_sequence": jnp.mean(jnp.sum(jnp.where(mask, reading.kl, 0.0), axis=1)),
        "kl_sampled": jnp.mean(log_ratio),
        "length": jnp.mean(jnp.sum(mask, axis=1, dtype=jnp.float32)),
        "finished": jnp.mean(rollout.finished.astype(jnp.float32)),
    } | reading.metrics
    if reading.values is not None:
        metrics |= {
            "explained_variance": explained_variance(predictions, returns, steps),
            "value": masked_mean(predictions, steps),
        }
    if config.samples > 1:
        metrics["signal"] = signal
    rows = mask.shape[0]
    trajectory = Trajectory(
        rollout=rollout,
        old_logprobs=old,
        ref_logprobs=ref,
        values=predictions,
        rewards=rewards,
        advantages=advantages,
        returns=returns,
        scores=scores,
        weights=token_weights(
            only_finished(mask, rollout.finished) if config.overlong_filter else mask,
            config.normaliser,
            constant=float(config.new_tokens),
            group=jnp.arange(rows) // config.samples,
            groups=rows // config.samples,
        ),
        loss_kl_coef=jnp.asarray(kl_coef if config.kl_in == "loss" else 0.0, jnp.float32),
        average=average,
        moments=moments,
    )
    return trajectory, metrics


def make_trajectory(
    policy_params: Params,
    reference_params: Params,
    value_params: Params | None,
    rollout: Rollout,
    scores: Float[Array, "B"],
    kl_coef: Float[Array, ""],
    average: Float[Array, ""] | float = 0.0,
    moments: Moments | None = None,
    *,
    policy: Model,
    values: Callable[[Params, TokenBatch], jax.Array] | None,
    config: PolicyGradient,
) -> tuple[Trajectory, Metrics]:
    """`judge_rollout` of `read_rollout`, for a rollout whose scores are there."""
    read = read_rollout(
        policy_params, reference_params, value_params, rollout, policy=policy, values=values, config=config
    )
    return judge_rollout(read, rollout, scores, kl_coef, average, moments, config=config)
