"""Policy objectives: per token, how a log-probability is rewarded; and how tokens are averaged. Parts that combine freely.

An algorithm is an advantage (`advantages.py`), one of these objectives, a normaliser, and a place for KL (`kl.py`).
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.types import pytree

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


@pytree
class TokenWeights:
    """What each token weighs in the sum, and each row in the divisor: loss = sum(token * l) / sum(row)."""

    token: Float[Array, "B T"]
    row: Float[Array, "B"]


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
