"""Attention by the kernels of the platforms, interpreted here, beside the plain one: packed texts, windows, softcaps, grouped heads."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import assert_trees_close, lively, right_padded
from checkpoints import SMALL

from rlhf_jax.compiled import compile_function
from rlhf_jax.config import MeshConfig
from rlhf_jax.mesh import make_mesh
from rlhf_jax.models import attention as module
from rlhf_jax.models import build_model
from rlhf_jax.models.attention import attend_plainly
from rlhf_jax.models.kernels import cudnn, cudnn_fits, splash, splash_fits
from rlhf_jax.models.visible import Visible
from rlhf_jax.sharding import place, place_batch

ROWS, LENGTH, HEADS, GROUPS, SIZE = 2, 256, 4, 2, 16


def packed(causal: bool = True) -> Visible:
    """One row of three texts with padding behind them, one of a single text with padding in front."""
    segments = np.zeros((ROWS, LENGTH), np.int32)
    segments[0, :100], segments[0, 100:130], segments[0, 130:240], segments[1, 37:] = 1, 2, 3, 1
    return Visible(jnp.asarray(segments), jnp.asarray(segments), causal=causal)


@functools.cache
def tensors(groups: int = GROUPS, spread: float = 1.0):
    noise = np.random.default_rng(0)
    shapes = (ROWS, LENGTH, HEADS, SIZE), (ROWS, groups, LENGTH, SIZE), (ROWS, groups, LENGTH, SIZE)
    return tuple(jnp.asarray(spread * noise.normal(size=shape), jnp.float32) for shape in shapes)


def compared(run, visible: Visible, given, *, window=None, local=True, **how):
    """Output and gradient of a weighted sum of what real queries get, by a kernel and plainly."""
    weights = jnp.asarray(np.random.default_rng(1).normal(size=given[0].shape), jnp.float32)
    weights = jnp.where((visible.queries != 0)[:, :, None, None], weights, 0.0)

    def total(function, *given):
        out = function(*given)
        return jnp.sum(out * weights), jnp.where(weights == 0, 0.0, out)

    def plain(q, k, v):
        return attend_plainly(q, k, v, visible.mask(window, local), how.get("scale"), how.get("cap"))

    both = (lambda *given: run(*given, visible, window=window, local=local, **how)), plain
    return [jax.jit(jax.grad(functools.partial(total, f), argnums=(0, 1, 2), has_aux=True))(*given) for f in both]


INTERPRETED = functools.partial(splash, interpret=True)
CASES = {
    "causal": {},
    "softcap, another scale": {"cap": 2.0, "scale": 0.5},
    "window": {"window": 9},
    "a window wider than a block": {"window": 140},
    "one window or none, told late: here": {"window": 9, "local": jnp.bool_(True)},
    "one window or none, told late: not here": {"window": 9, "local": jnp.bool_(False)},
    "a window elsewhere": {"window": 9, "local": False},
}


@pytest.mark.parametrize("name", CASES)
def test_splash_attention_is_the_plain_one(name):
    how = {"scale": None, "cap": None, **CASES[name]}
    found, expected = compared(INTERPRETED, packed(), tensors(), **how)
    assert_trees_close(found, expected, atol=1e-4)


SHAPES = (512, HEADS), (GROUPS, 512), (GROUPS, 512)


@pytest.mark.parametrize("run", [INTERPRETED, module.attend], ids=["splash", "blocks"])
@pytest.mark.parametrize("window", [None, 9, 140])
def test_queries_behind_what_they_share_see_that_too(window, run):
    """Half of 512 columns, so that there are blocks of queries, and of keys that none of them sees."""
    noise = np.random.default_rng(3)
    q, keys, values = (jnp.asarray(noise.normal(size=(1, *shape, SIZE)), jnp.float32) for shape in SHAPES)
    segments = jnp.asarray((np.arange(512) >= 20) & (np.arange(512) < 500), jnp.int32)[None]
    behind = Visible(segments[:, 256:], segments, column=256)
    how = {"window": window, "scale": None, "cap": None}
    found, expected = compared(run, behind, (q[:, 256:], keys, values), **how)
    assert_trees_close(found, expected, atol=1e-4)
    whole = attend_plainly(q, keys, values, Visible(segments, segments).mask(window))[:, 256:]
    np.testing.assert_allclose(expected[1], jnp.where(expected[1] == 0, 0.0, whole), atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_attention_in_blocks_of_queries_is_the_plain_one(name):
    found, expected = compared(module.attend, packed(), tensors(), **CASES[name])
    assert_trees_close(found, expected, atol=1e-5)


@pytest.mark.parametrize("rows", [1, ROWS])
def test_blocks_of_queries_have_their_part_of_the_bias(rows):
    q, k, v = tensors()
    bias = jnp.asarray(np.random.default_rng(2).normal(size=(rows, HEADS, LENGTH, LENGTH)), jnp.float32)
    real = (packed().queries != 0)[:, :, None, None]
    found, expected = module.attend(q, k, v, packed(), bias=bias), attend_plainly(q, k, v, packed().mask(), bias=bias)
    np.testing.assert_allclose(jnp.where(real, found, 0.0), jnp.where(real, expected, 0.0), atol=1e-5)


@pytest.mark.parametrize("window", [None, 1, 40, 300])
@pytest.mark.parametrize("length", [1, 128, 129, 1024, 5000])
def test_blocks_have_all_queries_once_and_all_keys_that_these_see(length, window):
    one = jnp.ones((1, length), jnp.int32)
    seen, computed = np.asarray(Visible(one, one).mask(window)[0]), np.zeros((length, length), int)
    blocks = module._blocks(length, Visible(one, one), window)
    for queries, keys in blocks:
        computed[queries, keys] += 1
    assert np.all(computed[seen] == 1) and computed.max() == 1
    assert len(blocks) == min(-(-length // 128), 8)
    most = length**2 if window is None else length * (window - 1 + -(-length // len(blocks)))
    assert computed.sum() <= min(most, length**2 * (len(blocks) + 1) / (2 * len(blocks)) + length)


def test_queries_of_an_encoder_and_of_a_cache_are_one_block():
    one = jnp.ones((1, 512), jnp.int32)
    for visible in (Visible(one, one, causal=False), Visible(one, one, jnp.int32(3))):
        assert len(module._blocks(512, visible, None)) == 1


@pytest.mark.parametrize("groups", [1, HEADS])
def test_splash_attention_knows_any_number_of_key_heads(groups):
    found, expected = compared(INTERPRETED, packed(), tensors(groups), scale=None, cap=None)
    assert_trees_close(found, expected, atol=1e-4)


def test_splash_attention_of_an_encoder_sees_both_ways():
    found, expected = compared(INTERPRETED, packed(causal=False), tensors(), scale=None, cap=None)
    assert_trees_close(found, expected, atol=1e-4)
    one_way = compared(INTERPRETED, packed(), tensors(), scale=None, cap=None)[0]
    assert float(jnp.abs(one_way[1] - found[1]).max()) > 0.1


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    "mesh",
    [MeshConfig(data=2), MeshConfig(fsdp=2, tensor=4), MeshConfig(context=2), MeshConfig(data=2, tensor=2, context=2)],
    ids=str,
)
def test_on_a_mesh_every_device_has_its_own_rows_heads_and_queries(mesh, causal):
    """Windows and texts reach from one piece of the queries into the keys of another."""
    given = jax.tree.map(np.asarray, tensors())  # those that JAX has lie on one device
    with jax.set_mesh(make_mesh(mesh)):
        how = {"window": 140 if causal else None, "scale": None, "cap": None}
        found, expected = compared(INTERPRETED, packed(causal), given, **how)
    assert_trees_close(found, expected, atol=1e-4)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 9])
def test_the_call_that_cudnn_gets_is_the_plain_attention(window, causal):
    """XLA's own implementation of the same call: that of cudnn runs on GPUs only."""

    def run(q, k, v, visible, *, window, local, scale):
        return cudnn(q, k, v, visible.mask(window, local), scale=scale, causal=causal, implementation="xla")

    found, expected = compared(run, packed(), tensors(), window=window, scale=0.3)
    assert_trees_close(found, expected, atol=1e-4)


