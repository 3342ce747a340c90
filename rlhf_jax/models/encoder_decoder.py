"""Encoder-decoders: an encoder reads the prompt, a decoder writes the reply behind a start token and attends to what was read.

A row holds prompt and reply as for every other model. Both halves run over all of its columns: the encoder sees the prompt alone; the
decoder reads the start token where the prompt has its last one, and the reply behind it, so that what is indexed by t is what it is for a
decoder. Distances are those of columns, as segments have no gaps.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rlhf_jax.config import ModelConfig
from rlhf_jax.masking import in_prompt, last_index
from rlhf_jax.models.api import Model
from rlhf_jax.models.assemble import model_of
from rlhf_jax.models.cache import Cache, empty_cache, with_column
from rlhf_jax.models.decoder import Embedding, ScalarHead, Stack, Unembed, output_logits
from rlhf_jax.models.layers import Project
from rlhf_jax.models.visible import Visible
from rlhf_jax.types import Params, TokenBatch, pytree


@pytree
class CrossCache:
    """What a decoder has read, its start token first, and the keys and values of the prompt."""

    decoder: Cache
    keys: Float[Array, "N B K P H"] | tuple[Float[Array, "1 B K P H"], ...]
    values: Float[Array, "N B K P H"] | tuple[Float[Array, "1 B K P H"], ...]
    prompt: Bool[Array, "B P"]


def decoded(batch: TokenBatch) -> TokenBatch:
    """The reply and the last token of the prompt, in whose place the decoder reads its start token; the rest becomes padding."""
    prompt = in_prompt(batch.segments, batch.loss_mask)
    follows = prompt[:, 1:] & (batch.segments[:, 1:] == batch.segments[:, :-1])
    kept = (batch.segments != 0) & ~(prompt & jnp.pad(follows, ((0, 0), (0, 1))))
    return dataclasses.replace(batch, segments=jnp.where(kept, batch.segments, 0))


def build_encoder_decoder(config: ModelConfig) -> Model:
    """The encoder-decoder of this config as pure functions.

    `scores` are of whole rows: both halves read all of a row, the decoder one token behind, and the score stands where it has the last
    token before it. `values` and `token_scores` are of replies, as log-probs are. Both heads are a dense layer, tanh and one number.
    """
    c = config
    dtype = jnp.dtype(c.dtype)
    table = Embedding(c.vocab, c.width, c.width**-0.5 / c.output_scale if c.tied else 1.0)
    encoder, decoder = Stack(c, crossed=False), Stack(c, crossed=True)
    output, score = Unembed(c.width, c.vocab), ScalarHead(zero=c.lm_head)
    pool = Project((c.width,), (c.width,), c.width**-0.5, bias=True, dtype=dtype)

    def init(key: jax.Array) -> Params:
        keys = dict(
            zip(("tokens", "encoder", "decoder", "unembed", "pool", "score"), jax.random.split(key, 6), strict=True)
        )
        x, one = jnp.zeros((1, 1, c.width), dtype), jnp.ones((1, 1), jnp.int32)
        visible = Visible(one, one)
        params: Params = {
            "tokens": table.init(keys["tokens"], jnp.zeros((1, 1), jnp.int32))["params"],
            "encoder": encoder.init(keys["encoder"], x, visible)["params"],
            "decoder": decoder.init(keys["decoder"], x, visible, memory=x, of_memory=visible)["params"],
        }
        if c.lm_head and not c.tied:
            params["unembed"] = output.init(keys["unembed"], x)["params"]
        if c.scalar_head:
            params["pool"] = pool.init(keys["pool"], x)["params"]
            params["score"] = score.init(keys["score"], x)["params"]
        return params

    def embed(params: Params, tokens: jax.Array) -> jax.Array:
        rows = cast(jax.Array, table.apply({"params": params["tokens"]}, tokens)).astype(dtype)
        return rows if c.embedding_scale == 1.0 else rows * jnp.asarray(c.embedding_scale, dtype)

    def encode(params: Params, tokens: jax.Array, segments: jax.Array) -> jax.Array:
        x = embed(params, tokens)
        return cast(Any, encoder.apply({"params": params["encoder"]}, x, Visible(segments, segments, causal=False)))[0]

    def decode_after(params: Params, tokens: jax.Array, visible: Visible, **more: Any) -> Any:
        return decoder.apply({"params": params["decoder"]}, embed(params, tokens), visible, **more)

    def read(params: Params, batch: TokenBatch, prompt: jax.Array, inputs: jax.Array, segments: jax.Array) -> jax.Array:
        """[B, T, D] of a decoder that reads `inputs` where `segments` are not 0, and of each segment the `prompt`."""
        sources = jnp.where(prompt, batch.segments, 0)
        memory = encode(params, batch.tokens, sources)
        of_memory = Visible(segments, sources, causal=False)
        return decode_after(params, inputs, Visible(segments, segments), memory=memory, of_memory=of_memory)[0]

    def hidden(params: Params, batch: TokenBatch) -> jax.Array:
        prompt = in_prompt(batch.segments, batch.loss_mask)
        return read(params, batch, prompt, jnp.where(prompt, c.start, batch.tokens), decoded(batch).segments)

    def whole(params: Params, batch: TokenBatch) -> jax.Array:
        real = batch.segments != 0
        before = jnp.pad(batch.tokens[:, :-1], ((0, 0), (1, 0)))
        begins = jnp.pad(batch.segments[:, :-1], ((0, 0), (1, 0))) != batch.segments
        return read(params, batch, real, jnp.where(begins, c.start, before), batch.segments)

    def scalar(params: Params, x: jax.Array) -> jax.Array:
        if not c.scalar_head:
            raise ValueError(f"this model has head={c.head!r}; scores and values need a scalar head")
        pooled = jnp.tanh(cast(jax.Array, pool.apply({"params": params["pool"]}, x)))
        return cast(jax.Array, score.apply({"params": params["score"]}, pooled))

    def scores(params: Params, batch: TokenBatch) -> jax.Array:
        last = last_index(batch.segments != 0)
        x = jnp.take_along_axis(whole(params, batch), last[:, None, None], axis=1)[:, 0]
        return scalar(params, x)

    def prefill(params: Params, batch: TokenBatch, length: int):
        """Encodes left-padded prompts; the decoder reads the start token of each in their last column."""
        rows, width = batch.tokens.shape
        memory = encode(params, batch.tokens, batch.segments)
        prompt, empty = batch.segments != 0, empty_cache(c, rows, length - width + 1)
        start, one = jnp.full((rows, 1), c.start, jnp.int32), jnp.ones((rows, 1), jnp.int32)
        x, layers, (keys, values) = decode_after(
            params,
            start,
            Visible(one, one),
            cache=empty.layers,
            memory=memory,
            of_memory=Visible(one, prompt.astype(jnp.int32), causal=False),
            keep=True,
        )
        keys, values = jax.tree.map(lambda x: x.astype(c.kept_dtype), (keys, values))
        own, _ = with_column(empty, jnp.int32(0), batch.positions[:, -1], jnp.ones((rows,), bool))
        return x[:, -1], CrossCache(own.read(layers), keys, values, prompt)

    def decode(params: Params, tokens, positions, column, filled, cache: CrossCache):
        """Reads one token per row; `column` counts from the first column of the prompts."""
        own, visible = with_column(cache.decoder, column - (cache.prompt.shape[1] - 1), positions, filled)
        x, layers, _ = decode_after(
            params,
            tokens[:, None],
            visible,
            cache=own.layers,
            cached=True,
            of_memory=Visible(visible.queries, cache.prompt.astype(jnp.int32), causal=False),
            kept=(cache.keys, cache.values),
        )
        return x[:, -1], dataclasses.replace(cache, decoder=own.read(layers))

    model = model_of(c, init, hidden, partial(output_logits, c), scalar, prefill, decode, decoded)
    return dataclasses.replace(model, scores=scores)
