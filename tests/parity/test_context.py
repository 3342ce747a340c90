"""The same updates where texts lie on one device and where each lies on two or four, which exchange keys and values.

Compared to 1e-5, as in test_eight_devices.py.
"""

from __future__ import annotations

import dataclasses
import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import (
    ADAPTERS,
    LLAMA,
    SCORING,
    VALUE,
    assert_trees_close,
    built,
    lively,
    nearby,
    played,
    right_padded,
)
from checkpoints import SMALL, T5
from test_eight_devices import ALONE, BOTH_HEADS, TX, two_updates

from rlhf_jax.compiled import compile_function, compile_step
from rlhf_jax.config import MeshConfig
from rlhf_jax.losses.policy import policy_loss
from rlhf_jax.losses.ppo import ppo_value_loss
from rlhf_jax.losses.preference import make_objective, preference_loss, with_reference
from rlhf_jax.losses.reward import comparison_loss
from rlhf_jax.losses.sft import sft_loss
from rlhf_jax.mesh import make_mesh
from rlhf_jax.models.lora import with_lora
from rlhf_jax.sharding import place, place_batch
from rlhf_jax.train import init_state, make_step
from rlhf_jax.train.ppo import combined, make_ppo_update, start_ppo
from rlhf_jax.types import PreferenceBatch, TokenBatch, Trajectory

MESHES = [
    MeshConfig(context=2),
    MeshConfig(context=4),
    MeshConfig(fsdp=2, context=4),
    MeshConfig(fsdp=2, tensor=2, context=2),
]
every_mesh = pytest.mark.parametrize("mesh", MESHES, ids=str)
LENGTH = 12
LENGTHS = [12, 3, 7, 4, 12, 9, 10, 6]


