"""The stack of decoders and encoders: embedding, a scan over identical layers, a final norm; and their heads."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rlhf_jax.config import ModelConfig
from rlhf_jax.models.attention import softcap
from rlhf_jax.models.cache import KeysAndValues
from rlhf_jax.models.layers import Attention, CrossAttention, FeedForward, Norm, RelativeBias, of_few_rows
from rlhf_jax.models.params import layers_of
from rlhf_jax.models.visible import Visible
from rlhf_jax.sharding import constrain, pieces
from rlhf_jax.types import Params, pytree


@pytree
class Reading:
    """What all layers are told: where tokens stand, what each may attend to, and of an encoder-decoder what the encoder has read."""

    positions: jax.Array  # [B, T]
    visible: Visible
    bias: jax.Array | None = None  # [1 or B, H, T, S]
    memory: jax.Array | None = None  # [B, P, D]; None where keys and values of it are kept
    of_memory: Visible | None = None
    shared: tuple[KeysAndValues, ...] | None = None  # what of a cache stands in front of its columns, for several rows
    cached: bool = flax.struct.field(pytree_node=False, default=False)  # whether the keys are those of the cache
    keep: bool = flax.struct.field(pytree_node=False, default=False)  # whether these keys and values are to come out


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); the norms may stand around both, or behind each sum, and both may read x.

    With a memory, x + cross(x) stands between the two.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, carry, layer, kept, given: Reading):
        c = self.config
        x, cache = carry
        x = constrain(x, "batch", "length", None)
        norm = partial(Norm, c.norm, c.norm_eps)
        attention = partial(
            Attention(c, name="attention"),
            positions=given.positions,
            visible=given.visible,
            cache=cache,
            layer=layer,
            cached=given.cached,
            shared=None if given.shared is None else given.shared[0],
            bias=given.bias,
        )
        if c.norm_at == "after":
            attended, cache = attention(x)
            x = norm(name="attention_norm")(x + attended)
            return (norm(name="mlp_norm")(x + FeedForward(c, name="mlp")(x)), cache), None
        attended, cache = attention(norm(name="attention_norm")(x))
        if c.norm_at == "around":
            attended = norm(name="attention_post_norm")(attended)
        total = x + attended
        if given.of_memory is not None:
            read, kept = Cross(c, name="cross")(total, given.memory, given.of_memory, kept)
            total = total + read
        fed = FeedForward(c, name="mlp")(norm(name="mlp_norm")(x if c.parallel else total))
        if c.norm_at == "around":
            fed = norm(name="mlp_post_norm")(fed)
        return (total + fed, cache), kept if given.keep else None


class Cross(nn.Module):
    """attention(norm(x)) to a memory."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x, memory, visible, kept):
        c = self.config
        return CrossAttention(c, name="attention")(Norm(c.norm, c.norm_eps, name="norm")(x), memory, visible, kept)


def run_layers(module: nn.Module, count: int, x: jax.Array, cache: Any, given: Reading, kept: Any = None):
    """(x behind `count` layers, cache, keys and values of the memory) by modules inside the one that calls it, and has a config."""
    config: ModelConfig = module.config  # pyright: ignore[reportAttributeAccessIssue]
    if config.unroll and not module.is_initializing():
        return _one_by_one(config, layers_of(module.get_variable("params", "layers")), x, cache, given, kept)
    block = _block(config, prevent_cse=False)
    layers = nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=cast(Any, (0, 0, nn.broadcast)),  # flax declares an int
        length=count,
        # Which traces a layer once more; and on which it depends what parameters a seed gives.
        check_constancy_invariants=module.is_initializing(),
    )
    together = None if cache is None else cache[0]
    (x, together), kept = layers(config, name="layers")((x, together), jnp.arange(count), kept, given)
    return x, None if cache is None else (together,), kept


def _one_by_one(config: ModelConfig, layers: Sequence[Params], x: jax.Array, cache: Any, given: Reading, kept: Any):
    """As `run_layers`, each layer with parameters, a cache, and keys and values of the memory of its own."""
    block = _block(config)(config, parent=None)
    keep, caches = [], []
    for number, params in enumerate(layers):
        own = None if cache is None else cache[number]
        there = None if kept is None else tuple(part[number][0] for part in kept)
        told = given if given.shared is None else dataclasses.replace(given, shared=given.shared[number : number + 1])
        (x, own), found = block.apply({"params": params}, (x, own), jnp.int32(number), there, told)
        keep.append(found)
        caches.append(own)
    kept = tuple(tuple(part[None] for part in parts) for parts in zip(*keep, strict=True)) if given.keep else None
    return x, None if cache is None else tuple(caches), kept


