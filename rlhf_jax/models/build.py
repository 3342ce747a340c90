"""From a config to a model's pure functions."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp

from rlhf_jax.config import ModelConfig
from rlhf_jax.models.api import Model
from rlhf_jax.models.assemble import model_of
from rlhf_jax.models.cache import Cache, empty_cache, forked, with_column
from rlhf_jax.models.decoder import Decoder, ScalarHead, Unembed, output_logits
from rlhf_jax.models.encoder import build_encoder
from rlhf_jax.models.encoder_decoder import build_encoder_decoder
from rlhf_jax.models.groups import Group
from rlhf_jax.models.kernels import takes_parts
from rlhf_jax.models.visible import Visible
from rlhf_jax.types import Params, TokenBatch


def build_model(config: ModelConfig) -> Model:
    """The model of this config as pure functions."""
    build = {"decoder": build_decoder, "encoder": build_encoder, "encoder-decoder": build_encoder_decoder}
    return build[config.kind](config)


def build_decoder(config: ModelConfig) -> Model:
    """The decoder of this config as pure functions."""
    c = config
    decoder = Decoder(c)
    output = Unembed(c.width, c.vocab)
    # A model with both heads is a policy with a value head, which starts at 0; a scalar head alone starts with unit scale.
    head = ScalarHead(zero=c.lm_head)

    def init(key: jax.Array) -> Params:
        trunk, unembed, score = jax.random.split(key, 3)
        tokens = jnp.zeros((1, 1), jnp.int32)
        params = dict(decoder.init(trunk, tokens, tokens, Visible(tokens, tokens))["params"])
        width = jnp.zeros((1, 1, c.width))
        if c.lm_head and not c.tied:
            params["unembed"] = output.init(unembed, width)["params"]
        if c.scalar_head:
            params["score"] = head.init(score, width)["params"]
        return params

    def trunk(params: Params, *given, **more) -> Any:
        body = {name: value for name, value in params.items() if name not in ("unembed", "score")}
        return decoder.apply({"params": body}, *given, **more)

    def hidden(params: Params, batch: TokenBatch, group: Group | None = None):
        rows, length = batch.tokens.shape
        if group is not None:
            group = group.of(rows, length) if takes_parts(length, group.last) else None
        tokens, positions, segments = batch.tokens, batch.positions, batch.segments
        if group is not None:
            tokens, positions, segments = (group.fold(x) for x in (tokens, positions, segments))
        out = trunk(params, tokens, positions, Visible(segments, segments, group=group))[0]
        return out if group is None else group.unfold(out)

    def scalar(params: Params, x: jax.Array) -> jax.Array:
        if not c.scalar_head:
            raise ValueError(f"this model has head={c.head!r}; scores and values need a scalar head")
        return cast(jax.Array, head.apply({"params": params["score"]}, x))

    def prefill(params: Params, batch: TokenBatch, length: int):
        """Reads left-padded prompts into columns 0 .. T-1 of a new cache."""
        rows, width = batch.tokens.shape
        cache, visible = empty_cache(c, rows, length), Visible(batch.segments, batch.segments)
        h, layers = trunk(params, batch.tokens, batch.positions, visible, cache.layers)
        filled, positions = (jnp.pad(x, ((0, 0), (0, length - width))) for x in (batch.segments != 0, batch.positions))
        return h[:, -1], dataclasses.replace(cache, filled=filled, positions=positions).read(layers)

    def decode(params: Params, tokens, positions, column, filled, cache: Cache):
        """Reads one token per row into `column`; rows with `filled` False leave nothing to attend to there."""
        cache, visible = with_column(cache, column, positions, filled)
        shared = None if cache.shared is None else cache.shared.layers
        h, layers = trunk(
            params, tokens[:, None], positions[:, None], visible, cache.layers, cached=True, shared=shared
        )
        return h[:, -1], cache.read(layers)

    def of(group: Group | None) -> Model:
        reading = partial(hidden, group=group)
        model = model_of(c, init, reading, partial(output_logits, c), scalar, prefill, decode)
        return dataclasses.replace(model, grouped=of, fork=partial(forked, c))

    return of(None)
