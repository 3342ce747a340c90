"""The noise of a sample: that of `jax.random`, bit for bit, in one pass on CPUs too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import define_prng_impl, threefry_prng_impl
from jaxtyping import Array, Float, Int, Key, UInt32

from rlhf_jax.models.kernels import platform

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = np.uint32(0x1BD11BDA)

Words = tuple[UInt32[Array, "*S"], UInt32[Array, "*S"]]


def gumbel(key: Key[Array, ""], column: Int[Array, ""], size: int) -> Float[Array, "V"]:
    """`size` numbers from the standard Gumbel distribution, those of jax.random.gumbel(fold_in(key, column)).

    For CPUs JAX writes the rounds of Threefry as a loop, to compile faster, whose turns lay all words down in memory and copy them. Here
    they stand one behind the other, and XLA makes each number where it is read.
    """
    settings: Any = jax.config
    looped = platform() == "cpu" and jax.random.key_impl(key) == "threefry2x32"
    if looped and settings.jax_threefry_partitionable and not settings.jax_enable_x64:
        key = jax.random.wrap_key_data(jax.random.key_data(key), impl=STRAIGHT)
    return jax.random.gumbel(jax.random.fold_in(key, column), (size,))


def threefry(key: UInt32[Array, "2"], first: UInt32[Array, "*S"], second: UInt32[Array, "*S"]) -> Words:
    """Threefry-2x32 of 20 rounds: the two words of each counter, encrypted.

    Source: Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3.
    """
    keys = (key[0], key[1], key[0] ^ key[1] ^ PARITY)
    first, second = first + keys[0], second + keys[1]
    for group in range(5):
        for by in ROTATIONS[group % 2]:
            first = first + second
            second = first ^ (second << np.uint32(by) | second >> np.uint32(32 - by))
        first = first + keys[(group + 1) % 3]
        second = second + keys[(group + 2) % 3] + np.uint32(group + 1)
    return first, second


def _bits(key: UInt32[Array, "2"], width: int, shape: Sequence[int]) -> UInt32[Array, "..."]:
    """Random words, word n from counter n."""
    assert width == 32, "float32, which `gumbel` sees to, is made of 32 bits"
    count = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    first, second = threefry(key, jnp.zeros_like(count), count)
    return first ^ second


def _fold_in(key: UInt32[Array, "2"], number: UInt32[Array, ""]) -> UInt32[Array, "2"]:
    return jnp.stack(threefry(key, jnp.zeros_like(number), number))


STRAIGHT = define_prng_impl(
    key_shape=(2,),
    seed=threefry_prng_impl.seed,
    split=threefry_prng_impl.split,
    random_bits=_bits,
    fold_in=_fold_in,  # pyright: ignore[reportArgumentType] (declared as of an int, and called with an array)
    name="threefry2x32_straight",
    tag="fry",
)
