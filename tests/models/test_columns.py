"""Matrices laid out by their columns for few rows on a CPU: decoding with them gives the numbers that it gives without."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import ADAPTERS, LLAMA, SHAPES, built, left_padded, lively
from checkpoints import T5

from rlhf_jax.config import MeshConfig
from rlhf_jax.mesh import make_mesh
from rlhf_jax.models import Model, kernels
from rlhf_jax.models.lora import with_lora

LENGTHS, WIDTH = [1, 4, 2, 3], 4
CONFIGS = {
    **SHAPES,
    "unrolled": dataclasses.replace(LLAMA, unroll=True),
    "unrolled, untied": dataclasses.replace(LLAMA, unroll=True, tied=False),
    "encoder-decoder": T5,
    "encoder-decoder, unrolled": dataclasses.replace(T5, unroll=True),
}


def decoded(model: Model, params, reading) -> tuple[jax.Array, jax.Array]:
    """(hidden states, logits) after one more token behind prompts, with these parameters for it."""
    prompts = left_padded(LENGTHS, WIDTH)
    _, cache = jax.jit(model.prefill, static_argnums=2)(params, prompts, WIDTH + 1)
    tokens, places = jnp.arange(4, dtype=jnp.int32) + 5, jnp.array(LENGTHS, jnp.int32)
    hidden, _ = jax.jit(model.decode)(reading, tokens, places, WIDTH, jnp.ones(4, bool), cache)
    return hidden, jax.jit(model.unembed)(reading, hidden)


def layouts(params) -> set[str]:
    """What the matrices of the layers of a tree are called."""
    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    names = [[getattr(entry, "key", None) for entry in path] for path, _ in paths]
    return {of[-1] for of in names if "layers" in of} & {"kernel", "columns"}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("adapted", [False, True], ids=["", "adapted"])
def test_one_more_token_is_read_as_without(config, adapted):
    model, params = built(config), lively(config)
    if adapted:
        model = with_lora(model, ADAPTERS)
        params = jax.tree.map(
            lambda x: x + 0.05 * jnp.arange(x.size).reshape(x.shape) % 0.3, model.init(jax.random.key(1))
        )
    reading = jax.jit(model.ready, static_argnums=1)(params, 4)
    assert layouts(reading) == {"columns"}
    for one, other in zip(decoded(model, params, params), decoded(model, params, reading), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_many_rows_other_devices_and_matrices_in_pieces_have_them_as_they_are(monkeypatch):
    model, params = built(LLAMA), lively(LLAMA)
    assert layouts(model.ready(params, kernels.FEW)) == {"columns"}
    assert layouts(model.ready(params, kernels.FEW + 1)) == {"kernel"}
    with jax.set_mesh(make_mesh(MeshConfig(1, 2, 2))):
        assert layouts(model.ready(params, 4)) == {"kernel"}
    monkeypatch.setattr(kernels, "platform", lambda: "gpu")
    assert layouts(model.ready(params, 4)) == {"kernel"}


@pytest.mark.parametrize("config", [LLAMA, dataclasses.replace(LLAMA, tied=False)], ids=["tied", "untied"])
def test_columns_come_out_of_the_product_as_rows(config):
    """What makes it fast: XLA has not turned the products back into those with a row for each response."""
    model, params = built(config), lively(config)
    cache = jax.eval_shape(lambda p: model.prefill(p, left_padded(LENGTHS, WIDTH), WIDTH + 1)[1], params)

    def turn(params, cache):
        rows = jnp.zeros(4, jnp.int32)
        hidden, _ = model.decode(model.ready(params, 4), rows, rows, jnp.int32(WIDTH), rows == 0, cache)
        return model.unembed(model.ready(params, 4), hidden)

    program = jax.jit(turn).lower(params, cache).compile().as_text()
    products = [line.split("= ")[1].split("{")[0] for line in program.splitlines() if " dot(" in line]
    assert "f32[4,24]" not in products and f"f32[4,{config.vocab}]" not in products
    assert "f32[24,4]" in products and f"f32[{config.vocab},4]" in products
