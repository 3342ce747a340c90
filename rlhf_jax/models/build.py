"""From a config to a model's pure functions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp

from rlhf_jax.config import ModelConfig
from rlhf_jax.masking import last_index
from rlhf_jax.models.api import Cache, Model
from rlhf_jax.models.decoder import Decoder, ScalarHead, Unembed
from rlhf_jax.models.encoder import build_encoder
from rlhf_jax.models.layers import softcap
from rlhf_jax.models.output import predicted, shift_right, token_logits, token_stats
from rlhf_jax.sharding import constrain
from rlhf_jax.types import Params, TokenBatch


def causal_mask(segments: jax.Array) -> jax.Array:
    """[B, T, T]: query t sees key s when s <= t and both belong to one segment."""
    columns = jnp.arange(segments.shape[1])
    causal = columns[None, :, None] >= columns[None, None, :]
    return causal & (segments[:, :, None] == segments[:, None, :]) & (segments[:, :, None] != 0)


def build_model(config: ModelConfig) -> Model:
    """The model of this config as pure functions."""
    if not config.causal:
        return build_encoder(config)
    c = config
    decoder = Decoder(c)
    output = Unembed(c.width, c.vocab)
    # A model with both heads is a policy with a value head, which starts at 0; a scalar head alone starts with unit scale.
    head = ScalarHead(zero=c.lm_head)

    def init(key: jax.Array) -> Params:
        trunk, unembed, score = jax.random.split(key, 3)
        tokens = jnp.zeros((1, 1), jnp.int32)
        params = dict(decoder.init(trunk, tokens, tokens, jnp.ones((1, 1, 1), bool))["params"])
        width = jnp.zeros((1, 1, c.width))
        if c.lm_head and not c.tied:
            params["unembed"] = output.init(unembed, width)["params"]
        if c.scalar_head:
            params["score"] = head.init(score, width)["params"]
        return params

    def trunk(params: Params, tokens, positions, mask, cache=None, column=0) -> Any:
        body = {name: value for name, value in params.items() if name not in ("unembed", "score")}
        return decoder.apply({"params": body}, tokens, positions, mask, cache, column)

    def hidden(params: Params, batch: TokenBatch):
        return trunk(params, batch.tokens, batch.positions, causal_mask(batch.segments))[0]

    def unembed(params: Params, x: jax.Array) -> jax.Array:
        if not c.lm_head:
            raise ValueError("this model has a scalar head only; it gives scores and values, not log-probs")
        if c.tied:  # in float32: a softmax over bfloat16 logits loses a third of a nat's last digits
            rows = x.reshape(-1, c.width).astype(jnp.float32) @ params["tokens"]["embedding"].T
        else:
            rows = cast(jax.Array, output.apply({"params": params["unembed"]}, x.reshape(-1, c.width)))
        return softcap(rows.reshape(*x.shape[:-1], c.vocab), c.logit_softcap)

    def scalar(params: Params, x: jax.Array) -> jax.Array:
        if not c.scalar_head:
            raise ValueError(f"this model has head={c.head!r}; scores and values need a scalar head")
        return cast(jax.Array, head.apply({"params": params["score"]}, x))

    def empty_cache(rows: int, length: int) -> Cache:
        shape = (c.layers, rows, c.kv_heads, length, c.head_size)
        return Cache(
            keys=jnp.zeros(shape, jnp.dtype(c.dtype)),
            values=jnp.zeros(shape, jnp.dtype(c.dtype)),
            filled=jnp.zeros((rows, length), bool),
        )

    def read(params: Params, tokens, positions, mask, column, filled, cache: Cache):
        h, (keys, values) = trunk(params, tokens, positions, mask, (cache.keys, cache.values), column)
        keys, values = (constrain(x, "layers", "batch", "kv", "length", "head_dim") for x in (keys, values))
        return h[:, -1], Cache(keys, values, filled)

    def prefill(params: Params, batch: TokenBatch, cache: Cache):
        """Reads left-padded prompts into columns 0 .. T-1."""
        extra = cache.filled.shape[1] - batch.tokens.shape[1]
        mask = jnp.pad(causal_mask(batch.segments), ((0, 0), (0, 0), (0, extra)))
        filled = jnp.pad(batch.segments != 0, ((0, 0), (0, extra)))
        return read(params, batch.tokens, batch.positions, mask, 0, filled, cache)

    def decode(params: Params, tokens, positions, column, filled, cache: Cache):
        """Reads one token per row into `column`; rows with `filled` False leave nothing to attend to there."""
        seen = jax.lax.dynamic_update_slice(cache.filled, filled[:, None], (0, column))
        return read(params, tokens[:, None], positions[:, None], seen[:, None, :], column, seen, cache)

    return model_of(c, init, hidden, unembed, scalar, empty_cache, prefill, decode)


def model_of(
    config: ModelConfig,
    init: Callable[[jax.Array], Params],
    hidden: Callable[[Params, TokenBatch], jax.Array],
    unembed: Callable[[Params, jax.Array], jax.Array],
    scalar: Callable[[Params, jax.Array], jax.Array],
    empty_cache: Callable[[int, int], Any],
    prefill: Callable[..., tuple[jax.Array, Any]],
    decode: Callable[..., tuple[jax.Array, Any]],
) -> Model:
    """A model from a network and its heads: log-probs, values and scores follow from them."""

    def stats(params: Params, batch: TokenBatch, temperature=1.0):
        return token_stats(
            partial(unembed, params), hidden(params, batch), batch, temperature, chunk=config.logit_chunk
        )

    def picked(params: Params, batch: TokenBatch):
        return token_logits(partial(unembed, params), hidden(params, batch), batch, chunk=config.logit_chunk)

    def per_token(params: Params, batch: TokenBatch):
        return scalar(params, hidden(params, batch))

    def scores(params: Params, batch: TokenBatch):
        last = last_index(batch.segments != 0)
        return jnp.take_along_axis(per_token(params, batch), last[:, None], axis=1)[:, 0]

    def classes(params: Params, batch: TokenBatch):
        raise ValueError(
            f"this model has head={config.head!r}; class logits are those of an encoder with head='classes'"
        )

    return Model(
        config=config,
        init=init,
        hidden=hidden,
        unembed=unembed,
        scalar=scalar,
        logits=lambda params, batch: unembed(params, hidden(params, batch)),
        logprobs=lambda params, batch, temperature=1.0: stats(params, batch, temperature).logprobs,
        token_stats=stats,
        token_logits=picked,
        token_scores=per_token,
        values=lambda params, batch: values_before(per_token(params, batch), batch),
        scores=scores,
        class_logits=classes,
        empty_cache=empty_cache,
        prefill=prefill,
        decode=decode,
    )


def values_before(scalars: jax.Array, batch: TokenBatch) -> jax.Array:
    """[B, T], V just before the token at t, from a scalar head's numbers after reading it; 0 where nothing stands before."""
    return jnp.where(predicted(batch), shift_right(scalars), 0.0)