def packed(rows: int = 8) -> TokenBatch:
    """Rows of three texts and some padding, none of which ends where a device's piece does."""
    noise = np.random.default_rng(0)
    segments = np.array([[1] * 5 + [2] * 2 + [3] * 4 + [0]] * (rows // 2) + [[1] + [2] * 8 + [3] * 3] * (rows // 2))
    starts = np.array([[0] * 5 + [5] * 2 + [7] * 4 + [11]] * (rows // 2) + [[0] + [1] * 8 + [9] * 3] * (rows // 2))
    positions = np.arange(LENGTH)[None] - starts
    return TokenBatch(
        tokens=jnp.asarray(noise.integers(0, LLAMA.vocab, segments.shape), jnp.int32),
        positions=jnp.asarray(positions, jnp.int32),
        segments=jnp.asarray(segments, jnp.int32),
        loss_mask=jnp.asarray((segments != 0) & (positions > 0)),
    )


def pairs() -> PreferenceBatch:
    chosen, rejected = (
        right_padded(lengths, LENGTH, seed=seed) for seed, lengths in enumerate((LENGTHS, LENGTHS[::-1]))
    )
    return PreferenceBatch(chosen, rejected, jnp.zeros(8), jnp.array([1.0, 0.5, 0.0, 1.0, 2.0, 1.0, 0.0, 0.25]))


@functools.cache
def padded(mesh):
    step = make_step(partial(sft_loss, logprobs=built(LLAMA).logprobs), TX, microbatches=2)
    return two_updates(step, init_state(lively(LLAMA), TX), (right_padded(LENGTHS, LENGTH),), mesh)


@functools.cache
def packed_with_windows(mesh):
    """Windows that reach into the piece before, on some of the layers; learned again in the backward pass, a few columns at a time."""
    config = dataclasses.replace(SMALL["gemma2"], vocab=LLAMA.vocab, remat="layers", logit_chunk=2)
    step = make_step(partial(sft_loss, logprobs=built(config).logprobs), TX)
    return two_updates(step, init_state(lively(config), TX), (packed(),), mesh)


@functools.cache
def reward(mesh):
    step = make_step(partial(comparison_loss, scores=built(VALUE).scores), TX)
    return two_updates(step, init_state(lively(VALUE), TX), (pairs(),), mesh)


@functools.cache
def dpo(mesh):
    """Of adapters: the base they stand beside has no gradient."""
    model = with_lora(built(LLAMA), ADAPTERS)
    loss = partial(preference_loss, logprobs=model.logprobs, objective=make_objective("dpo", 0.1))
    start = model.init(jax.random.key(0))
    start = {
        **start,
        "lora": jax.tree.map(lambda x: x + 0.05 * jnp.cos(jnp.arange(x.size).reshape(x.shape)), start["lora"]),
    }
    there = make_mesh(mesh)
    reference, batch = place(nearby(), there), place_batch(pairs(), there)
    complete = compile_function(partial(with_reference, logprobs=built(LLAMA).logprobs), there)
    return two_updates(make_step(loss, TX), init_state(start, TX), (complete(reference, batch),), mesh)


@functools.cache
def encoder_decoder(mesh):
    """The decoder's pieces read all of what the encoder has of the prompt; scores have a learned part for every distance."""
    step = make_step(partial(sft_loss, logprobs=built(T5).logprobs), TX)
    return two_updates(step, init_state(lively(T5), TX), (right_padded(LENGTHS, LENGTH, vocab=T5.vocab),), mesh)


@functools.cache
def trajectory() -> Trajectory:
    """`played`, with two columns of padding behind."""
    made = played(0.7, 8)
    long = made.rollout.logprobs.shape[1]
    made = dataclasses.replace(made, rollout=dataclasses.replace(made.rollout, columns=None))
    return jax.tree.map(
        lambda x: jnp.pad(x, ((0, 0), (0, LENGTH - long))) if x.ndim == 2 and x.shape[1] == long else x, made
    )


@functools.cache
def ppo(mesh):
    model = built(BOTH_HEADS)
    policy = partial(policy_loss, token_stats=model.token_stats, config=SCORING)
    value = partial(ppo_value_loss, values=model.values, clip=0.2)
    update = make_ppo_update(combined(policy, value, 0.1), TX, None, None, epochs=1, minibatch=4)
    state, there = start_ppo(init_state(lively(BOTH_HEADS), TX), None, jnp.float32(0.1)), make_mesh(mesh)
    return compile_step(update, there)(place(state, there), place_batch(trajectory(), there), jax.random.key(0))


@pytest.mark.parametrize(
    ("stage", "mesh"),
    [
        *((stage, mesh) for stage in (padded, packed_with_windows) for mesh in MESHES),
        *((stage, mesh) for stage in (reward, dpo, ppo) for mesh in MESHES if mesh != MeshConfig(context=4)),
        (encoder_decoder, MESHES[-1]),
    ],
    ids=lambda given: getattr(given, "__name__", str(given)),
)
def test_updates_of_texts_in_pieces_are_those_of_whole_texts(stage, mesh):
    (one, metrics), (several, other_metrics) = stage(ALONE), stage(mesh)
    assert len(jax.tree.leaves(several)[0].devices()) == mesh.devices
    assert_trees_close(one, several, atol=1e-5)
    assert_trees_close(metrics, other_metrics, atol=1e-5, rtol=1e-5)


@every_mesh
def test_devices_that_share_a_text_share_parameters_and_moments_too(mesh):
    state, _ = padded(mesh)
    for tree in (state.params, state.opt_state):
        q = next(x for path, x in jax.tree_util.tree_leaves_with_path(tree) if "'q'" in jax.tree_util.keystr(path))
        assert q.addressable_shards[0].data.shape == (2, 16 // mesh.fsdp // mesh.context, 4 // mesh.tensor, 4)


@pytest.mark.parametrize("length", [LENGTH, 9])
def test_activations_are_in_pieces_where_the_context_divides_their_length(length):
    mesh = make_mesh(MeshConfig(fsdp=2, context=4))
    hidden = compile_function(built(LLAMA).hidden, mesh)
    params, batch = place(lively(LLAMA), mesh), place_batch(right_padded([length] * 8, length), mesh)
    found = hidden(params, batch)
    assert found.addressable_shards[0].data.shape == (4, length // 4 if length % 4 == 0 else length, 16)
    np.testing.assert_allclose(found, built(LLAMA).hidden(lively(LLAMA), batch), atol=1e-5)
