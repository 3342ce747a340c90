from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import ADAPTERS as CONFIG
from builders import LLAMA, SHAPES, VALUE, assert_trees_close, built, left_padded, lively, right_padded

from rlhf_jax.compiled import compile_step
from rlhf_jax.config import LoRA, MeshConfig, Optim
from rlhf_jax.frozen import Frozen, join_frozen, split_frozen
from rlhf_jax.losses.sft import sft_loss
from rlhf_jax.mesh import make_mesh
from rlhf_jax.models.lora import adapted, joined, merged, targets_of, with_lora
from rlhf_jax.rollout.generate import generate
from rlhf_jax.sharding import place, place_batch
from rlhf_jax.train import init_state, make_step
from rlhf_jax.train.optimizer import make_optimizer


def moved(config, lora: LoRA = CONFIG, seed: int = 0):
    """Adapted parameters whose B is not zero."""
    start = adapted(lively(config), lora, jax.random.key(seed))
    noise = iter(jax.random.split(jax.random.key(seed + 1), 100))
    adapters = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(noise), x.shape), start["lora"])
    return {**start, "lora": adapters}


@pytest.mark.parametrize("name", SHAPES)
def test_fresh_adapters_change_nothing_and_merged_ones_do_what_they_did(name):
    config, batch = SHAPES[name], right_padded([9, 4, 7], 9)
    model, own = with_lora(built(config), CONFIG), built(config)
    before = own.logits(lively(config), batch)
    np.testing.assert_array_equal(model.logits(adapted(lively(config), CONFIG, jax.random.key(0)), batch), before)
    params = moved(config)
    after = model.logits(params, batch)
    assert jnp.abs(after - before).max() > 0.1
    np.testing.assert_allclose(own.logits(merged(params, CONFIG), batch), after, atol=2e-5)
    np.testing.assert_array_equal(model.logits(lively(config), batch), before)


def test_an_adapter_by_hand():
    params = moved(LLAMA, LoRA(rank=2, alpha=6.0, targets=("attention/o",)))
    whole = merged(params, LoRA(rank=2, alpha=6.0, targets=("attention/o",)))
    adapter = params["lora"]["layers"]["attention"]["o"]
    assert adapter["lora_a"].shape == (2, 4, 4, 2) and adapter["lora_b"].shape == (2, 2, 16)
    for layer in range(2):
        a, b = (np.asarray(adapter[part][layer]).reshape(-1, n) for part, n in (("lora_a", 2), ("lora_b", 16)))
        expected = np.asarray(lively(LLAMA)["layers"]["attention"]["o"]["kernel"][layer]).reshape(16, 16) + 3.0 * a @ b
        found = np.asarray(whole["layers"]["attention"]["o"]["kernel"][layer]).reshape(16, 16)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_targets_are_patterns_and_one_that_matches_nothing_is_refused():
    assert targets_of(lively(LLAMA), LoRA(targets=("attention/[qv]", "mlp/down"))) == [
        ("layers", "attention", "q"),
        ("layers", "attention", "v"),
        ("layers", "mlp", "down"),
    ]
    with pytest.raises(ValueError, match=r"no kernel matches 'attn/\*'; there are attention/k, attention/o"):
        targets_of(lively(LLAMA), LoRA(targets=("attention/q", "attn/*")))


def test_only_adapters_and_the_head_are_trained_and_have_moments():
    tx = make_optimizer(Optim(lr=0.1, rows=4, steps=3))
    start = adapted(lively(VALUE), CONFIG, jax.random.key(0))
    state = init_state(start, tx, ema=True)
    trained = len(jax.tree.leaves(start["lora"])) + 2
    assert len(jax.tree.leaves(split_frozen(state.params)[0])) == trained
    sizes = [leaf.shape for leaf in jax.tree.leaves(state.opt_state)]
    assert not any(leaf.shape in sizes for leaf in jax.tree.leaves(start["base"]) if leaf.ndim > 2)
    assert state.params["base"].tree is start["base"].tree, "the base was copied"
    assert state.ema is not None and state.ema["base"].tree is start["base"].tree


@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(2, 2, 2)], ids=["one device", "eight"])
def test_updates_leave_the_base_where_it_is_and_equal_the_gradient_of_the_merged_model(mesh):
    tx, batch = make_optimizer(Optim(lr=0.05, rows=8, steps=3)), right_padded([9, 3, 5, 4, 9, 8, 3, 6], 9)
    model = with_lora(built(LLAMA), CONFIG)
    step = make_step(partial(sft_loss, logprobs=model.logprobs), tx, microbatches=2)
    there = make_mesh(mesh)
    start = place(moved(LLAMA), there)
    state = place(init_state(start, tx), there)
    compiled = compile_step(step, there)
    first, metrics = compiled(state, place_batch(batch, there))
    second, later = compiled(first, place_batch(batch, there))
    assert later["nll"] < metrics["nll"]
    base, after = start["base"].tree, second.params["base"].tree
    for x, y in zip(jax.tree.leaves(base), jax.tree.leaves(after), strict=True):
        assert x is y, "the base was copied or moved"
        assert not x.is_deleted()
    live, _ = split_frozen(first.params)
    gradient = jax.grad(
        lambda lora: sft_loss(merged({**moved(LLAMA), "lora": lora}, CONFIG), batch, logprobs=built(LLAMA).logprobs)[0]
    )(moved(LLAMA)["lora"])
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradient)))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-4)
    assert len(jax.tree.leaves(live)) == len(jax.tree.leaves(gradient))


def test_sampling_with_adapters_is_sampling_with_merged_weights():
    prompts, keys = left_padded([3, 1, 4], 4, seed=7), jax.random.split(jax.random.key(5), 3)
    run = partial(generate, new_tokens=6, stop=())
    params = moved(LLAMA)
    one = jax.jit(partial(run, model=with_lora(built(LLAMA), CONFIG)))(params, prompts, keys, 0.7)
    other = jax.jit(partial(run, model=built(LLAMA)))(merged(params, CONFIG), prompts, keys, 0.7)
    np.testing.assert_array_equal(one.batch.tokens, other.batch.tokens)
    np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)


def test_frozen_parts_come_out_and_go_in_again():
    tree = {"a": jnp.ones(2), "b": Frozen({"c": jnp.zeros(3)}), "d": [Frozen(jnp.ones(1))]}
    live, parts = split_frozen(tree)
    assert [leaf.shape for leaf in jax.tree.leaves(live)] == [(2,)]
    assert_trees_close(join_frozen(live, parts), tree, atol=0)
    with pytest.raises(ValueError, match="1 frozen parts for a tree with 2 marks"):
        join_frozen(live, parts[:1])
    plain = {"a": jnp.ones(2)}
    assert split_frozen(plain) == (plain, [])
    assert joined(plain, CONFIG) is plain and merged(plain, CONFIG) is plain


def test_weight_decay_is_of_adapters_too():
    tx = make_optimizer(Optim(lr=0.1, rows=4, steps=3, weight_decay=0.5))
    live, _ = split_frozen(moved(LLAMA))
    still = jax.tree.map(jnp.zeros_like, live)
    updates, _ = tx.update(still, tx.init(live), live)
    for change, value in zip(jax.tree.leaves(updates["lora"]), jax.tree.leaves(live["lora"]), strict=True):
        np.testing.assert_allclose(change, -0.05 * value, rtol=1e-5)
