"""The small parts of a model: one matrix product, norms, rotary positions, attention, feed-forward."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rlhf_jax.config import ModelConfig
from rlhf_jax.models.attention import attend
from rlhf_jax.models.cache import at_layer, written
from rlhf_jax.models.kernels import platform
from rlhf_jax.sharding import PARAMETERS, constrain, gathered, in_pieces, pieces

Turns = tuple[Float[Array, "B T 1 F"], Float[Array, "B T 1 F"]]
"""Cosine and sine of each rotary pair at each position."""


class Project(nn.Module):
    """The one place where a matrix is applied: [..., *inputs] -> [..., *outputs].

    All leading dimensions are flattened into rows first: the transpose of a product with several leading dimensions leaves XLA a
    weight gradient in a layout that misses its fast matrix kernels on CPUs. Not where a text lies on several devices: rows and pieces of
    their columns do not flatten into pieces.
    """

    inputs: Sequence[int]
    outputs: Sequence[int]
    scale: float  # standard deviation of the initial weights
    bias: bool = False
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"  # what of the layer around it is made again in the backward pass

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        rows, columns = math.prod(self.inputs), math.prod(self.outputs)
        leading = x.shape[: x.ndim - len(self.inputs)]
        flat = x.reshape(*(leading if self._in_pieces(leading) else (-1,)), rows).astype(self.dtype)
        if self.has_variable("params", "columns"):
            y = of_few_rows(flat, self.get_variable("params", "columns"))
        else:
            kernel = self.param("kernel", nn.initializers.normal(self.scale), (*self.inputs, *self.outputs))
            place = f"{self.name}/kernel"
            names = PARAMETERS[place] if place in PARAMETERS else (None,) * kernel.ndim
            product = partial(_product, names=names)
            if in_pieces() and self.remat == "none":  # or the backward pass would keep every kernel in one piece
                product = jax.checkpoint(product, prevent_cse=False)
            y = product(flat, kernel)
        if self.has_variable("params", "lora_a"):  # see models/lora.py
            a, b = self.get_variable("params", "lora_a"), self.get_variable("params", "lora_b")
            y = y + (flat @ a.reshape(rows, -1).astype(self.dtype)) @ b.reshape(-1, columns).astype(self.dtype)
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, tuple(self.outputs))
            y = y + bias.reshape((1,) * (y.ndim - 1) + (columns,)).astype(self.dtype)
        return y.reshape(*leading, *self.outputs)

    @staticmethod
    def _in_pieces(leading: Sequence[int]) -> bool:
        return len(leading) > 1 and pieces("length", leading[1]) > 1


def _product(x: Float[Array, "*R K"], kernel: Array, names: Sequence[str | None]) -> Float[Array, "*R N"]:
    """Rows by a kernel, whose pieces come together for it and whose axes of inputs and outputs are one each."""
    return x @ gathered(kernel.astype(x.dtype), *names).reshape(x.shape[-1], -1)


def of_few_rows(x: Float[Array, "R K"], columns: Float[Array, "N K"]) -> Float[Array, "R N"]:
    """x @ columns.T: on a CPU up to twice as fast for few rows where the columns of a matrix are its rows, and come out as such too."""
    # Without the barrier XLA makes it x @ columns.T.
    return jax.lax.optimization_barrier(columns @ x.T).T


class Norm(nn.Module):
    """RMSNorm (Zhang & Sennrich 2019) or LayerNorm (Ba et al. 2016) over the last axis, computed in float32 whatever comes in."""

    kind: str
    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "*S D"]) -> Float[Array, "*S D"]:
        y = x.astype(jnp.float32)
        if self.kind == "layer":
            y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        row = (1,) * (x.ndim - 1) + (x.shape[-1],)
        start = nn.initializers.zeros if self.kind == "rms+1" else nn.initializers.ones
        scale = self.param("scale", start, (x.shape[-1],)).reshape(row)
        y = y * (1.0 + scale if self.kind == "rms+1" else scale)
        if self.kind == "layer":
            y = y + self.param("bias", nn.initializers.zeros, (x.shape[-1],)).reshape(row)
        return y.astype(x.dtype)


def rotary_frequencies(config: ModelConfig, *, local: bool = False) -> Float[np.ndarray, "F"]:
    """By how much each rotary pair turns from one position to the next, in radians; `local`: on layers with a window."""
    half = config.rotary_size // 2
    base, scaling = config.rope_base, config.rope_scaling
    if local and config.local_rope_base is not None:
        base, scaling = config.local_rope_base, None
    frequencies = np.float32(base) ** (-np.arange(half, dtype=np.float32) / half)
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    turns = scaling.original_length * frequencies / (2 * math.pi)
    kept = np.clip((turns - scaling.low_turns) / (scaling.high_turns - scaling.low_turns), 0.0, 1.0)
    return kept * frequencies + (1.0 - kept) * frequencies / scaling.factor


TABLE = 2**18
"""Numbers that a table of cosines may have, as a part of the program."""


def rotary_turns(positions: Int[Array, "B T"], frequencies: Float[np.ndarray, "F"], longest: int) -> Turns:
    """Cosine and sine of positions * frequencies, in float32: bfloat16 rounds position 257 to 256. Positions from `longest` on may
    get NaN.

    On a CPU they come from a table: XLA makes them again wherever they are read there, one by one, for every head of every layer.
    """
    if platform() == "cpu" and longest * len(frequencies) <= TABLE:
        angles = np.arange(longest, dtype=np.float32)[:, None] * frequencies
        cos, sin = (jnp.take(jnp.asarray(table), positions, axis=0) for table in (np.cos(angles), np.sin(angles)))
    else:
        angles = positions.astype(jnp.float32)[:, :, None] * frequencies[None, None]
        cos, sin = jnp.cos(angles), jnp.sin(angles)
    return cos[:, :, None], sin[:, :, None]


def rotate(x: Float[Array, "B T H K"], turns: Turns) -> Float[Array, "B T H K"]:
    """Rotary position embedding (Su et al. 2021): pair (i, i + F) is turned by the i-th angle; what is behind stays. In float32."""
    cos, sin = turns
    half = cos.shape[-1]
    left, right = jnp.split(x[..., : 2 * half].astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1).astype(x.dtype)
    return turned if 2 * half == x.shape[-1] else jnp.concatenate([turned, x[..., 2 * half :]], axis=-1)


class Attention(nn.Module):
    """Self-attention to what is visible; keys and values are written to a cache at this layer, and read from it where they are `cached`,
    with what rows of it have `shared`."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x, positions, visible, cache, layer, cached, shared=None, bias=None):
        c = self.config
        q, k, v = queries(c)(x), *keys_and_values(c, x)
        if c.qk_norm:
            q, k = Norm(c.norm, c.norm_eps, name="q_norm")(q), Norm(c.norm, c.norm_eps, name="k_norm")(k)
        local = jnp.all(layer != jnp.asarray(c.full_layers, jnp.int32)) if c.full_layers else True
        if c.position == "rope":
            longest = max(c.max_length, visible.longest)
            turns = rotary_turns(positions, rotary_frequencies(c), longest)
            if c.local_rope_base is not None:
                near = rotary_turns(positions, rotary_frequencies(c, local=True), longest)
                turns = jax.tree.map(partial(jnp.where, local), near, turns)
            q, k = rotate(q, turns), rotate(k, turns)
        keys, values = k.swapaxes(1, 2), v.swapaxes(1, 2)
        if cache is not None:
            cache = written(cache, (keys, values), layer, visible.first)
            if cached:
                keys, values = (x.astype(k.dtype) for x in at_layer(cache, layer))
        q = constrain(q, "batch", "length", "heads", "head_dim")
        how = {"scale": c.query_scale, "cap": c.attention_softcap, "bias": bias, "window": c.window, "local": local}
        if shared is not None:
            in_front, theirs = at_layer(shared, layer)
            if in_front.dtype != k.dtype:
                # With what differs at every turn, or a compiler would keep both in the other dtype from before the first.
                in_front, theirs, _ = jax.lax.optimization_barrier((in_front, theirs, k))
            how["shared"] = in_front.astype(k.dtype), theirs.astype(k.dtype)
        return attended(c)(attend(q, keys, values, visible, **how)), cache


