"""The output layer: log-probs, entropies and divergences, a few columns at a time and without the [B, T, V] logits, or from these at once.

`chunk` is how many columns have logits at once, which the backward pass makes again; with None all have, and the backward pass keeps them.

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


def _tree(unembed: Unembed, hidden: jax.Array) -> Partial:
    """The output layer with those of its parameters that it reads: the others would have gradients too, of zeros."""
    if not isinstance(unembed, Partial):
        return Partial(unembed)
    leaves, tree = jax.tree.flatten(unembed)
    traced = jax.make_jaxpr(lambda leaves, h: tree.unflatten(leaves)(h))(leaves, hidden[:, :1]).jaxpr
    inside = {id(variable) for equation in traced.eqns for variable in equation.invars}
    return tree.unflatten([leaf if id(traced.invars[n]) in inside else None for n, leaf in enumerate(leaves)])


def predicted(batch: TokenBatch) -> Bool[Array, "B T"]:
    """Which tokens have a predecessor in their own segment, and so a probability."""
    same = (batch.segments[:, 1:] == batch.segments[:, :-1]) & (batch.segments[:, 1:] != 0)
    return jnp.pad(same, ((0, 0), (1, 0)))


def shift_right(x: jax.Array) -> jax.Array:
    """[B, T, ...] -> what stood at t - 1 now stands at t; zeros come first."""
    return jnp.pad(x[:, :-1], ((0, 0), (1, 0)) + ((0, 0),) * (x.ndim - 2))


def by_columns(function: Callable[..., Any], chunk: int | None, weights: Any, *arrays: jax.Array) -> Any:
    """`function(weights, *arrays)` over arrays [B, T, ...], at most `chunk` columns at a time.

    On a mesh each device goes through the columns of its own tokens: weights are gathered once before, and their gradients added up once
    behind, rather than at every chunk.
    """
    return over_tokens(partial(_by_columns, function, chunk), weights, *arrays)


def _by_columns(function: Callable[..., Any], chunk: int | None, weights: Any, *arrays: jax.Array) -> Any:
    function = partial(function, weights)
    length = arrays[0].shape[1]
    if chunk is None or length <= chunk:
        return function(*arrays)
    count = -(-length // chunk)

    def split(x):
        padding = ((0, 0), (0, count * chunk - length)) + ((0, 0),) * (x.ndim - 2)
        return jnp.pad(x, padding).reshape(x.shape[0], count, chunk, *x.shape[2:]).swapaxes(0, 1)

    parts = jax.lax.map(lambda piece: function(*piece), tuple(split(x) for x in arrays))
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(x.shape[1], count * chunk, *x.shape[3:])[:, :length], parts)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _logprobs_of(keep: bool, told: tuple[Partial, Any], h: jax.Array, tokens: Int[Array, "B C"]) -> Float[Array, "B C"]:
    """Log-probs of tokens from hidden states, `told` the output layer and the temperature. Unless it is to `keep` the logits they do not
    outlive it: the backward pass makes them again. One pass over them gives their gradient from the norm that was kept."""
    return _logprobs_forward(keep, told, h, tokens)[0]


def _logprobs_forward(keep, told, h, tokens):
    logits = _logits(told, h)
    norm = jax.nn.logsumexp(logits, axis=-1)
    return _taken(logits, tokens) - norm, (told, h, tokens, norm, logits if keep else None)


def _logprobs_backward(keep, kept, grad: jax.Array):
    told, h, tokens, norm, logits = kept
    logits, back = _logits_again(told, h, logits)
    share = jnp.exp(logits - norm[:, :, None])
    return (*back(_at(tokens, logits, grad) - grad[:, :, None] * share), None)


_logprobs_of.defvjp(_logprobs_forward, _logprobs_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _stats_of(keep: bool, told: tuple[Partial, Any], h: jax.Array, tokens: Int[Array, "B C"]) -> TokenStats:
    """As `_logprobs_of`, with the entropy H: dH/dlogit = -p (log p + H)."""
    return _stats_forward(keep, told, h, tokens)[0]


def _stats_forward(keep, told, h, tokens):
    logits = _logits(told, h)
    stats, norm = _described(logits, tokens)[1:]
    return stats, (told, h, tokens, norm, stats.entropy, logits if keep else None)


def _stats_backward(keep, kept, grads: TokenStats):
    told, h, tokens, norm, entropy, logits = kept
    logits, back = _logits_again(told, h, logits)
    logp = logits - norm[:, :, None]
    fall = grads.logprobs[:, :, None] + grads.entropy[:, :, None] * (logp + entropy[:, :, None])
    return (*back(_at(tokens, logits, grads.logprobs) - jnp.exp(logp) * fall), None)


_stats_of.defvjp(_stats_forward, _stats_backward)


def _logits(told: tuple[Partial, Any], h: jax.Array) -> jax.Array:
    """Logits at the temperature."""
    unembed, temperature = told
    return unembed(h) / temperature


def _logits_again(told: tuple[Partial, Any], h: jax.Array, kept: jax.Array | None) -> tuple[jax.Array, Callable]:
    """(the logits that were kept, or are made again, what takes their gradient back to what they were made of)."""
    # Behind a barrier, or a compiler would keep the logits of the forward pass rather than make them again.
    logits, back = jax.vjp(_logits, told, h if kept is not None else jax.lax.optimization_barrier(h))
    return logits if kept is None else kept, back


def _taken(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    return jnp.take_along_axis(logits, tokens[:, :, None], axis=-1)[:, :, 0]


def _at(tokens: jax.Array, like: jax.Array, values: jax.Array) -> jax.Array:
    """[B, C, V] with the values at the tokens, and 0 elsewhere; never there by itself, but for what it is added to."""
    places = jax.lax.broadcasted_iota(tokens.dtype, like.shape, 2)
    return jnp.where(places == tokens[:, :, None], values[:, :, None], 0.0)


def token_logprobs(
    unembed: Unembed,
    hidden: Float[Array, "B T D"],
    batch: TokenBatch,
    temperature: Float[Array, ""] | float,
    *,
    chunk: int | None,
) -> Float[Array, "B T"]:
    """log p(tokens[:, t] | tokens[:, :t]) in nats, at the given temperature."""
    told, of = (_tree(unembed, hidden), jnp.float32(temperature)), partial(_logprobs_of, chunk is None)
    if not isinstance(unembed, Partial):  # what a function has closed over has its gradient from JAX alone
        of = _again(lambda *given: _logprobs_forward(False, *given)[0], chunk)
    logprobs = by_columns(of, chunk, told, shift_right(hidden), batch.tokens)
    return jnp.where(predicted(batch), logprobs, 0.0)


def token_stats(
    unembed: Unembed,
    hidden: Float[Array, "B T D"],
    batch: TokenBatch,
    temperature: Float[Array, ""] | float,
    *,
    chunk: int | None,
    last: int | None = None,
) -> TokenStats:
    """log p(tokens[:, t] | tokens[:, :t]) and the entropy of that distribution, in nats, at the given temperature.

    With `last`, of the last so many columns alone, and 0 in those before: responses behind prompts that nobody asks about.
    """
    told, of = (_tree(unembed, hidden), jnp.float32(temperature)), partial(_stats_of, chunk is None)
    if not isinstance(unembed, Partial):
        of = _again(lambda *given: _stats_forward(False, *given)[0], chunk)
    columns = _columns(batch, last)
    return _known(by_columns(of, chunk, told, shift_right(hidden)[:, columns], batch.tokens[:, columns]), batch)


def _again(function: Callable, chunk: int | None) -> Callable:
    """The function, made again in the backward pass where not all columns are taken at once."""
    return function if chunk is None else jax.checkpoint(function)


def _columns(batch: TokenBatch, last: int | None) -> slice:
    return slice(0 if last is None else max(batch.tokens.shape[1] - last, 0), None)


def _known(tree: Any, batch: TokenBatch) -> Any:
    """Arrays of the last columns with zeros in front, to the length of the batch, and in place of what nothing stood before."""

    def fill(x: jax.Array) -> jax.Array:
        return jnp.where(predicted(batch), jnp.pad(x, ((0, 0), (batch.tokens.shape[1] - x.shape[1], 0))), 0.0)

    return jax.tree.map(fill, tree)


def token_logits(
    unembed: Unembed, hidden: Float[Array, "B T D"], batch: TokenBatch, *, chunk: int | None
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """(the logit of the token at t, the logsumexp of all logits there): where logits are values of tokens, not log-probs."""

    def pick(unembed, h, tokens: Int[Array, "B C"]):
        logits = unembed(h)
        return _taken(logits, tokens), jax.nn.logsumexp(logits, axis=-1)

    taken, norm = by_columns(_again(pick, chunk), chunk, _tree(unembed, hidden), shift_right(hidden), batch.tokens)
    known = predicted(batch)
    return jnp.where(known, taken, 0.0), jnp.where(known, norm, 0.0)


def compare_tokens(
    unembed_p: Unembed,
    hidden_p: Float[Array, "B T D"],
    unembed_q: Unembed,
    hidden_q: Float[Array, "B T E"],
    batch: TokenBatch,
    temperature: Float[Array, ""] | float,
    *,
    chunk: int | None,
    last: int | None = None,
) -> tuple[TokenStats, TokenStats, Float[Array, "B T"]]:
    """(`token_stats` of p, those of q, KL(p || q) of the next-token distributions over the whole vocabulary, in nats per token).

    Both are at one temperature, and their logits are made once; `last` as in `token_stats`.
    """

    def compare(told, hp, hq, tokens):
        unembed_p, unembed_q, temperature = told
        (p, of_p, _), (q, of_q, _) = (
            _described(unembed(h) / temperature, tokens) for unembed, h in ((unembed_p, hp), (unembed_q, hq))
        )
        return of_p, of_q, jnp.sum(jnp.exp(p) * (p - q), axis=-1)

    told = _tree(unembed_p, hidden_p), _tree(unembed_q, hidden_q), temperature
    columns = _columns(batch, last)
    hidden = (shift_right(h)[:, columns] for h in (hidden_p, hidden_q))
    return _known(by_columns(_again(compare, chunk), chunk, told, *hidden, batch.tokens[:, columns]), batch)


def _described(logits: jax.Array, tokens: jax.Array) -> tuple[jax.Array, TokenStats, jax.Array]:
    """(log-probs of all tokens, those of the tokens given with the entropies, logsumexp of the logits)."""
    norm = jax.nn.logsumexp(logits, axis=-1)
    logp = logits - norm[:, :, None]
    entropy = norm - jnp.sum(jnp.exp(logp) * logits, axis=-1)
    return logp, TokenStats(_taken(logits, tokens) - norm, entropy), norm
