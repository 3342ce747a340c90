"""Encoders: the decoder's stack of layers under a mask that hides nothing of a segment, and the heads that make sense of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rlhf_jax.config import ModelConfig
from rlhf_jax.masking import first_index
from rlhf_jax.models.api import Model
from rlhf_jax.models.attention import softcap
from rlhf_jax.models.decoder import Decoder, ScalarHead, Unembed
from rlhf_jax.models.layers import ACTIVATIONS, Norm, Project
from rlhf_jax.models.visible import Visible
from rlhf_jax.types import Params, TokenBatch

HEADS = ("transform", "unembed", "pool", "score", "classify")


class Transform(nn.Module):
    """What a masked language model puts before its table of tokens: dense, activation, norm (Devlin et al. 2019, released code)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "*S D"]) -> Float[Array, "*S D"]:
        c = self.config
        x = Project((c.width,), (c.width,), c.width**-0.5, True, jnp.dtype(c.dtype), name="dense")(x)
        return Norm(c.norm, c.norm_eps, name="norm")(ACTIVATIONS[c.activation](x))


def build_encoder(config: ModelConfig) -> Model:
    """The encoder of this config as pure functions.

    Scores and classes are read off the first real token of a row ([CLS]), through a dense layer and tanh, so a row holds one text.
    """
    c = config
    stack, transform, output = Decoder(c), Transform(c), Unembed(c.width, c.vocab)
    pool = Project((c.width,), (c.width,), c.width**-0.5, bias=True, dtype=jnp.dtype(c.dtype))
    score = ScalarHead(zero=False)
    classify = Project((c.width,), (c.classes or 1,), (c.width + 1) ** -0.5, bias=True)

    def init(key: jax.Array) -> Params:
        first, second, third = jax.random.split(key, 3)
        tokens, x = jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, c.width))
        params = dict(stack.init(first, tokens, tokens, Visible(tokens, tokens, causal=False))["params"])
        if c.lm_head:
            params["transform"] = transform.init(second, x)["params"]
            kernel = {} if c.tied else cast(Any, output.init(third, x)["params"])
            params["unembed"] = {"bias": jnp.zeros(c.vocab), **kernel}
        elif c.head != "none":
            params["pool"] = pool.init(second, x)["params"]
            name, head = ("score", score) if c.scalar_head else ("classify", classify)
            params[name] = head.init(third, x)["params"]
        return params

    def hidden(params: Params, batch: TokenBatch) -> jax.Array:
        body = {name: value for name, value in params.items() if name not in HEADS}
        visible = Visible(batch.segments, batch.segments, causal=False)
        return cast(Any, stack.apply({"params": body}, batch.tokens, batch.positions, visible))[0]

    def unembed(params: Params, x: jax.Array) -> jax.Array:
        if not c.lm_head:
            raise ValueError(f"this encoder has head={c.head!r}; logits of tokens need head='lm'")
        rows = cast(jax.Array, transform.apply({"params": params["transform"]}, x.reshape(-1, c.width)))
        table = params["tokens"]["embedding"].T if c.tied else params["unembed"]["kernel"]
        logits = rows.astype(jnp.float32) @ table + params["unembed"]["bias"][None]
        return softcap(logits.reshape(*x.shape[:-1], c.vocab), c.logit_softcap)

    def pooled(params: Params, batch: TokenBatch) -> jax.Array:
        first = first_index(batch.segments != 0)
        x = jnp.take_along_axis(hidden(params, batch), first[:, None, None], axis=1)[:, 0]
        return jnp.tanh(cast(jax.Array, pool.apply({"params": params["pool"]}, x)))

    def scores(params: Params, batch: TokenBatch) -> jax.Array:
        if not c.scalar_head:
            raise ValueError(f"this encoder has head={c.head!r}; scores need head='scalar'")
        return cast(jax.Array, score.apply({"params": params["score"]}, pooled(params, batch)))

    def class_logits(params: Params, batch: TokenBatch) -> jax.Array:
        if c.head != "classes":
            raise ValueError(f"this encoder has head={c.head!r}; class logits need head='classes'")
        return cast(jax.Array, classify.apply({"params": params["classify"]}, pooled(params, batch)))

    return Model(
        config=c,
        init=init,
        decoded=lambda batch: batch,
        hidden=hidden,
        unembed=unembed,
        logits=lambda params, batch: unembed(params, hidden(params, batch)),
        scores=scores,
        class_logits=class_logits,
        **{name: _refused(name) for name in _OF_DECODERS},
    )


_OF_DECODERS = (
    *("scalar", "logprobs", "token_stats", "token_logits", "token_scores", "values"),
    *("ready", "prefill", "decode"),
)


def _refused(name: str) -> Callable[..., NoReturn]:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise ValueError(
            f"{name} is of decoders; this model is an encoder (causal=False), whose tokens see those behind them too: it gives "
            "hidden, logits (head 'lm'), scores ('scalar') and class_logits ('classes')"
        )

    return refuse