class CrossAttention(nn.Module):
    """Attention to what an encoder made of a prompt, `memory` [B, P, D], or to the keys and values of it that were `kept` before."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x, memory, visible, kept=None):
        c = self.config
        q = constrain(queries(c)(x), "batch", "length", "heads", "head_dim")
        if kept is None:
            k, v = keys_and_values(c, memory)
            kept = k.swapaxes(1, 2), v.swapaxes(1, 2)
        keys, values = (x.astype(q.dtype) for x in kept)
        return attended(c)(attend(q, keys, values, visible, scale=c.query_scale, cap=c.attention_softcap)), kept


def queries(config: ModelConfig) -> Project:
    """The projection of queries, inside the module that calls it; scores begin with unit spread whatever the query scale is."""
    c = config
    scale = 1.0 if c.query_scale is None else c.head_size**-0.5 / c.query_scale
    return Project(
        (c.width,),
        (c.heads, c.head_size),
        scale / math.sqrt(c.width),
        c.bias or c.qkv_bias,
        jnp.dtype(c.dtype),
        c.remat,
        name="q",
    )


def keys_and_values(config: ModelConfig, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[B, T, G, K] each, by projections inside the module that calls it."""
    c = config
    project = partial(
        Project,
        (c.width,),
        (c.kv_heads, c.head_size),
        1 / math.sqrt(c.width),
        c.bias or c.qkv_bias,
        jnp.dtype(c.dtype),
        c.remat,
    )
    return project(name="k")(x), project(name="v")(x)


