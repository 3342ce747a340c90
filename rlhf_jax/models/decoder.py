"""The decoder: embedding, a scan over identical layers, a final norm, and its heads."""

from __future__ import annotations

from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.config import ModelConfig
from rlhf_jax.models.layers import Attention, FeedForward, Norm
from rlhf_jax.sharding import constrain


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    config: ModelConfig

    @nn.compact
    def __call__(self, carry, layer, positions, mask, column):
        c = self.config
        x, cache = carry
        x = constrain(x, "batch", "length", None)
        attended, cache = Attention(c, name="attention")(
            Norm(c.norm, c.norm_eps, name="attention_norm")(x), positions, mask, cache, layer, column
        )
        x = x + attended
        x = x + FeedForward(c, name="mlp")(Norm(c.norm, c.norm_eps, name="mlp_norm")(x))
        return (x, cache), None


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
    """tokens [B, T] -> hidden [B, T, D]; the heads are called on what comes out."""

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
        x = x.astype(jnp.dtype(c.dtype))
        block = nn.remat(Block, prevent_cse=False) if c.remat else Block
        layers = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=cast(Any, (0, nn.broadcast, nn.broadcast, nn.broadcast)),  # flax declares an int
            length=c.layers,
        )
        (x, written), _ = layers(c, name="layers")((x, cache), jnp.arange(c.layers), positions, mask, column)
        return Norm(c.norm, c.norm_eps, name="final_norm")(x), written
