"""Reward models: from comparisons and from labels."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rlhf_jax.types import Aux, LabelBatch, Params, PreferenceBatch, TokenBatch

Scores = Float[Array, "*S"]
ScoreFn = Callable[[Params, TokenBatch], jax.Array]


def bradley_terry(
    chosen: Scores,
    rejected: Scores,
    margin: Scores | float = 0.0,
    *,
    label_smoothing: Float[Array, ""] | float = 0.0,
) -> Scores:
    """-log P(chosen beats rejected), per pair, in nats: -log sigmoid(chosen - rejected - margin).

    With label smoothing e, that of a label which is wrong with probability e. Source: Bradley & Terry 1952; Ouyang et al. 2022, eq. 1;
    the margin: Touvron et al. 2023 (arXiv:2307.09288), eq. 2.
    """
    return smoothed_logistic(chosen - rejected - margin, label_smoothing)


def smoothed_logistic(logits: Scores, label_smoothing: Float[Array, ""] | float = 0.0) -> Scores:
    """-(1 - e) log sigmoid(x) - e log sigmoid(-x)."""
    right, wrong = -jax.nn.log_sigmoid(logits), -jax.nn.log_sigmoid(-logits)
    return (1 - label_smoothing) * right + label_smoothing * wrong


def centring(chosen: Scores, rejected: Scores) -> Scores:
    """(chosen + rejected)^2, which a small coefficient adds to the loss: comparisons leave the zero of the scores open, this closes it.

    Source: Eisenstein et al. 2023 (arXiv:2312.09244), section 2.
    """
    return jnp.square(chosen + rejected)


def accuracy_of(chosen: Scores, rejected: Scores) -> Scores:
    """1 where the chosen reply scores higher. Equal scores count one half: a constant model is right half of the time, not never."""
    return jnp.where(chosen == rejected, 0.5, (chosen > rejected).astype(jnp.float32))


def gain_and_bias(scores: Float[np.ndarray, "N"]) -> tuple[float, float]:
    """(gain, bias) after which these scores have mean 0 and population standard deviation 1.

    Source: Ziegler et al. 2019, section 2.1, of samples of the reference policy.
    Raises: ValueError where all scores are the same, or not finite.
    """
    if not (np.isfinite(scores).all() and np.ptp(scores) > 0):
        raise ValueError(
            f"the reward model gives samples scores from {np.min(scores)} to {np.max(scores)}; there is no unit in them"
        )
    mean, std = float(np.mean(scores)), float(np.std(scores))
    return 1 / std, -mean / std


def weighted_mean(x: Float[Array, "B"], weight: Float[Array, "B"]) -> Float[Array, ""]:
    """sum(weight * x) / sum(weight); 0 where all weights are 0."""
    return jnp.sum(weight * x) / jnp.maximum(jnp.sum(weight), 1e-9)


def comparison_loss(
    params: Params,
    batch: PreferenceBatch,
    *,
    scores: ScoreFn,
    label_smoothing: Float[Array, ""] | float = 0.0,
    centring_coef: float = 0.0,
) -> tuple[jax.Array, Aux]:
    """Bradley-Terry loss of a batch of pairs, nats per pair, weighted by the pairs' weights; `centring` is added with its coefficient.

    Both replies go through the model as one batch of 2 B rows.
    """
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), batch.chosen, batch.rejected)
    chosen, rejected = jnp.split(scores(params, both), 2)
    losses = bradley_terry(chosen, rejected, batch.margin, label_smoothing=label_smoothing)
    if centring_coef:
        losses = losses + centring_coef * centring(chosen, rejected)
    loss = weighted_mean(losses, batch.weight)
    metrics = {
        "loss": loss,
        "accuracy": weighted_mean(accuracy_of(chosen, rejected), batch.weight),
        "gap": weighted_mean(chosen - rejected, batch.weight),
        "score": weighted_mean((chosen + rejected) / 2, batch.weight),
    }
    return loss, Aux(weight=jnp.sum(batch.weight), metrics=metrics)


def label_loss(params: Params, batch: LabelBatch, *, scores: ScoreFn) -> tuple[jax.Array, Aux]:
    """Logistic loss of the score as log-odds of label 1, nats per text."""
    score = scores(params, batch.text)
    losses = -jax.nn.log_sigmoid(jnp.where(batch.label > 0.5, score, -score))
    loss = weighted_mean(losses, batch.weight)
    right = ((score > 0) == (batch.label > 0.5)).astype(jnp.float32)
    metrics = {
        "loss": loss,
        "accuracy": weighted_mean(right, batch.weight),
        "score": weighted_mean(score, batch.weight),
    }
    return loss, Aux(weight=jnp.sum(batch.weight), metrics=metrics)
