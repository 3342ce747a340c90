"""Reward models from ratings and from steps: a number per reply, a grade per reply, a label per step."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rlhf_jax.masking import mask_weight, masked_mean
from rlhf_jax.types import Aux, Params, StepBatch, TokenBatch


def regression(scores: Float[Array, "B"], rating: Float[Array, "B"]) -> Float[Array, "B"]:
    """(score - rating)^2 / 2. Source: Wang et al. 2023, HelpSteer (arXiv:2311.09528), for rewards from Likert ratings."""
    return 0.5 * jnp.square(scores - rating)


def ordinal(scores: Float[Array, "B"], grade: Int[Array, "B"], thresholds: Float[Array, "G"]) -> Float[Array, "B"]:
    """-log P(grade) of grades 0 .. G whose G rising thresholds c the score crosses: P(grade <= k) = sigmoid(c_k - score).

    Unlike a regression it needs no distances between grades. Source: McCullagh 1980, proportional odds.
    """
    rising = jnp.concatenate([jnp.full((1,), -jnp.inf), thresholds, jnp.full((1,), jnp.inf)])
    low, high = rising[grade] - scores, rising[grade + 1] - scores
    # sigmoid(high) - sigmoid(low) = (1 - e^(low - high)) sigmoid(high) sigmoid(-low), without cancellation.
    gap = jnp.where(jnp.isinf(high - low), 0.0, jnp.log(-jnp.expm1(jnp.where(jnp.isinf(high - low), -1.0, low - high))))
    above = jnp.where(jnp.isinf(high), 0.0, jax.nn.log_sigmoid(jnp.where(jnp.isinf(high), 0.0, high)))
    below = jnp.where(jnp.isinf(low), 0.0, jax.nn.log_sigmoid(-jnp.where(jnp.isinf(low), 0.0, low)))
    return -(gap + above + below)


def thresholds_of(first: Float[Array, ""], log_steps: Float[Array, "S"]) -> Float[Array, "G"]:
    """Rising thresholds from free parameters: the first one, and the logarithms of the steps to the next ones."""
    return first + jnp.concatenate([jnp.zeros(1), jnp.cumsum(jnp.exp(log_steps))])


def process_loss(
    params: Params, batch: StepBatch, *, token_scores: Callable[[Params, TokenBatch], jax.Array]
) -> tuple[jax.Array, Aux]:
    """Logistic loss of the score at the end of each labelled step as log-odds of "right", nats per step.

    Source: Lightman et al. 2023 (arXiv:2305.20050), section 2.6; a solution's score there is the product of its steps' probabilities.
    """
    scores = jnp.where(batch.mask, token_scores(params, batch.text), 0.0)
    right = batch.label > 0.5
    losses = -jax.nn.log_sigmoid(jnp.where(right, scores, -scores))
    loss = masked_mean(losses, batch.mask)
    metrics = {"loss": loss, "accuracy": masked_mean(((scores > 0) == right).astype(jnp.float32), batch.mask)}
    return loss, Aux(weight=mask_weight(batch.mask), metrics=metrics)


def solution_logprob(token_scores: Float[Array, "B T"], step_ends: Array) -> Float[Array, "B"]:
    """log of the product of the probabilities that each step is right: a solution's score. Source: Lightman et al. 2023, section 2.6."""
    right = jax.nn.log_sigmoid(jnp.where(step_ends, token_scores, 0.0))
    return jnp.sum(jnp.where(step_ends, right, 0.0), axis=1)
