"""What a model offers to the rest of the library: a frozen record of pure functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float

from rlhf_jax.config import ModelConfig
from rlhf_jax.models.groups import Group
from rlhf_jax.types import Params, TokenBatch, pytree


@pytree
class TokenStats:
    """Per token: log-probability of the token given, and entropy of the distribution it was drawn from, in nats."""

    logprobs: Float[Array, "B T"]
    entropy: Float[Array, "B T"]


@dataclasses.dataclass(frozen=True)
class Model:
    """Pure functions of parameters. Any functions with these meanings make a model; the losses need only `logprobs`.

    What a model has no head for raises ValueError; so does, of an encoder, everything that asks what came before a token: it sees the rest.
    An encoder-decoder takes for a prompt what stands in front of the first token to learn (`loss_mask`) of a segment.

    init(key) -> params
    decoded(batch) -> the batch with padding for what has no hidden state: the prompts of an encoder-decoder but for their last token
    hidden(params, batch) -> [B, T, D], the network's output after reading token t
    unembed(params, hidden [..., D]) -> logits [..., V] of the token that follows; of an encoder, of the one that stands there
    scalar(params, hidden [..., D]) -> [...], the scalar head
    logits(params, batch) -> [B, T, V]; `logits[:, t]` belongs to the token at t + 1, of an encoder to the one at t
    logprobs(params, batch, temperature) -> [B, T] in nats, of the token at t; 0 for the first token of a segment and for padding, and of
    an encoder-decoder for the prompt
    token_stats(params, batch, temperature, last) -> the same with entropies; with `last` of the last so many columns alone, 0 before
    token_logits(params, batch) -> (logit of the token at t, logsumexp of all logits there), [B, T] each
    token_scores(params, batch) -> [B, T], the scalar head after reading the token at t
    values(params, batch) -> [B, T], V just before the token at t
    scores(params, batch) -> [B], the scalar head at each row's last real token, of an encoder at its first
    class_logits(params, batch) -> [B, C], of an encoder with head "classes"
    ready(params, rows) -> the parameters as `decode` and `unembed`, which take the others too, read them fastest for so many rows
    prefill(params, prompts, length) -> (hidden [B, D] after the last column, a cache of `length` columns with the prompts in it)
    decode(params, tokens [B], positions [B], column, filled [B], cache) -> (hidden [B, D], cache)
    grouped(group) -> what `in_groups` gives; None: each row is read by itself
    fork(cache, rows, columns) -> a cache in which so many rows, side by side, go on from each row of this one, each with so many columns of
    its own, counted on from those in front, which stay as they are; None: each row has all of its own
    """

    config: ModelConfig
    init: Callable[[jax.Array], Params]
    decoded: Callable[[TokenBatch], TokenBatch]
    hidden: Callable[..., jax.Array]
    unembed: Callable[[Params, jax.Array], jax.Array]
    scalar: Callable[[Params, jax.Array], jax.Array]
    logits: Callable[[Params, TokenBatch], jax.Array]
    logprobs: Callable[[Params, TokenBatch, Any], jax.Array]
    token_stats: Callable[..., TokenStats]
    token_logits: Callable[[Params, TokenBatch], tuple[jax.Array, jax.Array]]
    token_scores: Callable[[Params, TokenBatch], jax.Array]
    values: Callable[[Params, TokenBatch], jax.Array]
    scores: Callable[[Params, TokenBatch], jax.Array]
    class_logits: Callable[[Params, TokenBatch], jax.Array]
    ready: Callable[[Params, int], Params]
    prefill: Callable[[Params, TokenBatch, int], tuple[jax.Array, Any]]
    decode: Callable[..., tuple[jax.Array, Any]]
    grouped: Callable[[Group], Model] | None = None
    fork: Callable[[Any, int, int], Any] | None = None

    def in_groups(self, rows: int, last: int) -> Model:
        """The model for batches of which so many rows, side by side, differ in the last so many columns alone, behind a left-padded prompt.

        A decoder reads that once for all of them, which is not checked: of other batches its numbers are wrong. Others read every row.
        """
        return self if self.grouped is None else self.grouped(Group(rows, last))
