"""The same numbers on one device and on eight, and arrays that are split where they should be.

What is compared after two updates: parameters, optimiser moments and metrics, to 1e-5. Adam divides by the root of its second
moment, which blows rounding up where gradients are tiny; eps = 1e-2 keeps an update within a small factor of its gradient. The
learning rate is such that the second update still is one of a policy near the first.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from builders import (
    LLAMA,
    SCORING,
    STOPS,
    VALUE,
    assert_trees_close,
    built,
    critics_of,
    left_padded,
    lively,
    lively_critics,
    played,
    right_padded,
)
from checkpoints import T5

from rlhf_jax.compiled import compile_function, compile_step
from rlhf_jax.config import MeshConfig, Optim
from rlhf_jax.losses.policy import policy_loss
from rlhf_jax.losses.ppo import ppo_value_loss
from rlhf_jax.losses.q_learning import ilql_loss
from rlhf_jax.losses.reward import comparison_loss
from rlhf_jax.losses.sft import sft_loss
from rlhf_jax.mesh import make_mesh
from rlhf_jax.rollout.generate import generate
from rlhf_jax.rollout.sampling import row_keys
from rlhf_jax.sharding import place, place_batch
from rlhf_jax.train import init_state, make_step
from rlhf_jax.train.critics import make_critic_step, start_critics
from rlhf_jax.train.optimizer import make_optimizer
from rlhf_jax.train.ppo import combined, make_ppo_update, start_ppo
from rlhf_jax.types import PreferenceBatch, RewardedBatch

BOTH_HEADS = dataclasses.replace(LLAMA, head="lm+scalar")
ALONE = MeshConfig()
MESHES = [MeshConfig(8, 1, 1), MeshConfig(2, 2, 2), MeshConfig(1, 4, 2), MeshConfig(4, 1, 2)]
every_mesh = pytest.mark.parametrize("mesh", MESHES, ids=lambda m: f"data={m.data},fsdp={m.fsdp},tensor={m.tensor}")

TX = make_optimizer(Optim(lr=0.02, rows=16, steps=10, eps=1e-2, weight_decay=0.01))
LENGTHS = [9, 3, 5, 4, 9, 8, 3, 6, 2, 7, 9, 4, 3, 3, 8, 9]  # one row has nothing to learn


def two_updates(step, state, batch, mesh_config):
    """The state after two updates on this mesh, and the metrics of the second."""
    mesh = make_mesh(mesh_config)
    compiled, state, batch = compile_step(step, mesh), place(state, mesh), place_batch(batch, mesh)
    for _ in range(2):
        state, metrics = compiled(state, *batch)
    return state, metrics


@functools.cache
def sft(mesh):
    # Two microbatches: rows are dealt so that every device keeps its own, whatever their number.
    step = make_step(partial(sft_loss, logprobs=built(LLAMA).logprobs), TX, microbatches=2)
    return two_updates(step, init_state(lively(LLAMA), TX), (right_padded(LENGTHS, 9),), mesh)


@functools.cache
def reward(mesh):
    batch = PreferenceBatch(
        chosen=right_padded(LENGTHS[:8], 9, seed=1),
        rejected=right_padded(LENGTHS[8:], 9, seed=2),
        margin=jnp.zeros(8),
        weight=jnp.array([1.0, 0.5, 0.0, 1.0, 2.0, 1.0, 0.0, 0.25]),
    )
    step = make_step(partial(comparison_loss, scores=built(VALUE).scores), TX)
    return two_updates(step, init_state(lively(VALUE), TX), (batch,), mesh)


@functools.cache
def ppo(mesh):
    """Two minibatches of a policy with a value head, whose average is kept."""
    model = built(BOTH_HEADS)
    policy = partial(policy_loss, token_stats=model.token_stats, config=SCORING)
    value = partial(ppo_value_loss, values=model.values, clip=0.2)
    update = make_ppo_update(combined(policy, value, 0.1), TX, None, None, epochs=1, minibatch=8, ema=0.9)
    start = init_state(lively(BOTH_HEADS), TX, ema=True)
    state = start_ppo(start, None, jnp.float32(0.1))
    there = make_mesh(mesh)
    return compile_step(update, there)(place(state, there), place_batch(played(0.7, 16), there), jax.random.key(0))


@functools.cache
def ilql(mesh):
    critics = critics_of(LLAMA)
    loss = partial(ilql_loss, critics=critics.values, gamma=0.9, tau=0.7, cql_coef=0.1)
    step = make_critic_step(loss, critics.values, TX, rate=0.5, microbatches=2)
    batch = RewardedBatch(right_padded(LENGTHS, 9), jnp.linspace(-1.0, 1.0, 16))
    return two_updates(step, start_critics(lively_critics(LLAMA), TX), (batch,), mesh)


@functools.cache
def calm(config):
    """Parameters whose log-probs have a quarter of the rounding of the lively ones: 1e-5 then is far from that of any machine."""
    return jax.tree.map(lambda x: 0.6 * x, lively(config))


@functools.cache
def rollout(mesh, config=LLAMA, count=8, samples=1, slots=None):
    prompts = left_padded([1 + row % 4 for row in range(count)], 4, seed=7)
    keys = row_keys(jax.random.key(5), 0, np.repeat(np.arange(count), samples), np.tile(np.arange(samples), count))
    there = make_mesh(mesh)
    run = compile_function(partial(generate, model=built(config), new_tokens=6, stop=STOPS, slots=slots), there)
    return run(place(calm(LLAMA), there), *place_batch((prompts, keys), there), 0.7)


@functools.cache
def encoder_decoder(mesh):
    step = make_step(partial(sft_loss, logprobs=built(T5).logprobs), TX, microbatches=2)
    return two_updates(step, init_state(lively(T5), TX), (right_padded(LENGTHS, 9, vocab=T5.vocab),), mesh)


@every_mesh
@pytest.mark.parametrize("stage", [sft, reward, ilql, ppo, encoder_decoder])
def test_updates_on_eight_devices_are_those_on_one(stage, mesh):
    (one, metrics), (eight, other_metrics) = stage(ALONE), stage(mesh)
    assert len(jax.tree.leaves(eight)[0].devices()) == 8
    assert_trees_close(one, eight, atol=1e-5)
    assert_trees_close(metrics, other_metrics, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("stage", [sft, reward, ppo])
def test_the_updates_compared_do_move_the_parameters(stage):
    state, _ = stage(ALONE)
    params = state.policy.params if stage is ppo else state.params
    start = lively({sft: LLAMA, reward: VALUE, ppo: BOTH_HEADS}[stage])
    moved = [float(jnp.abs(a - b).max()) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(start), strict=True)]
    still = sum(distance < 1e-4 for distance in moved)
    assert still == (stage is reward)  # the bias of a reward model, which a comparison cannot see
    assert max(moved) > 5e-3


@every_mesh
@pytest.mark.parametrize("how", [{}, {"gather_once": True}, {"unroll": True}], ids=["plain", "gathered", "unrolled"])
def test_sampling_on_eight_devices_writes_the_same_tokens(how, mesh):
    assert_same_responses(rollout(ALONE), rollout(mesh, dataclasses.replace(LLAMA, **how)))


@every_mesh
@pytest.mark.parametrize(
    ("count", "samples"), [(16, 3), (3, 16)]
)  # prompts that the devices divide, and that they do not
def test_each_device_refills_its_own_slots_and_the_responses_are_the_same(count, samples, mesh):
    one, eight = rollout(ALONE, LLAMA, count, samples), rollout(mesh, LLAMA, count, samples, slots=16)
    assert len(set(np.asarray(one.batch.loss_mask).sum(axis=1).tolist())) > 2
    assert_same_responses(one, eight)


@every_mesh
def test_without_a_loop_over_layers_devices_refill_their_slots_too(mesh):
    eight = rollout(mesh, dataclasses.replace(LLAMA, unroll=True), 16, 3, slots=16)
    assert_same_responses(rollout(ALONE, LLAMA, 16, 3), eight)


@every_mesh
@pytest.mark.parametrize("slots", [None, 16])
def test_what_replies_must_be_holds_on_every_device(mesh, slots):
    table = np.zeros((2, LLAMA.vocab), np.int16)
    table[0, 10:14], table[1] = 1, 1  # ends with any of these
    how = (("repetition_penalty", 1.5), ("begin", (9, 4)), ("stop_table", table))
    one, eight = manner(ALONE, None, *how), manner(mesh, slots, *how)
    assert len(set(np.asarray(one.batch.loss_mask).sum(axis=1).tolist())) > 2
    assert_same_responses(one, eight)


def manner(mesh, slots, *how):
    keys, there = jax.random.split(jax.random.key(5), 32), make_mesh(mesh)
    write = partial(generate, model=built(LLAMA), new_tokens=8, slots=slots, **dict(how))
    given = place_batch((left_padded([1, 2, 3, 4] * 4, 4, seed=7), keys), there)
    return compile_function(write, there)(place(calm(LLAMA), there), *given, 0.7)


@pytest.mark.parametrize("slots", [None, 16])
@pytest.mark.parametrize(("mesh", "how"), [(MESHES[0], {}), (MeshConfig(2, 4, 1), {"gather_once": True})], ids=str)
def test_devices_that_have_all_weights_write_on_their_own(mesh, how, slots):
    """Nothing is exchanged but weights, before it begins: a device whose responses have ended holds nobody up, and is held up by nobody."""
    there = make_mesh(mesh)
    given = (*place_batch((left_padded([4] * 32, 4), jax.random.split(jax.random.key(0), 32)), there), 0.7)
    write = partial(generate, model=built(dataclasses.replace(LLAMA, **how)), new_tokens=6, stop=STOPS, slots=slots)
    program = compile_function(write, there).lower(place(lively(LLAMA), there), *given).compile().as_text()
    exchanges = [line for line in program.splitlines() if re.search(r"\b(all|collective)-[a-z]+\(", line)]
    assert not any("while/body" in line for line in exchanges)
    assert bool(exchanges) == bool(how)


def assert_same_responses(one, other):
    np.testing.assert_array_equal(one.batch.tokens, other.batch.tokens)
    np.testing.assert_array_equal(one.batch.loss_mask, other.batch.loss_mask)
    np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)


def test_slots_that_the_devices_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="slots=4; the 16 responses lie on 8 devices, which must divide the slots"):
        rollout(MeshConfig(8, 1, 1), LLAMA, 16, 1, slots=4)


@every_mesh
def test_parameters_and_moments_stay_split_through_updates(mesh):
    state, _ = sft(mesh)
    fsdp, tensor = mesh.fsdp, mesh.tensor
    for tree in (state.params, optax.tree_utils.tree_get(state.opt_state, "nu")):
        shapes = {
            "q": tree["layers"]["attention"]["q"]["kernel"],
            "o": tree["layers"]["attention"]["o"]["kernel"],
            "up": tree["layers"]["mlp"]["up"]["kernel"],
            "down": tree["layers"]["mlp"]["down"]["kernel"],
            "embedding": tree["tokens"]["embedding"],
            "norm": tree["final_norm"]["scale"],
        }
        assert {name: x.addressable_shards[0].data.shape for name, x in shapes.items()} == {
            "q": (2, 16 // fsdp, 4 // tensor, 4),
            "o": (2, 4 // tensor, 4, 16 // fsdp),
            "up": (2, 16 // fsdp, 24 // tensor),
            "down": (2, 24 // tensor, 16 // fsdp),
            "embedding": (32 // tensor, 16 // fsdp),
            "norm": (16,),
        }


@every_mesh
@pytest.mark.parametrize("kv_heads", [2, 1])
@pytest.mark.parametrize("unroll", [False, True])
def test_the_cache_is_split_over_rows_and_over_heads_where_they_divide(mesh, kv_heads, unroll):
    model, there = built(dataclasses.replace(LLAMA, kv_heads=kv_heads, unroll=unroll)), make_mesh(mesh)

    def fill(params, prompts):
        return model.prefill(params, prompts, 10)[1]

    params, prompts = place(lively(model.config), there), place_batch(left_padded([4] * 8, 4), there)
    cache = compile_function(fill, there)(params, prompts)
    heads = kv_heads // mesh.tensor if kv_heads % mesh.tensor == 0 else kv_heads
    split = (8 // mesh.row_shards, heads)
    keys, values = ((*split, 4, 10), (*split, 10, 4)) if unroll else ((2, *split, 10, 4),) * 2
    assert len(cache.layers) == (2 if unroll else 1)
    for layer in cache.layers:
        assert tuple(array.addressable_shards[0].data.shape for array in layer) == (keys, values)


def test_one_key_value_head_on_two_tensor_devices_gives_the_same_update():
    config = dataclasses.replace(LLAMA, kv_heads=1)
    step = make_step(partial(sft_loss, logprobs=built(config).logprobs), TX)
    meshes, batch = (ALONE, MeshConfig(2, 2, 2)), (right_padded(LENGTHS, 9),)
    one, eight = (two_updates(step, init_state(lively(config), TX), batch, mesh) for mesh in meshes)
    assert_trees_close(one, eight, atol=1e-5, rtol=1e-5)
    kernel = eight[0].params["layers"]["attention"]["k"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 8, 1, 4)
