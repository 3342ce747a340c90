"""The stack of decoders and encoders: embedding, a scan over identical layers, a final norm; and the heads of decoders."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.config import ModelConfig
from rlhf_jax.models.layers import Attention, FeedForward, Norm
from rlhf_jax.sharding import constrain


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); the norms may stand around both, or behind each sum, and both may read x."""

    config: ModelConfig

    @nn.compact
    def __call__(self, carry, layer, positions, mask, column):
        c = self.config
        x, cache = carry
        x = constrain(x, "batch", "length", None)
        norm = partial(Norm, c.norm, c.norm_eps)
        if c.norm_at == "after":
            attended, cache = Attention(c, name="attention")(x, positions, mask, cache, layer, column)
            x = norm(name="attention_norm")(x + attended)
            return (norm(name="mlp_norm")(x + FeedForward(c, name="mlp")(x)), cache), None
        attended, cache = Attention(c, name="attention")(
            norm(name="attention_norm")(x), positions, mask, cache, layer, column
        )
        if c.norm_at == "around":
            attended = norm(name="attention_post_norm")(attended)
        y = x if c.parallel else x + attended
        fed = FeedForward(c, name="mlp")(norm(name="mlp_norm")(y))
        if c.norm_at == "around":
            fed = norm(name="mlp_post_norm")(fed)
        return (x + attended + fed, cache), None


class Embedding(nn.Module):
    """Rows of a table, looked up by index."""

    rows: int
    width: int
    scale: float

    @nn.compact
    def __call__(self, indices: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        table = self.param("embedding", nn.initializers.normal(self.scale), (self.rows, self.width))
        return jnp.take(table, indices, axis=0)


class Unembed(nn.Module):
    """The output layer of an untied model."""

    width: int
    vocab: int

    @nn.compact
    def __call__(self, x: Float[Array, "*S D"]) -> Float[Array, "*S V"]:
        kernel = self.param("kernel", nn.initializers.normal(self.width**-0.5), (self.width, self.vocab))
        return x.astype(jnp.float32) @ kernel


class ScalarHead(nn.Module):
    """One number per position, initially of unit scale or zero.

    Source: Stiennon et al. 2020: weights of a reward head from N(0, 1 / (d + 1)), variance; a value head starts at 0.
    """

    zero: bool

    @nn.compact
    def __call__(self, x: Float[Array, "*S D"]) -> Float[Array, "*S"]:
        scale = 0.0 if self.zero else (x.shape[-1] + 1) ** -0.5
        kernel = self.param("kernel", nn.initializers.normal(scale), (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, ())
        return x.astype(jnp.float32) @ kernel + bias


class Decoder(nn.Module):
    """tokens [B, T] -> hidden [B, T, D]; the heads are called on what comes out. An encoder is the same under another mask."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        mask: Bool[Array, "B T S"],
        cache: tuple[jax.Array, jax.Array] | None = None,
        column: Int[Array, ""] | int = 0,
    ):
        c = self.config
        # Rows of unit scale keep what token it is visible beside what the first layers write; a tied table starts
        # smaller, as it also makes the logits.
        x = Embedding(c.vocab, c.width, c.width**-0.5 if c.tied else 1.0, name="tokens")(tokens)
        if c.position == "learned":
            x = x + Embedding(c.max_length, c.width, 0.02, name="places")(positions)
        if c.token_types:
            x = x + Embedding(c.token_types, c.width, 0.02, name="types")(jnp.zeros_like(tokens))
        if c.embedding_norm:
            x = Norm(c.norm, c.norm_eps, name="embedding_norm")(x)
        x = x.astype(jnp.dtype(c.dtype))
        if c.embedding_scale != 1.0:
            x = x * jnp.asarray(c.embedding_scale, x.dtype)
        block = nn.remat(Block, prevent_cse=False) if c.remat else Block
        layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=cast(Any, (0, nn.broadcast, nn.broadcast, nn.broadcast)),  # flax declares an int
            length=c.layers,
        )
        (x, written), _ = layers(c, name="layers")((x, cache), jnp.arange(c.layers), positions, mask, column)
        return x if c.norm_at == "after" else Norm(c.norm, c.norm_eps, name="final_norm")(x), written