def attended(config: ModelConfig) -> Project:
    """The projection of what the heads read, inside the module that calls it."""
    c = config
    scale = 1 / math.sqrt(c.width) / math.sqrt(2 * c.layers)
    return Project((c.heads, c.head_size), (c.width,), scale, c.bias, jnp.dtype(c.dtype), c.remat, name="o")


class RelativeBias(nn.Module):
    """What attention adds to scores for how far a key is from a query: a learned number per head and bucket of distances.

    Of each direction (a decoder has one) half of the buckets are of one distance each; the rest grow with the logarithm of it up to
    `relative_distance`, and the last has all beyond. Source: Raffel et al. 2020 (arXiv:1910.10683), section 2.1, released code.
    """

    config: ModelConfig
    both_ways: bool

    @nn.compact
    def __call__(self, apart: Int[Array, "B T S"]) -> Float[Array, "B H T S"]:
        c = self.config
        table = self.param("embedding", nn.initializers.normal(c.width**-0.5), (c.relative_buckets, c.heads))
        buckets = c.relative_buckets // 2 if self.both_ways else c.relative_buckets
        of_distance = jnp.asarray(distance_buckets(buckets, c.relative_distance))
        behind = jnp.abs(apart) if self.both_ways else jnp.maximum(apart, 0)
        bucket = of_distance[jnp.minimum(behind, c.relative_distance)]
        if self.both_ways:
            bucket = bucket + jnp.where(apart < 0, buckets, 0)
        return jnp.moveaxis(table[bucket], -1, 1).astype(jnp.float32)


def distance_buckets(buckets: int, longest: int) -> np.ndarray:
    """[longest + 1], the bucket of each distance; in float32, as in the released code, where rounding decides."""
    distance, exact = np.arange(longest + 1), buckets // 2
    share = np.log(np.maximum(distance, exact).astype(np.float32) / exact) / np.float32(math.log(longest / exact))
    grown = exact + (share * (buckets - exact)).astype(np.int32)
    return np.where(distance < exact, distance, np.minimum(grown, buckets - 1)).astype(np.int32)


GATED = ("swiglu", "geglu")
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "swiglu": jax.nn.silu,
    "geglu": partial(jax.nn.gelu, approximate=True),
    "gelu": partial(jax.nn.gelu, approximate=True),
    "gelu_exact": partial(jax.nn.gelu, approximate=False),
    "relu": jax.nn.relu,
}


class FeedForward(nn.Module):
    """SwiGLU or GEGLU (Shazeer 2020): down(act(gate x) * up x); or down(act(up x)), act being GELU or ReLU.

    GELU is its tanh form (GPT-2, Gemma), but for `gelu_exact`.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x):
        c = self.config
        width, mlp, dtype = (c.width,), (c.mlp,), jnp.dtype(c.dtype)
        scale = 1 / math.sqrt(c.width)
        h = Project(width, mlp, scale, c.bias, dtype, c.remat, name="up")(x)
        activate = ACTIVATIONS[c.activation]
        if c.activation in GATED:
            gate = Project(width, mlp, scale, c.bias, dtype, c.remat, name="gate")(x)
            h = activate(gate) * h
        else:
            h = activate(h)
        h = constrain(h, "batch", "length", "mlp")
        return Project(mlp, width, 1 / math.sqrt(c.mlp * 2 * c.layers), c.bias, dtype, c.remat, name="down")(h)
