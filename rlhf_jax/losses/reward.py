"""Reward models: from comparisons and from labels."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rlhf_jax.types import Aux, LabelBatch, Params, PreferenceBatch, TokenBatch

ScoreFn = Callable[[Params, TokenBatch], jax.Array]


def bradley_terry(
    chosen: Float[Array, "B"], rejected: Float[Array, "B"], margin: Float[Array, "B"] | float = 0.0
) -> Float[Array, "B"]:
    """-log P(chosen beats rejected), per pair, in nats: -log sigmoid(chosen - rejected - margin).

    Source: Bradley & Terry 1952; Ouyang et al. 2022, eq. 1; the margin: Touvron et al. 2023 (arXiv:2307.09288), eq. 2.
    """
    return -jax.nn.log_sigmoid(chosen - rejected - margin)


def weighted_mean(x: Float[Array, "B"], weight: Float[Array, "B"]) -> Float[Array, ""]:
    """sum(weight * x) / sum(weight); 0 where all weights are 0."""
    return jnp.sum(weight * x) / jnp.maximum(jnp.sum(weight), 1e-9)


def comparison_loss(params: Params, batch: PreferenceBatch, *, scores: ScoreFn) -> tuple[jax.Array, Aux]:
    """Bradley-Terry loss of a batch of pairs, nats per pair, weighted by the pairs' weights.

    Both replies go through the model as one batch of 2 B rows.
    """
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), batch.chosen, batch.rejected)
    chosen, rejected = jnp.split(scores(params, both), 2)
    losses = bradley_terry(chosen, rejected, batch.margin)
    # Equal scores count one half: a constant model is right half of the time, not never.
    right = jnp.where(chosen == rejected, 0.5, (chosen > rejected).astype(jnp.float32))
    loss = weighted_mean(losses, batch.weight)
    metrics = {
        "loss": loss,
        "accuracy": weighted_mean(right, batch.weight),
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
