"""Tiny models and batches for the tests of the core."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.config import LoRA, ModelConfig
from rlhf_jax.doctor.subjects import (
    LLAMA,
    SCORING,
    STOPS,
    VALUE,
    VOCAB,
    built,
    filled,
    left_padded,
    lively,
    moved_left,
    nearby,
    right_padded,
    token_batch,
)
from rlhf_jax.models.critics import Critics, build_critics
from rlhf_jax.rollout.generate import generate
from rlhf_jax.rollout.score import make_trajectory
from rlhf_jax.types import Params, Rollout, Trajectory

__all__ = [
    "ADAPTERS",
    "GPT2",
    "LLAMA",
    "SCORING",
    "SHAPES",
    "STOPS",
    "VALUE",
    "VOCAB",
    "assert_trees_close",
    "built",
    "critics_of",
    "filled",
    "jitted",
    "left_padded",
    "lively",
    "lively_critics",
    "moved_left",
    "nearby",
    "played",
    "right_padded",
    "sampled",
    "token_batch",
]

ADAPTERS = LoRA(rank=3, alpha=6.0)
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
def critics_of(config: ModelConfig) -> Critics:
    """One set of critics per config."""
    return build_critics(config)


@functools.cache
def lively_critics(config: ModelConfig, seed: int = 0) -> Params:
    """Parameters of critics far from the initial ones."""
    return filled(critics_of(config).init, seed)


@functools.cache
def jitted(function: Any) -> Any:
    """`jax.jit(function)`, once per function."""
    return jax.jit(function)


@functools.cache
def sampled(config: ModelConfig = LLAMA, temperature: float = 0.7, rows: int = 8) -> Rollout:
    """Responses of one to six tokens to prompts of one to four, sampled from the lively policy of this config."""
    prompts = left_padded([1 + row % 4 for row in range(rows)], 4, seed=7)
    run = jitted(functools.partial(generate, model=built(config), new_tokens=6, stop=STOPS))
    return run(lively(config), prompts, jax.random.split(jax.random.key(5), rows), temperature)


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
