"""Policy objectives: per token, how a log-probability is rewarded; and how tokens are averaged. Parts that combine freely.

An algorithm is an advantage (`advantages.py`), one of these objectives, a normaliser, and a place for KL (`kl.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.config import PolicyGradient
from rlhf_jax.losses.kl import k3, kl_loss
from rlhf_jax.models.api import TokenStats
from rlhf_jax.types import Aux, Params, Rollout, TokenBatch, TokenWeights, Trajectory

Level = Literal["token", "sequence"]
Normaliser = Literal["token", "sequence", "constant", "group"]
Tokens = Float[Array, "B T"]
Values = Float[Array, "*S"]


def importance_ratio(
    logprobs: Tokens, old_logprobs: Tokens, mask: Bool[Array, "B T"], *, level: Level = "token"
) -> Tokens:
    """pi / pi_old of each token, or of its whole response: (pi(y) / pi_old(y)) ^ (1 / |y|), the same on all tokens; 1 outside the mask.

    Source of the latter: Zheng et al. 2025, GSPO (arXiv:2507.18071), eq. 7.
    """
    log_ratio = jnp.where(mask, logprobs - old_logprobs, 0.0)
    if level == "sequence":
        length = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True, dtype=jnp.float32), 1.0)
        log_ratio = jnp.where(mask, jnp.sum(log_ratio, axis=1, keepdims=True) / length, 0.0)
    return jnp.exp(log_ratio)


def score_function(logprobs: Values, advantages: Values) -> Values:
    """A log pi: its gradient is the policy gradient of the policy that sampled. Source: Williams 1992."""
    return advantages * logprobs


def clipped_surrogate(
    ratio: Values, advantages: Values, *, clip: float, clip_high: float | None = None, dual_clip: float | None = None
) -> Values:
    """min(r A, clip(r, 1 - clip, 1 + clip_high) A); with `dual_clip` c > 1 never below c A where A < 0.

    Source: Schulman et al. 2017 (arXiv:1707.06347), eq. 7; clip_high (default: clip): Yu et al. 2025, DAPO (arXiv:2503.14476), eq. 10;
    dual_clip: Ye et al. 2020 (arXiv:1912.09729).
    """
    high = clip if clip_high is None else clip_high
    surrogate = jnp.minimum(ratio * advantages, jnp.clip(ratio, 1 - clip, 1 + high) * advantages)
    if dual_clip is None:
        return surrogate
    return jnp.where(advantages < 0, jnp.maximum(surrogate, dual_clip * advantages), surrogate)


def truncated_importance(logprobs: Values, ratio: Values, advantages: Values, *, cap: float) -> Values:
    """min(r, cap) A log pi with the weight held fixed: off-policy samples reweighted, their variance bounded; no token loses its gradient.

    Source: Ionides 2008, "Truncated importance sampling"; Espeholt et al. 2018 (arXiv:1802.01561), section 4.1.
    """
    return jax.lax.stop_gradient(jnp.minimum(ratio, cap)) * advantages * logprobs


def token_weights(
    mask: Bool[Array, "B T"],
    normaliser: Normaliser,
    *,
    constant: float | None = None,
    group: Int[Array, "B"] | None = None,
    groups: int | None = None,
) -> TokenWeights:
    """How a loss per token becomes one number. Weights are of the whole batch, so that any split into microbatches adds up to it.

    token     every token the same (Yu et al. 2025, DAPO, eq. 12)
    sequence  the mean over a response, then over responses (Shao et al. 2024, GRPO, eq. 3): tokens of long responses count less
    constant  the sum over a response / `constant`, then the mean over responses (Liu et al. 2025, Dr. GRPO, section 3.2)
    group     the mean over all tokens of a prompt's responses, then over prompts; `group` numbers the prompts 0 .. groups - 1

    Raises: ValueError where a normaliser lacks its argument.
    """
    inside = mask.astype(jnp.float32)
    length = jnp.sum(inside, axis=1)
    present = (length > 0).astype(jnp.float32)
    match normaliser:
        case "token":
            return TokenWeights(inside, length)
        case "sequence":
            return TokenWeights(inside / jnp.maximum(length, 1.0)[:, None], present)
        case "constant":
            if constant is None:
                raise ValueError("the normaliser 'constant' divides by a length: give constant")
            return TokenWeights(inside / constant, jnp.ones_like(length))
        case "group":
            if group is None or groups is None:
                raise ValueError(
                    "the normaliser 'group' needs to know the prompt of each response: give group and groups"
                )
            tokens = jax.ops.segment_sum(length, group, num_segments=groups)[group]
            share = 1.0 / jnp.maximum(tokens, 1.0)
            return TokenWeights(inside * share[:, None], length * share)
    raise ValueError(f"normaliser={normaliser!r} must be 'token', 'sequence', 'constant' or 'group'")


def weighted_loss(losses: Tokens, weights: TokenWeights) -> Float[Array, ""]:
    """sum(token weight * loss) / sum(row weight); what stands where a token weighs nothing (even nan) does not count."""
    total = jnp.sum(jnp.where(weights.token > 0, weights.token * losses, 0.0))
    return total / jnp.maximum(jnp.sum(weights.row), 1e-9)


def only_finished(mask: Bool[Array, "B T"], finished: Bool[Array, "B"]) -> Bool[Array, "B T"]:
    """The overlong filter: responses that were cut at the length limit teach nothing. Source: Yu et al. 2025, DAPO, section 3.4."""
    return mask & finished[:, None]


def overlong_penalty(length: Float[Array, "*S"], *, longest: int, cache: int) -> Float[Array, "*S"]:
    """0 up to `longest - cache` tokens, from there linearly to -1 at `longest`, -1 beyond; added to the score.

    Source: Yu et al. 2025, DAPO, eq. 13.
    """
    return jnp.clip((longest - cache - length) / cache, -1.0, 0.0)


def policy_objective(
    logprobs: Tokens, old_logprobs: Tokens, advantages: Tokens, mask: Bool[Array, "B T"], *, config: PolicyGradient
) -> tuple[Tokens, dict[str, Tokens]]:
    """(what to maximise per token, what to report per token) of the objective that the config names; 0 outside the mask."""
    logprobs, old_logprobs = (jnp.where(mask, x, 0.0) for x in (logprobs, old_logprobs))
    advantages = jnp.where(mask, advantages, 0.0)
    ratio = importance_ratio(logprobs, old_logprobs, mask, level=config.ratio)
    match config.objective:
        case "score":
            objective = score_function(logprobs, advantages)
        case "truncated":
            objective = truncated_importance(logprobs, ratio, advantages, cap=config.importance_cap)
        case "clip":
            objective = clipped_surrogate(
                ratio, advantages, clip=config.clip, clip_high=config.clip_high, dual_clip=config.dual_clip
            )
    without = ratio * advantages
    report = {
        "clip_fraction": ((objective < without) | (objective > without)).astype(jnp.float32),
        "approx_kl": k3(old_logprobs, logprobs),
        "ratio": ratio,
    }
    if config.objective != "clip":
        report.pop("clip_fraction")
    return objective, report


def policy_loss(
    params: Params,
    trajectory: Trajectory,
    reference: Params | None = None,
    *,
    token_stats: Callable[[Params, TokenBatch, jax.Array, int | None], TokenStats],
    config: PolicyGradient,
    token_kl: Callable[[Params, Params, Rollout], jax.Array] | None = None,
) -> tuple[jax.Array, Aux]:
    """The loss of a policy gradient on a minibatch, its tokens weighed by `trajectory.weights`; entropy is rewarded with its coefficient.

    `token_stats(params, batch, temperature, last)` may leave out all but the last so many columns, which the responses stand in.

    loss = weighted mean of -(objective + entropy_coef H(pi(. | x_<t))); the effect of a token on later entropies is left out.
    Source of the bonus: Schulman et al. 2017 (arXiv:1707.06347), eq. 9.

    With KL in the loss, `trajectory.loss_kl_coef` times `kl_loss` is added under the same weights; the estimator "exact" needs
    `token_kl(params, reference, rollout)` and the reference's parameters.
    """
    rollout, weights = trajectory.rollout, trajectory.weights
    mask = rollout.batch.loss_mask
    stats = token_stats(params, rollout.batch, rollout.temperature, rollout.last)
    objective, report = policy_objective(
        stats.logprobs, trajectory.old_logprobs, trajectory.advantages, mask, config=config
    )
    losses = -objective
    if config.entropy_coef:
        losses = losses - config.entropy_coef * jnp.where(mask, stats.entropy, 0.0)
    if config.kl_in == "loss":
        exact = None
        if config.kl_estimator == "exact":
            if token_kl is None or reference is None:
                raise ValueError("kl_estimator='exact' in the loss needs token_kl and the reference's parameters")
            exact = token_kl(params, reference, rollout)
        penalty = kl_loss(stats.logprobs, trajectory.ref_logprobs, mask, estimator=config.kl_estimator, token_kl=exact)
        losses = losses + trajectory.loss_kl_coef * penalty
    loss = weighted_loss(losses, weights)
    share = jnp.maximum(jnp.sum(weights.token), 1e-9)
    report["entropy"] = stats.entropy
    metrics = {name: jnp.sum(jnp.where(mask, weights.token * x, 0.0)) / share for name, x in report.items()}
    return loss, Aux(weight=jnp.sum(weights.row), metrics={"policy_loss": loss, **metrics})
