"""The noise is that of `jax.random`, to the bit, wherever it is made and under whatever it is asked for."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from rlhf_jax.config import MeshConfig
from rlhf_jax.mesh import make_mesh
from rlhf_jax.rollout import noise
from rlhf_jax.rollout.noise import gumbel
from rlhf_jax.sharding import place_batch


def plain(key, column, size):
    return jax.random.gumbel(jax.random.fold_in(key, column), (size,))


@pytest.mark.parametrize("size", [1, 7, 4096, 70_001])
def test_numbers_are_those_of_jax_to_the_bit(size):
    keys, columns = jax.random.split(jax.random.key(3), 4), jnp.array([0, 1, 200, 2**31 - 1])
    ours, theirs = (jax.jit(jax.vmap(partial(draw, size=size)))(keys, columns) for draw in (gumbel, plain))
    np.testing.assert_array_equal(ours, theirs)
    assert ours.shape == (4, size)


def test_it_is_made_without_a_loop_where_jax_makes_it_in_one():
    key, column = jax.random.key(0), jnp.int32(5)
    ours, theirs = (jax.jit(partial(draw, size=64)).lower(key, column).as_text() for draw in (gumbel, plain))
    assert "stablehlo.while" in theirs, "else there is nothing to gain"
    assert "stablehlo.while" not in ours


@pytest.mark.parametrize("kind", ["rbg", "unsafe_rbg"])
def test_keys_of_another_kind_stay_what_they_are(kind):
    key = jax.random.key(0, impl=kind)
    np.testing.assert_array_equal(gumbel(key, jnp.int32(2), 9), plain(key, jnp.int32(2), 9))


def test_where_jax_numbers_its_words_otherwise_they_are_its_own():
    with jax.threefry_partitionable(False):
        ours, theirs = (draw(jax.random.key(1), jnp.int32(2), 9) for draw in (gumbel, plain))
    np.testing.assert_array_equal(ours, theirs)
    assert np.any(theirs != plain(jax.random.key(1), jnp.int32(2), 9))


def test_numbers_of_64_bits_are_those_of_jax_too():
    with jax.enable_x64(True):
        ours, theirs = (draw(jax.random.key(1), jnp.int32(2), 9) for draw in (gumbel, plain))
    assert ours.dtype == jnp.float64
    np.testing.assert_array_equal(ours, theirs)


def test_each_device_makes_its_own_rows():
    keys, columns = jax.random.split(jax.random.key(3), 8), jnp.arange(-1, 7)
    expected = jax.vmap(partial(plain, size=33))(keys, columns)
    mesh = make_mesh(MeshConfig(data=8))
    placed = place_batch((keys, columns), mesh)
    np.testing.assert_array_equal(jax.jit(jax.vmap(partial(gumbel, size=33)))(*placed), expected)
    each = jax.shard_map(jax.vmap(partial(gumbel, size=33)), mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    np.testing.assert_array_equal(jax.jit(each)(*placed), expected)


def test_rounds_are_those_of_the_published_test_vectors():
    """Random123, kat_vectors: threefry2x32 of 20 rounds."""
    vectors = [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
        ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
    ]
    for counter, key, words in vectors:
        first, second = (jnp.uint32(word) for word in counter)
        found = noise.threefry(jnp.array(key, jnp.uint32), first, second)
        assert tuple(map(int, found)) == words
