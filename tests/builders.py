"""Tiny models and batches for the tests of the core."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.config import ModelConfig, PolicyGradient
from rlhf_jax.models import Model, build_model
from rlhf_jax.rollout.generate import generate
from rlhf_jax.rollout.score import make_trajectory
from rlhf_jax.types import Params, Rollout, TokenBatch, Trajectory

VOCAB = 32
LLAMA = ModelConfig(vocab=VOCAB, width=16, layers=2, heads=4, kv_heads=2, mlp=24, max_length=32)
GPT2 = dataclasses.replace(LLAMA, kv_heads=4, norm="layer", position="learned", activation="gelu", bias=True)

# Every option of the decoder at least once, each in company that could hide it.
SHAPES = {
    "llama": LLAMA,
    "gpt2": GPT2,
    "one key-value head, untied": dataclasses.replace(LLAMA, kv_heads=1, tied=False),
    "all key-value heads, wide head": dataclasses.replace(LLAMA, kv_heads=4, head_dim=6, rope_base=500.0),
    "layer norm on rope, biased swiglu": dataclasses.replace(LLAMA, norm="layer", bias=True, tied=False),
    "learned positions, grouped": dataclasses.replace(LLAMA, position="learned", activation="gelu", kv_heads=2),
}


@functools.cache
def built(config: ModelConfig) -> Model:
    """One model per config, so that tests share its compiled functions."""
    return build_model(config)


@functools.cache
def lively(config: ModelConfig, seed: int = 0) -> Params:
    """Parameters far from the initial ones, whose zero biases and heads, unit norms and small logits hide mistakes.

    By numpy, as compiling a model's initialisation takes longer than the tests that use it. Call it outside of traced functions.
    """
    noise = np.random.default_rng(seed)

    def fill(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(centre + 0.4 * noise.normal(size=leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, jax.eval_shape(built(config).init, jax.random.key(0)))


@functools.cache
def jitted(function: Any) -> Any:
    """`jax.jit(function)`, once per function."""
    return jax.jit(function)


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


STOPS = (0, 1, 2, 3, 4, 5)  # so many, that responses end at different lengths
SCORING = PolicyGradient(new_tokens=6)
VALUE = dataclasses.replace(LLAMA, head="scalar")


@functools.cache
def sampled(config: ModelConfig = LLAMA, temperature: float = 0.7, rows: int = 8) -> Rollout:
    """Responses of one to six tokens to prompts of one to four, sampled from the lively policy of this config."""
    prompts = left_padded([1 + row % 4 for row in range(rows)], 4, seed=7)
    run = jitted(functools.partial(generate, model=built(config), new_tokens=6, stop=STOPS))
    return run(lively(config), prompts, jax.random.split(jax.random.key(5), rows), temperature)


@functools.cache
def nearby(config: ModelConfig = LLAMA) -> Params:
    """Parameters of a reference that differs from the lively policy a little."""
    return jax.tree.map(lambda x, y: 0.95 * x + 0.05 * y, lively(config), lively(config, seed=1))


@functools.cache
def played(temperature: float = 0.7, rows: int = 8) -> Trajectory:
    """What PPO learns from: `sampled` responses with made-up scores, a nearby reference and a value model of its own."""
    make = functools.partial(make_trajectory, policy=built(LLAMA), values=built(VALUE).values, config=SCORING)
    scores = jnp.asarray(np.random.default_rng(3).normal(size=rows), jnp.float32)
    rollout = sampled(LLAMA, temperature, rows)
    return jax.jit(make)(lively(LLAMA), nearby(), lively(VALUE, seed=2), rollout, scores, jnp.float32(0.1))[0]


def assert_trees_close(one: Any, other: Any, *, atol: float, rtol: float = 0.0) -> None:
    """Same structure, and every leaf close; says which leaf is not."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(x, y, atol=atol, rtol=rtol, err_msg=jax.tree_util.keystr(path))
