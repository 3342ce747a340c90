"""Reward models from more than one winner and one loser: rankings, the best of k, and ties."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rlhf_jax.losses.reward import ScoreFn, accuracy_of, bradley_terry, weighted_mean
from rlhf_jax.types import Aux, Params, RankedBatch


def k_wise(
    scores: Float[Array, "B K"], rank: Int[Array, "B K"], weight: Float[Array, "B K"] | None = None
) -> tuple[Float[Array, "B"], Float[Array, "B"], Float[Array, "B"]]:
    """(loss, accuracy, pairs) of each prompt: the mean Bradley-Terry loss over its pairs of different rank, nats per pair.

    The mean, not the sum: all pairs of a prompt count as one, as they are strongly correlated. Replies of weight 0 are left out.
    Source: Ouyang et al. 2022, eq. 1 (1 / C(K, 2) of the sum).
    """
    weight = jnp.ones_like(scores) if weight is None else weight
    better = (rank[:, :, None] < rank[:, None, :]).astype(jnp.float32)
    pair = better * weight[:, :, None] * weight[:, None, :]
    first, second = jnp.broadcast_arrays(scores[:, :, None], scores[:, None, :])
    count = jnp.sum(pair, axis=(1, 2))
    divisor = jnp.maximum(count, 1e-9)

    def mean(x):
        return jnp.sum(pair * x, axis=(1, 2)) / divisor

    return mean(bradley_terry(first, second)), mean(accuracy_of(first, second)), count


def ranking_loss(params: Params, batch: RankedBatch, *, scores: ScoreFn) -> tuple[jax.Array, Aux]:
    """`k_wise` over prompts that have a pair to compare; every reply goes through the model once, not once per pair."""
    table = scores(params, batch.texts).reshape(batch.rank.shape)
    losses, accuracy, pairs = k_wise(table, batch.rank, batch.weight)
    usable = (pairs > 0).astype(jnp.float32)
    loss = weighted_mean(losses, usable)
    metrics = {"loss": loss, "accuracy": weighted_mean(accuracy, usable)}
    return loss, Aux(weight=jnp.sum(usable), metrics=metrics)


def best_of_k(scores: Float[Array, "B K"], best: Int[Array, "B"]) -> Float[Array, "B"]:
    """-log softmax(scores)[best]: the loss of a choice of one among K. Source: Ziegler et al. 2019, eq. 1 (K = 4)."""
    return -jnp.take_along_axis(jax.nn.log_softmax(scores, axis=1), best[:, None], axis=1)[:, 0]


def rao_kupper(
    first: Float[Array, "B"],
    second: Float[Array, "B"],
    outcome: Float[Array, "B"],
    *,
    threshold: Float[Array, ""] | float,
) -> Float[Array, "B"]:
    """-log P(outcome): 1 the first reply wins, 0 the second, 0.5 a tie. A reply wins where it is better by more than noise and `threshold`.

    P(first wins) = sigmoid(d - t), P(second wins) = sigmoid(-d - t), and the rest is a tie: (e^2t - 1) P(first wins) P(second wins),
    d = first - second. t = 0 is Bradley-Terry without ties. Source: Rao & Kupper 1967, with threshold t = log theta.
    """
    difference = first - second
    wins, loses = jax.nn.log_sigmoid(difference - threshold), jax.nn.log_sigmoid(-difference - threshold)
    # A threshold of 0 knows no ties: the floor keeps the gradient finite.
    tie = wins + loses + jnp.log(jnp.maximum(jnp.expm1(2 * jnp.asarray(threshold, jnp.float32)), 1e-30))
    return -jnp.where(outcome == 0.5, tie, jnp.where(outcome > 0.5, wins, loses))
