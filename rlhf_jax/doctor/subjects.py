"""Tiny models and batches to measure on: far from their initial values, rows of unequal length, rubbish in the padding."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.config import ModelConfig, PolicyGradient
from rlhf_jax.models import Model, build_model
from rlhf_jax.types import Params, TokenBatch

VOCAB = 32
LLAMA = ModelConfig(vocab=VOCAB, width=16, layers=2, heads=4, kv_heads=2, mlp=24, max_length=32)
VALUE = dataclasses.replace(LLAMA, head="scalar")
BOTH_HEADS = dataclasses.replace(LLAMA, head="lm+scalar")
STOPS = (0, 1, 2, 3, 4, 5)  # so many, that responses end at different lengths
SCORING = PolicyGradient(new_tokens=6)


@functools.cache
def built(config: ModelConfig) -> Model:
    """One model per config, so that its compiled functions are shared."""
    return build_model(config)


@functools.cache
def lively(config: ModelConfig, seed: int = 0) -> Params:
    """Parameters far from the initial ones, whose zero biases and heads, unit norms and small logits hide mistakes.

    By numpy, as compiling a model's initialisation takes longer than what uses it. Call it outside of traced functions.
    """
    return filled(built(config).init, seed)


def filled(init: Callable[[jax.Array], Params], seed: int) -> Params:
    """Random numbers in the shapes of `init`, norms around 1."""
    noise = np.random.default_rng(seed)

    def fill(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(centre + 0.4 * noise.normal(size=leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(init, jax.random.key(0)))


@functools.cache
def nearby(config: ModelConfig = LLAMA) -> Params:
    """Parameters of a reference that differs from the lively policy a little."""
    return jax.tree.map(lambda x, y: 0.95 * x + 0.05 * y, lively(config), lively(config, seed=1))


def token_batch(real: np.ndarray, *, prompt: int = 2, seed: int = 0, vocab: int = VOCAB) -> TokenBatch:
    """Random tokens everywhere, padding too; real [B, T] says which count. All but the first `prompt` of a row are to be learned."""
    tokens = np.random.default_rng(seed).integers(0, vocab, real.shape)
    place = np.cumsum(real, axis=1) - real
    return TokenBatch(
        tokens=jnp.asarray(tokens, jnp.int32),
        positions=jnp.asarray(place, jnp.int32),
        segments=jnp.asarray(real, jnp.int32),
        loss_mask=jnp.asarray(real & (place >= prompt)),
    )


def right_padded(lengths: list[int], width: int, **how: Any) -> TokenBatch:
    """Rows of these many tokens, then padding."""
    return token_batch(np.arange(width)[None, :] < np.array(lengths)[:, None], **how)


def left_padded(lengths: list[int], width: int, **how: Any) -> TokenBatch:
    """Padding, then rows of these many tokens."""
    return token_batch(np.arange(width)[None, :] >= width - np.array(lengths)[:, None], **how)


def moved_left(batch: TokenBatch) -> TokenBatch:
    """The same rows, their padding moved from the right end to the left one."""
    lengths = np.sum(np.asarray(batch.segments) != 0, axis=1)
    width = batch.tokens.shape[1]
    order = (np.arange(width)[None, :] + lengths[:, None]) % width
    return jax.tree.map(lambda x: jnp.asarray(np.take_along_axis(np.asarray(x), order, axis=1)), batch)


def largest_difference(one: Any, other: Any) -> float:
    """The largest absolute difference between two trees of arrays of one structure; nan where one holds a nan."""
    distances = jax.tree.map(
        lambda x, y: np.max(np.abs(np.asarray(x, np.float64) - np.asarray(y, np.float64))), one, other
    )
    return float(np.max(jax.tree.leaves(distances)))


def relative_error(measured: Any, expected: Any) -> jax.Array:
    """|measured - expected| / |expected| of two trees of arrays, by the Euclidean norm over all leaves."""
    error = jax.tree.map(jnp.subtract, measured, expected)
    squares = [sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)) for tree in (error, expected)]
    return jnp.sqrt(squares[0] / squares[1])
