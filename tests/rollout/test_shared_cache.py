"""Responses to one prompt share its keys and values while they are written: the same responses, from less memory."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import ADAPTERS, LLAMA, SHAPES, STOPS, built, left_padded, lively
from checkpoints import T5

from rlhf_jax.compiled import compile_function
from rlhf_jax.config import MeshConfig, ModelConfig
from rlhf_jax.mesh import make_mesh
from rlhf_jax.models import Model
from rlhf_jax.models.attention import attend_plainly, attend_to_both
from rlhf_jax.models.lora import adapted, with_lora
from rlhf_jax.rollout.generate import generate
from rlhf_jax.rollout.replies import response_ids
from rlhf_jax.sharding import place, place_batch
from rlhf_jax.types import Rollout

PROMPTS, SAMPLES, WIDTH, NEW = 4, 3, 5, 8
KEYS = jax.random.split(jax.random.key(5), PROMPTS * SAMPLES)
ASKED = left_padded([1, 5, 2, 4], WIDTH, seed=7)
MORE = {
    "windows": dataclasses.replace(LLAMA, layers=3, window=3, full_layers=(1,)),
    "unrolled": dataclasses.replace(LLAMA, unroll=True),
    "unrolled windows": dataclasses.replace(LLAMA, unroll=True, window=4),
    "positions beyond its length": dataclasses.replace(LLAMA, max_length=4),
    "softcaps": dataclasses.replace(LLAMA, attention_softcap=2.0, logit_softcap=3.0),
}


def apart(model: Model) -> Model:
    """The model without the means to share."""
    return dataclasses.replace(model, fork=None)


def written(model: Model, params, mesh: MeshConfig | None = None, **how) -> Rollout:
    write = partial(generate, model=model, new_tokens=NEW, stop=STOPS, **how)
    if mesh is None:
        return jax.jit(write)(params, ASKED, KEYS, 0.7)
    there = make_mesh(mesh)
    given = place_batch((jax.tree.map(np.asarray, ASKED), KEYS), there)
    return compile_function(write, there)(place(params, there), *given, 0.7)


def assert_same(one: Rollout, other: Rollout, atol: float = 1e-5) -> None:
    assert response_ids(one) == response_ids(other)
    assert len(set(map(len, response_ids(one)))) > 2
    np.testing.assert_allclose(one.logprobs, other.logprobs, atol=atol)


@pytest.mark.parametrize("name", [*SHAPES, *MORE])
def test_responses_that_share_their_prompt_are_those_that_have_it_each(name):
    config: ModelConfig = {**SHAPES, **MORE}[name]
    model, params = built(config), lively(config)
    assert_same(written(apart(model), params), written(model, params))


def test_what_else_decides_on_tokens_is_the_same():
    """The penalty looks at prompts too; keys and values wait in bfloat16; adapters."""
    how = {"repetition_penalty": 1.5, "begin": (9, 14)}
    assert_same(written(apart(built(LLAMA)), lively(LLAMA), **how), written(built(LLAMA), lively(LLAMA), **how))
    config = dataclasses.replace(LLAMA, cache_dtype="bfloat16")
    assert_same(written(apart(built(config)), lively(config)), written(built(config), lively(config)), atol=2e-2)
    config = dataclasses.replace(LLAMA, dtype="bfloat16")
    one, other = written(apart(built(config)), lively(config)), written(built(config), lively(config))
    first = np.argmax(np.asarray(one.batch.loss_mask), axis=1)  # drawn before anything is shared
    np.testing.assert_array_equal(*(np.asarray(r.batch.tokens)[np.arange(len(first)), first] for r in (one, other)))
    same = np.asarray(one.batch.tokens == other.batch.tokens)
    assert same.mean() > 0.9
    np.testing.assert_allclose(one.logprobs, jnp.where(same, other.logprobs, one.logprobs), atol=0.1)
    model, params = with_lora(built(LLAMA), ADAPTERS), adapted(lively(LLAMA), ADAPTERS, jax.random.key(0))
    params = jax.tree.map(lambda x: x + 0.05, params)
    assert model.fork is not None
    assert_same(written(apart(model), params), written(model, params))


@pytest.mark.parametrize(
    "mesh",
    [MeshConfig(data=2), MeshConfig(data=4), MeshConfig(fsdp=2, tensor=2), MeshConfig(data=6)],
    ids=str,
)
@pytest.mark.parametrize("unroll", [False, True])
def test_on_devices_too(mesh, unroll):
    config = dataclasses.replace(LLAMA, unroll=unroll)
    alone = written(apart(built(config)), lively(config))
    assert_same(alone, written(built(config), lively(config), mesh))


def test_heads_that_devices_do_not_divide():
    config = dataclasses.replace(LLAMA, kv_heads=1)
    alone = written(apart(built(config)), lively(config))
    assert_same(alone, written(built(config), lively(config), MeshConfig(data=2, tensor=2)))


def shapes_of(model: Model, mesh: MeshConfig, **how) -> str:
    """All that there is while responses are written, as text; where devices go on by themselves, of each."""
    write = partial(generate, model=model, new_tokens=NEW, stop=STOPS, **how)
    with jax.set_mesh(make_mesh(mesh)):
        return str(jax.make_jaxpr(write)(lively(LLAMA), ASKED, KEYS, 0.7))


@pytest.mark.parametrize(
    ("mesh", "devices", "shares"),
    [
        (MeshConfig(), 1, True),
        (MeshConfig(data=2), 2, True),
        (MeshConfig(data=4), 4, True),
        (MeshConfig(fsdp=2, tensor=2), 1, True),  # one program for all of them
        (MeshConfig(data=6), 6, False),  # which do not divide the prompts
    ],
    ids=str,
)
def test_a_prompt_is_there_once(mesh, devices, shares):
    layers, heads, size = LLAMA.layers, LLAMA.kv_heads, LLAMA.head_size
    rows = PROMPTS * SAMPLES // devices
    whole, own = (f"f32[{layers},{rows},{heads},{columns},{size}]" for columns in (WIDTH + NEW, NEW))
    there = shapes_of(built(LLAMA), mesh)
    assert (own in there) == shares and (whole in there) == (not shares)
    assert whole in shapes_of(apart(built(LLAMA)), mesh)
    in_turn = shapes_of(built(LLAMA), mesh, slots=max(4, devices))
    assert own not in in_turn


def test_what_is_shared_stays_in_the_type_that_it_waits_in():
    """A compiler that moves what is the same at every turn before the first would keep it in the other type too."""
    config = dataclasses.replace(LLAMA, unroll=True, cache_dtype="bfloat16")
    write = jax.jit(partial(generate, model=built(config), new_tokens=NEW, stop=STOPS))
    text = write.lower(lively(config), ASKED, KEYS, 0.7).compile().as_text()
    rows, heads, size = PROMPTS, LLAMA.kv_heads, LLAMA.head_size
    keys, values = f"[{rows},{heads},{size},{WIDTH}]", f"[{rows},{heads},{WIDTH},{size}]"
    loops = [line for line in text.splitlines() if " while(" in line and f"bf16{values}" in line]
    assert len(loops) == 1
    assert f" f32{keys}" not in loops[0] and f" f32{values}" not in loops[0]


def test_a_cache_is_forked_once():
    model = built(LLAMA)
    _, cache = model.prefill(lively(LLAMA), ASKED, WIDTH)
    assert model.fork is not None
    with pytest.raises(ValueError, match="go on from those of another already"):
        model.fork(model.fork(cache, 2, 3), 2, 3)


def test_slots_that_are_taken_in_turn_have_prompts_of_their_own():
    rollout = written(built(LLAMA), lively(LLAMA), slots=4)
    assert_same(written(built(LLAMA), lively(LLAMA)), rollout)


def test_an_encoder_decoder_shares_nothing():
    assert built(T5).fork is None


@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_attention_to_both_is_the_plain_one(length, cap):
    noise = np.random.default_rng(0)
    prompts, rows, heads, groups, width, own, size = 2, 6, 4, 2, 5, 7, 8

    def tensor(*shape):
        return jnp.asarray(noise.normal(size=shape), jnp.float32)

    q = tensor(rows, length, heads, size)
    shared = tensor(prompts, groups, width, size), tensor(prompts, groups, width, size)
    theirs = tensor(rows, groups, own, size), tensor(rows, groups, own, size)
    masks = tuple(jnp.asarray(noise.random((rows, length, count)) < 0.7) for count in (width, own))
    found = attend_to_both(q, shared, theirs, masks, 0.3, cap)
    keys, values = (
        jnp.concatenate([jnp.repeat(a, rows // prompts, axis=0), b], axis=2)
        for a, b in zip(shared, theirs, strict=True)
    )
    expected = attend_plainly(q, keys, values, jnp.concatenate(masks, axis=-1), 0.3, cap)
    np.testing.assert_allclose(found, expected, atol=1e-6)