def _block(config: ModelConfig, *, prevent_cse: bool = True) -> Any:
    """`Block`, with what the config says of it made again in the backward pass."""
    match config.remat:
        case "none":
            return Block
        case "products":  # those of attention have a dimension of the batch, and are made again
            kept = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            return nn.remat(Block, prevent_cse=prevent_cse, policy=kept)
        case "layers":
            return nn.remat(Block, prevent_cse=prevent_cse)


class Embedding(nn.Module):
    """Rows of a table, looked up by index."""

    rows: int
    width: int
    scale: float

    @nn.compact
    def __call__(self, indices: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        table = self.param("embedding", nn.initializers.normal(self.scale), (self.rows, self.width))
        if pieces("length", indices.shape[1]) == pieces("replicas", indices.shape[0]) == 1:
            return jnp.take(table, indices, axis=0)
        # Each device looks all tokens up in its piece of the width. From there to pieces of rows and texts one axis after the other: XLA
        # knows no exchange that does both, and would have all of it everywhere.
        x = constrain(jnp.take(table, constrain(indices, "replicas", None), axis=0), "replicas", None, "embed")
        return constrain(constrain(x, "replicas", "length", "shards"), "batch", "length", None)


class Unembed(nn.Module):
    """The output layer of an untied model."""

    width: int
    vocab: int

    @nn.compact
    def __call__(self, x: Float[Array, "*S D"]) -> Float[Array, "*S V"]:
        kernel = self.param("kernel", nn.initializers.normal(self.width**-0.5), (self.width, self.vocab))
        return x.astype(jnp.float32) @ kernel


def output_logits(config: ModelConfig, params: Params, x: Float[Array, "*S D"]) -> Float[Array, "*S V"]:
    """Logits from hidden states, by the output layer or by the table of tokens. Raises: ValueError for a model without either."""
    c = config
    if not c.lm_head:
        raise ValueError("this model has a scalar head only; it gives scores and values, not log-probs")
    rows = x.reshape(-1, c.width)
    if c.output_scale != 1.0:
        rows = rows * jnp.asarray(c.output_scale, rows.dtype)
    # In float32: a softmax over bfloat16 logits loses a third of a nat's last digits.
    if "columns" in params.get("unembed", {}):
        logits = of_few_rows(rows.astype(jnp.float32), params["unembed"]["columns"])
    elif c.tied:
        logits = rows.astype(jnp.float32) @ params["tokens"]["embedding"].T
    else:
        logits = cast(jax.Array, Unembed(c.width, c.vocab).apply({"params": params["unembed"]}, rows))
    return softcap(logits.reshape(*x.shape[:-1], c.vocab), c.logit_softcap)


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
        visible: Visible,
        cache: tuple[KeysAndValues, ...] | None = None,
        cached: bool = False,
        shared: tuple[KeysAndValues, ...] | None = None,
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
        given = Reading(constrain(positions, "batch", "length"), visible.laid(), shared=shared, cached=cached)
        x, written, _ = run_layers(self, c.layers, x, cache, given)
        return x if c.norm_at == "after" else Norm(c.norm, c.norm_eps, name="final_norm")(x), written


class Stack(nn.Module):
    """Hidden [B, T, D] -> hidden, with relative positions: either half of an encoder-decoder; the one that is `crossed` is the decoder.

    Comes out with the cache, and with the keys and values of the memory where these are to be kept.
    """

    config: ModelConfig
    crossed: bool

    @nn.compact
    def __call__(self, x, visible, *, cache=None, kept=None, **told):
        c = self.config
        bias = RelativeBias(c, both_ways=not self.crossed, name="relative")(visible.distance())
        given = Reading(jnp.zeros(x.shape[:2], jnp.int32), visible.laid(), bias, **told)
        count = c.layers if self.crossed else c.encoder_layers
        assert count is not None, "held by the config"
        x, cache, kept = run_layers(self, count, x, cache, given, kept)
        return Norm(c.norm, c.norm_eps, name="final_norm")(x), cache, kept
