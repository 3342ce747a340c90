"""Responses that stand side by side behind one prompt, which is read once: all numbers are those of rows read by themselves."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import ADAPTERS, LLAMA, SHAPES, VALUE, assert_trees_close, built, left_padded, lively
from checkpoints import T5

from rlhf_jax.compiled import compile_function
from rlhf_jax.config import MeshConfig
from rlhf_jax.mesh import make_mesh
from rlhf_jax.models import kernels
from rlhf_jax.models.groups import Group
from rlhf_jax.models.lora import with_lora
from rlhf_jax.rollout.generate import generate
from rlhf_jax.sharding import place, place_batch
from rlhf_jax.types import Rollout

PROMPTS, SAMPLES, WIDTH, NEW = 8, 3, 5, 7

MORE = {
    "windows": dataclasses.replace(LLAMA, layers=3, window=3, full_layers=(1,)),
    "unrolled": dataclasses.replace(LLAMA, unroll=True, remat="layers", logit_chunk=None),
    "softcaps, products kept": dataclasses.replace(LLAMA, attention_softcap=2.0, logit_softcap=3.0, remat="products"),
}


@functools.cache
def written(new: int = NEW, width: int = WIDTH) -> Rollout:
    """Three responses of one to `new` tokens to each of eight prompts of one to `width`."""
    prompts = left_padded([1 + (3 * row) % width for row in range(PROMPTS)], width, seed=7)
    run = jax.jit(functools.partial(generate, model=built(LLAMA), new_tokens=new, stop=(3, 4)))
    return run(lively(LLAMA), prompts, jax.random.split(jax.random.key(5), PROMPTS * SAMPLES), 1.0)


def numbers(model, rollout: Rollout):
    """(params) -> all that a model with both heads says of the responses, and the gradient of a weighted mean of it."""
    batch = rollout.batch
    noise = jnp.asarray(np.random.default_rng(0).normal(size=batch.tokens.shape), jnp.float32)

    def total(params):
        stats = model.token_stats(params, batch, 0.7, rollout.last)
        said = {"stats": stats, "values": model.values(params, batch), "scores": model.scores(params, batch)}
        said["logprobs"] = model.logprobs(params, batch, 1.0)  # of prompts too
        said = jax.tree.map(lambda x: jnp.where(batch.segments != 0, x, 0.0) if x.ndim == 2 else x, said)
        weighed = [jnp.mean(x * (noise if x.ndim == 2 else noise[:, 0])) for x in jax.tree.leaves(said)]
        return sum(weighed), said

    return jax.jit(jax.grad(total, has_aux=True))


def assert_same(one, other):
    (gradient, said), (its_gradient, its_said) = one, other
    assert_trees_close(said, its_said, atol=2e-5, rtol=1e-5)
    assert_trees_close(gradient, its_gradient, atol=5e-6)


@pytest.mark.parametrize("name", [*SHAPES, *MORE])
def test_a_prompt_read_once_is_the_prompt_read_for_each_response(name):
    config = dataclasses.replace({**SHAPES, **MORE}[name], head="lm+scalar")
    model, params, rollout = built(config), lively(config), written()
    alone, together = (numbers(m, rollout)(params) for m in (model, model.in_groups(SAMPLES, NEW)))
    assert len(set(np.asarray(rollout.batch.loss_mask).sum(axis=1).tolist())) > 2
    assert_same(alone, together)


def test_long_responses_are_read_in_blocks_behind_their_prompts():
    config = dataclasses.replace(LLAMA, head="lm+scalar", max_length=512, window=150, full_layers=(0,))
    model, params, rollout = built(config), lively(config), written(200, 130)
    alone, together = (numbers(m, rollout)(params) for m in (model, model.in_groups(SAMPLES, 200)))
    assert_same(alone, together)


def operations(model, params, batch) -> float:
    compiled = jax.jit(model.hidden).lower(params, batch).compile()
    return compiled.cost_analysis()["flops"]


def test_it_is_read_once():
    """Columns of prompts cost as many operations as there are prompts, and not responses."""
    config = dataclasses.replace(LLAMA, width=64, layers=1, mlp=256, unroll=True)
    model, batch = built(config), written().batch
    params = jax.eval_shape(model.init, jax.random.key(0))
    share = operations(model.in_groups(SAMPLES, NEW), params, batch) / operations(model, params, batch)
    expected = (WIDTH + SAMPLES * NEW) / (SAMPLES * (WIDTH + NEW))
    assert share == pytest.approx(expected, abs=0.05) and expected < 0.75


def test_adapters_read_groups_as_their_model_does():
    model, batch = with_lora(built(VALUE), ADAPTERS), written().batch
    params = jax.tree.map(lambda x: x + 0.1, model.init(jax.random.key(0)))
    grouped = model.in_groups(SAMPLES, NEW)
    np.testing.assert_allclose(grouped.scores(params, batch), model.scores(params, batch), atol=1e-4)
    assert operations(grouped, params, batch) < 0.9 * operations(model, params, batch)


def test_others_than_decoders_read_every_row():
    model = built(T5)
    assert model.in_groups(SAMPLES, NEW) is model
    encoder = built(dataclasses.replace(LLAMA, causal=False, head="scalar", tied=False))
    assert encoder.in_groups(SAMPLES, NEW) is encoder


def test_where_nothing_is_shared_rows_are_read_by_themselves():
    model, batch = built(LLAMA), written().batch
    plain = str(jax.make_jaxpr(model.hidden)(lively(LLAMA), batch))
    for rows, last in ((1, NEW), (SAMPLES, WIDTH + NEW), (SAMPLES, 99)):
        assert str(jax.make_jaxpr(model.in_groups(rows, last).hidden)(lively(LLAMA), batch)) == plain


def test_rows_that_are_no_whole_groups_are_named():
    with pytest.raises(ValueError, match="a batch of 24 rows for groups of 5"):
        built(LLAMA).in_groups(5, NEW).hidden(lively(LLAMA), written().batch)


@pytest.mark.parametrize(
    ("mesh", "of_all", "of_half"),  # the 24 rows, 12 of them
    [
        (MeshConfig(data=8), True, True),
        (MeshConfig(fsdp=4, tensor=2), True, True),
        (MeshConfig(data=2, context=2), False, False),
        (MeshConfig(data=3), False, False),
    ],
    ids=str,
)
def test_on_a_mesh_groups_are_read_where_devices_have_whole_ones(mesh, of_all, of_half):
    config = dataclasses.replace(LLAMA, head="lm+scalar")
    there, model, rollout = make_mesh(mesh), built(config).in_groups(SAMPLES, NEW), written()
    with jax.set_mesh(there):
        assert (Group(SAMPLES, NEW).of(24, WIDTH + NEW) is not None) == of_all
        assert (Group(SAMPLES, NEW).of(12, WIDTH + NEW) is not None) == of_half
    found = compile_function(lambda params, rollout: numbers(model, rollout)(params), there)(
        place(lively(config), there), place_batch(jax.tree.map(np.asarray, rollout), there)
    )
    assert_same(numbers(built(config), rollout)(lively(config)), found)


@pytest.mark.parametrize(("platform", "block"), [("tpu", 128), ("gpu", 2), ("cpu", 1)])
def test_what_a_kernel_takes_whole_is_not_read_in_parts_that_it_does_not_take(platform, block, monkeypatch):
    monkeypatch.setattr(kernels, "platform", lambda: platform)
    assert kernels.takes_parts(4 * block, block) and kernels.takes_parts(4 * block + 1, 1)
    assert kernels.takes_parts(4 * block, 3 * block + 1) == (block == 1)
    model, batch = built(LLAMA), jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 116))), written().batch)
    plain, grouped = (str(jax.make_jaxpr(m.hidden)(lively(LLAMA), batch)) for m in (model, model.in_groups(3, 123)))
    assert (plain == grouped) == (block > 1)
