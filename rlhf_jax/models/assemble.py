"""From a network and its heads to a model: what follows from them alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from rlhf_jax.config import ModelConfig
from rlhf_jax.masking import last_index
from rlhf_jax.models.api import Model
from rlhf_jax.models.kernels import reads_columns
from rlhf_jax.models.output import predicted, shift_right, token_logits, token_logprobs, token_stats
from rlhf_jax.models.params import by_columns, layers_apart
from rlhf_jax.types import Params, TokenBatch


def model_of(
    config: ModelConfig,
    init: Callable[[jax.Array], Params],
    hidden: Callable[[Params, TokenBatch], jax.Array],
    unembed: Callable[[Params, jax.Array], jax.Array],
    scalar: Callable[[Params, jax.Array], jax.Array],
    prefill: Callable[..., tuple[jax.Array, Any]],
    decode: Callable[..., tuple[jax.Array, Any]],
    decoded: Callable[[TokenBatch], TokenBatch] = lambda batch: batch,
    ready: Callable[[Params, int], Params] | None = None,
) -> Model:
    """A model from a network and its heads: log-probs, values and scores follow from them.

    `decoded` is the part of a batch that the hidden states stand for, the rest turned into padding, where that is not all of it.
    """

    def stats(params: Params, batch: TokenBatch, temperature=1.0, last: int | None = None):
        read, chunk = hidden(params, batch), config.logit_chunk
        return token_stats(Partial(unembed, params), read, decoded(batch), temperature, chunk=chunk, last=last)

    def logprobs(params: Params, batch: TokenBatch, temperature=1.0):
        return token_logprobs(
            Partial(unembed, params), hidden(params, batch), decoded(batch), temperature, chunk=config.logit_chunk
        )

    def picked(params: Params, batch: TokenBatch):
        return token_logits(Partial(unembed, params), hidden(params, batch), decoded(batch), chunk=config.logit_chunk)

    def per_token(params: Params, batch: TokenBatch):
        return scalar(params, hidden(params, batch))

    def scores(params: Params, batch: TokenBatch):
        last = last_index(batch.segments != 0)
        return jnp.take_along_axis(per_token(params, batch), last[:, None], axis=1)[:, 0]

    def classes(params: Params, batch: TokenBatch):
        raise ValueError(
            f"this model has head={config.head!r}; class logits are those of an encoder with head='classes'"
        )

    def fastest(params: Params, rows: int) -> Params:
        params = by_columns(params, config.tied) if reads_columns(rows) else params
        return layers_apart(params) if config.unroll else params

    return Model(
        config=config,
        init=init,
        decoded=decoded,
        hidden=hidden,
        unembed=unembed,
        scalar=scalar,
        logits=lambda params, batch: unembed(params, hidden(params, batch)),
        logprobs=logprobs,
        token_stats=stats,
        token_logits=picked,
        token_scores=per_token,
        values=lambda params, batch: values_before(per_token(params, batch), decoded(batch)),
        scores=scores,
        class_logits=classes,
        ready=ready or fastest,
        prefill=prefill,
        decode=decode,
    )


def values_before(scalars: jax.Array, batch: TokenBatch) -> jax.Array:
    """[B, T], V just before the token at t, from a scalar head's numbers after reading it; 0 where nothing stands before."""
    return jnp.where(predicted(batch), shift_right(scalars), 0.0)
