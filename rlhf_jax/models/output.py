"""The output layer, a few columns at a time: log-probs, entropies and divergences without the [B, T, V] logits.

The shift of the alignment rule happens here and nowhere else: what is reported at t comes from the hidden state at t - 1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.models.api import TokenStats
from rlhf_jax.sharding import over_tokens
from rlhf_jax.types import TokenBatch

Unembed = Callable[[jax.Array], jax.Array]
"""Logits of hidden states; as a `jax.tree_util.Partial` of the parameters where a mesh may have those in pieces."""


def _tree(unembed: Unembed) -> Partial:
    return unembed if isinstance(unembed, Partial) else Partial(unembed)


def predicted(batch: TokenBatch) -> Bool[Array, "B T"]:
    """Which tokens have a predecessor in their own segment, and so a probability."""
    same = (batch.segments[:, 1:] == batch.segments[:, :-1]) & (batch.segments[:, 1:] != 0)
    return jnp.pad(same, ((0, 0), (1, 0)))


def shift_right(x: jax.Array) -> jax.Array:
    """[B, T, ...] -> what stood at t - 1 now stands at t; zeros come first."""
    return jnp.pad(x[:, :-1], ((0, 0), (1, 0)) + ((0, 0),) * (x.ndim - 2))


def by_columns(function: Callable[..., Any], chunk: int, weights: Any, *arrays: jax.Array) -> Any:
    """`function(weights, *arrays)` over arrays [B, T, ...], at most `chunk` columns at a time, recomputed in the backward pass.

    On a mesh each device goes through the columns of its own tokens: weights are gathered once before, and their gradients added up once
    behind, rather than at every chunk.
    """
    return over_tokens(partial(_by_columns, function, chunk), weights, *arrays)


def _by_columns(function: Callable[..., Any], chunk: int, weights: Any, *arrays: jax.Array) -> Any:
    function = partial(jax.checkpoint(function), weights)
    length = arrays[0].shape[1]
    if length <= chunk:
        return function(*arrays)
    count = -(-length // chunk)

    def split(x):
        padding = ((0, 0), (0, count * chunk - length)) + ((0, 0),) * (x.ndim - 2)
        return jnp.pad(x, padding).reshape(x.shape[0], count, chunk, *x.shape[2:]).swapaxes(0, 1)

    parts = jax.lax.map(lambda piece: function(*piece), tuple(split(x) for x in arrays))
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(x.shape[1], count * chunk, *x.shape[3:])[:, :length], parts)


def token_stats(
    unembed: Unembed,
    hidden: Float[Array, "B T D"],
    batch: TokenBatch,
    temperature: Float[Array, ""] | float,
    *,
    chunk: int,
) -> TokenStats:
    """log p(tokens[:, t] | tokens[:, :t]) and the entropy of that distribution, in nats, at the given temperature."""

    def stats(told, h, tokens: Int[Array, "B C"]):
        unembed, temperature = told
        logits = unembed(h) / temperature
        norm = jax.nn.logsumexp(logits, axis=-1)
        taken = jnp.take_along_axis(logits, tokens[:, :, None], axis=-1)[:, :, 0]
        entropy = norm - jnp.sum(jnp.exp(logits - norm[:, :, None]) * logits, axis=-1)
        return taken - norm, entropy

    logprobs, entropy = by_columns(stats, chunk, (_tree(unembed), temperature), shift_right(hidden), batch.tokens)
    known = predicted(batch)
    return TokenStats(jnp.where(known, logprobs, 0.0), jnp.where(known, entropy, 0.0))


def token_logits(
    unembed: Unembed, hidden: Float[Array, "B T D"], batch: TokenBatch, *, chunk: int
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """(the logit of the token at t, the logsumexp of all logits there): where logits are values of tokens, not log-probs."""

    def pick(unembed, h, tokens: Int[Array, "B C"]):
        logits = unembed(h)
        return jnp.take_along_axis(logits, tokens[:, :, None], axis=-1)[:, :, 0], jax.nn.logsumexp(logits, axis=-1)

    taken, norm = by_columns(pick, chunk, _tree(unembed), shift_right(hidden), batch.tokens)
    known = predicted(batch)
    return jnp.where(known, taken, 0.0), jnp.where(known, norm, 0.0)


def token_kl(
    unembed_p: Unembed,
    hidden_p: Float[Array, "B T D"],
    unembed_q: Unembed,
    hidden_q: Float[Array, "B T E"],
    batch: TokenBatch,
    temperature: Float[Array, ""] | float,
    *,
    chunk: int,
) -> Float[Array, "B T"]:
    """KL(p || q) of the next-token distributions over the whole vocabulary, in nats per token, both at one temperature."""

    def divergence(told, hp, hq):
        unembed_p, unembed_q, temperature = told
        p = jax.nn.log_softmax(unembed_p(hp) / temperature, axis=-1)
        q = jax.nn.log_softmax(unembed_q(hq) / temperature, axis=-1)
        return jnp.sum(jnp.exp(p) * (p - q), axis=-1)

    told = _tree(unembed_p), _tree(unembed_q), temperature
    kl = by_columns(divergence, chunk, told, shift_right(hidden_p), shift_right(hidden_q))
    return jnp.where(predicted(batch), kl, 0.0)
