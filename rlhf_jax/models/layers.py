"""The small parts of a decoder: one matrix product, norms, rotary positions, attention, feed-forward."""

from __future__ import annotations

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.config import ModelConfig
from rlhf_jax.sharding import constrain


class Project(nn.Module):
    """The one place where a matrix is applied: [..., *inputs] -> [..., *outputs].

    All leading dimensions are flattened into rows first: the transpose of a product with several leading dimensions leaves XLA a
    weight gradient in a layout that misses its fast matrix kernels on CPUs.
    """

    inputs: Sequence[int]
    outputs: Sequence[int]
    scale: float  # standard deviation of the initial weights
    bias: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        rows, columns = math.prod(self.inputs), math.prod(self.outputs)
        leading = x.shape[: x.ndim - len(self.inputs)]
        kernel = self.param("kernel", nn.initializers.normal(self.scale), (*self.inputs, *self.outputs))
        y = x.reshape(-1, rows).astype(self.dtype) @ kernel.reshape(rows, columns).astype(self.dtype)
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, tuple(self.outputs))
            y = y + bias.reshape(1, columns).astype(self.dtype)
        return y.reshape(*leading, *self.outputs)


class Norm(nn.Module):
    """RMSNorm (Zhang & Sennrich 2019) or LayerNorm (Ba et al. 2016), computed in float32 whatever comes in."""

    kind: str
    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        y = x.astype(jnp.float32)
        if self.kind == "layer":
            y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        y = y * self.param("scale", nn.initializers.ones, (x.shape[-1],))[None, None, :]
        if self.kind == "layer":
            y = y + self.param("bias", nn.initializers.zeros, (x.shape[-1],))[None, None, :]
        return y.astype(x.dtype)


def rotate(x: Float[Array, "B T H K"], positions: Int[Array, "B T"], base: float) -> Float[Array, "B T H K"]:
    """Rotary position embedding (Su et al. 2021): pair (i, i + K/2) is turned by positions * base^(-2i/K).

    In float32: bfloat16 rounds position 257 to 256.
    """
    half = x.shape[-1] // 2
    frequencies = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions.astype(jnp.float32)[:, :, None, None] * frequencies[None, None, None, :]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x.dtype)


def attend(
    q: Float[Array, "B T H K"],
    keys: Float[Array, "B G S K"],
    values: Float[Array, "B G S K"],
    mask: Bool[Array, "B T S"],
) -> Float[Array, "B T H K"]:
    """Softmax attention with grouped queries (Ainslie et al. 2023), heads of one group folded into rows; softmax in float32.

    A query without anything to attend to (padding) gets a plain mean: finite, and never used.
    """
    rows, length, heads, size = q.shape
    groups = keys.shape[1]
    q = q.reshape(rows, length, groups, heads // groups, size).transpose(0, 2, 3, 1, 4)
    scores = jnp.einsum("bgqk,bgsk->bgqs", q.reshape(rows, groups, -1, size), keys) / math.sqrt(size)
    scores = scores.reshape(rows, groups, heads // groups, length, -1).astype(jnp.float32)
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, -1e30), axis=-1).astype(values.dtype)
    out = jnp.einsum("bgqs,bgsk->bgqk", weights.reshape(rows, groups, -1, keys.shape[2]), values)
    out = out.reshape(rows, groups, heads // groups, length, size).transpose(0, 3, 1, 2, 4)
    return out.reshape(rows, length, heads, size)


class Attention(nn.Module):
    """Causal self-attention; with a cache, keys and values are written at (layer, column) and all its columns are read."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x, positions, mask, cache, layer, column):
        c = self.config
        width, size, dtype = (c.width,), c.head_size, jnp.dtype(c.dtype)
        scale = 1 / math.sqrt(c.width)
        q = Project(width, (c.heads, size), scale, c.bias, dtype, name="q")(x)
        k = Project(width, (c.kv_heads, size), scale, c.bias, dtype, name="k")(x)
        v = Project(width, (c.kv_heads, size), scale, c.bias, dtype, name="v")(x)
        if c.position == "rope":
            q, k = rotate(q, positions, c.rope_base), rotate(k, positions, c.rope_base)
        q = constrain(q, "batch", "length", "heads", "head_dim")
        keys, values = k.swapaxes(1, 2), v.swapaxes(1, 2)
        if cache is not None:
            cache = tuple(
                jax.lax.dynamic_update_slice(whole, new[None].astype(whole.dtype), (layer, 0, 0, column, 0))
                for whole, new in zip(cache, (keys, values), strict=True)
            )
            keys, values = (jax.lax.dynamic_index_in_dim(whole, layer, keepdims=False) for whole in cache)
        out = attend(q, keys, values, mask)
        return Project((c.heads, size), width, scale / math.sqrt(2 * c.layers), c.bias, dtype, name="o")(out), cache


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020): down(silu(gate x) * up x); or GELU (tanh form, as GPT-2): down(gelu(up x))."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x):
        c = self.config
        width, mlp, dtype = (c.width,), (c.mlp,), jnp.dtype(c.dtype)
        scale = 1 / math.sqrt(c.width)
        h = Project(width, mlp, scale, c.bias, dtype, name="up")(x)
        if c.activation == "swiglu":
            h = jax.nn.silu(Project(width, mlp, scale, c.bias, dtype, name="gate")(x)) * h
        else:
            h = jax.nn.gelu(h, approximate=True)
        h = constrain(h, "batch", "length", "mlp")
        return Project(mlp, width, 1 / math.sqrt(c.mlp * 2 * c.layers), c.bias, dtype, name="down")(h)