def test_kernels_are_asked_only_for_what_they_take():
    q, k, _ = tensors()
    visible = packed()
    assert splash_fits(q, k, visible)
    assert not splash_fits(q[:, :1], k, visible)
    assert not splash_fits(q, k[:, :, :200], visible)
    assert not splash_fits(q, k, dataclasses.replace(visible, column=jnp.int32(3)))
    half = q.astype(jnp.bfloat16)
    assert cudnn_fits(half, k)
    assert not cudnn_fits(q, k)
    assert not cudnn_fits(half[:, :3], k)
    assert not cudnn_fits(half[..., :12], k)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gemma3_text", "qwen2", "bert", "t5"])
@pytest.mark.parametrize("mesh", [MeshConfig(), MeshConfig(2, 2, 2)], ids=["one device", "eight"])
def test_a_model_on_a_tpu_is_the_same_model(name, mesh, monkeypatch):
    """As traced for a TPU, its kernels interpreted: windows and layers without one in a scan, softcaps, distances (which stay plain)."""
    called = []

    def interpreted(*given, **how):
        called.append(how["window"])
        return splash(*given, **how, interpret=True)

    config = dataclasses.replace(SMALL[name], max_length=LENGTH, remat="layers")
    params, batch, there = (
        lively(config),
        right_padded([256, 200], LENGTH, vocab=config.vocab, prompt=20),
        make_mesh(mesh),
    )
    if mesh.devices > 1:
        batch = jax.tree.map(lambda x: jnp.concatenate([x, x]), batch)

    def logits():
        model = build_model(config)
        out = compile_function(model.logits, there)(place(params, there), place_batch(batch, there))
        return np.asarray(out)[np.asarray(model.decoded(batch).segments) != 0]

    plain = logits()
    assert not called
    monkeypatch.setattr(module, "platform", lambda: "tpu")
    monkeypatch.setattr(module, "splash", interpreted)
    np.testing.assert_allclose(logits(), plain, atol=1e-4 * max(1.0, np.abs(plain).max()))
    assert set(called) == {config.window}


# A scan traces its layer once. Of a T5 only what reads the prompt has no bias.
@pytest.mark.parametrize(("name", "causal"), [("llama", [True]), ("gemma2", []), ("t5", [False])])
def test_cudnn_is_asked_for_two_byte_floats_without_softcap_or_learned_bias(name, causal, monkeypatch):
    called = []

    def spied(*given, **how):
        called.append(how)
        return cudnn(*given, **how, implementation="xla")

    config = dataclasses.replace(SMALL[name], head_dim=8, dtype="bfloat16")
    monkeypatch.setattr(module, "platform", lambda: "gpu")
    monkeypatch.setattr(module, "cudnn", spied)
    jax.eval_shape(build_model(config).logits, lively(config), right_padded([9, 8], 10, vocab=config.vocab))
    assert [how["causal"] for how in called] == causal
