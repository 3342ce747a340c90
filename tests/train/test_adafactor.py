from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from builders import ADAPTERS, GPT2, LLAMA, assert_trees_close, built, lively, right_padded

from rlhf_jax.config import Optim
from rlhf_jax.losses.sft import sft_loss
from rlhf_jax.models.lora import with_lora
from rlhf_jax.train import init_state, make_step
from rlhf_jax.train.adafactor import Factored, clip_and_scale_by_size, scale_by_factored_moments
from rlhf_jax.train.optimizer import make_optimizer

CONFIG = Optim(lr=0.05, rows=8, steps=10, schedule="constant", kind="adafactor", max_grad_norm=None)


def run(tx, params, count: int = 3):
    """The parameters after so many updates, by gradients that differ from one to the next."""
    state = tx.init(params)
    for number in range(count):
        grads = jax.tree.map(lambda x, n=number: jnp.cos((7 + n) * x + n), params)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def waves(*shape: int) -> jax.Array:
    return jnp.sin(jnp.arange(np.prod(shape), dtype=jnp.float32)).reshape(shape)


def test_one_update_of_a_matrix_by_hand():
    # Squares 1, 4 / 4, 0: the means of rows and of columns are 2.5 and 2, and V = row col / 2.25.
    grads = {"up": {"kernel": jnp.array([[1.0, -2.0], [2.0, 0.0]])}}
    scaled, state = scale_by_factored_moments().update(grads, scale_by_factored_moments().init(grads))
    v = np.outer([2.5, 2.0], [2.5, 2.0]) / 2.25
    np.testing.assert_allclose(scaled["up"]["kernel"], np.array([[1.0, -2.0], [2.0, 0.0]]) / np.sqrt(v), rtol=1e-6)
    np.testing.assert_allclose(state.nu["up"]["kernel"].row, [2.5, 2.0])
    np.testing.assert_allclose(state.nu["up"]["kernel"].col, [2.5, 2.0])
    # The second update has b = 1 - 2 ** -0.8.
    still = jax.tree.map(jnp.zeros_like, grads)
    _, state = scale_by_factored_moments().update(still, state)
    np.testing.assert_allclose(state.nu["up"]["kernel"].row, [2.5 * (1 - 2**-0.8), 2.0 * (1 - 2**-0.8)], rtol=1e-6)


def test_steps_are_a_share_of_the_size_of_a_parameter_and_bounded():
    params = {"up": {"kernel": jnp.full((2, 2), 3.0)}, "o": {"bias": jnp.zeros(4)}}
    updates = {"up": {"kernel": jnp.full((2, 2), 2.0)}, "o": {"bias": jnp.full(4, 0.5)}}
    tx = clip_and_scale_by_size()
    scaled, _ = tx.update(updates, tx.init(params), params)
    np.testing.assert_allclose(scaled["up"]["kernel"], 3.0)  # of size 2, bounded at 1, times 3
    np.testing.assert_allclose(scaled["o"]["bias"], 0.5e-3)  # what is zero moves too
    with pytest.raises(ValueError, match="shares of the parameters' size"):
        tx.update(updates, tx.init(params))


def test_matrices_and_vectors_are_those_of_optax():
    params = {"up": {"kernel": waves(6, 10)}, "down": {"bias": waves(5)}}
    theirs = optax.adafactor(CONFIG.lr, min_dim_size_to_factor=1)
    assert_trees_close(run(make_optimizer(CONFIG), params)[0], run(theirs, params)[0], atol=1e-6)


def test_kernels_of_several_dimensions_are_those_of_inputs_and_outputs_and_every_layer_is_one_of_its_own():
    shapes = {"q": (2, 6, 4, 3), "o": (2, 4, 3, 6)}
    stacked = {"layers": {"attention": {name: {"kernel": waves(*shape)} for name, shape in shapes.items()}}}
    flat = {"q": (6, 12), "o": (12, 6)}
    apart = {f"{n}{name}": {"kernel": waves(*shapes[name])[n].reshape(flat[name])} for name in shapes for n in (0, 1)}
    after, state = run(make_optimizer(CONFIG), stacked)
    alone, _ = run(make_optimizer(CONFIG), apart)
    for name, shape in shapes.items():
        both = jnp.stack([alone[f"{n}{name}"]["kernel"].reshape(shape[1:]) for n in (0, 1)])
        np.testing.assert_allclose(after["layers"]["attention"][name]["kernel"], both, atol=1e-6)
    kept = optax.tree_utils.tree_get(state, "nu")["layers"]["attention"]
    assert (kept["q"]["kernel"].row.shape, kept["q"]["kernel"].col.shape) == ((2, 6), (2, 4, 3))
    assert (kept["o"]["kernel"].row.shape, kept["o"]["kernel"].col.shape) == ((2, 4, 3), (2, 6))


@pytest.mark.parametrize("config", [LLAMA, GPT2])
def test_the_state_has_a_number_for_each_input_and_output_and_vectors_whole(config):
    params = lively(config)
    state = make_optimizer(CONFIG).init(params)
    nu = optax.tree_utils.tree_get(state, "nu")
    c, layers = config, config.layers
    heads, groups = c.heads * c.head_size, c.kv_heads * c.head_size
    sides = {"q": c.width + heads, "k": c.width + groups, "o": heads + c.width}
    for name, numbers in sides.items():
        of = nu["layers"]["attention"][name]["kernel"]
        assert of.row.size + of.col.size == layers * numbers
    of = nu["layers"]["mlp"]["down"]["kernel"]
    assert (of.row.size, of.col.size) == (layers * c.mlp, layers * c.width)
    assert nu["layers"]["mlp_norm"]["scale"].shape == (layers, c.width)
    if config.bias:
        assert nu["layers"]["attention"]["q"]["bias"].shape == (layers, c.heads, c.head_size)
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state)) < 0.2 * whole


def test_other_peoples_trees_have_matrices_too():
    nu = scale_by_factored_moments().init([jnp.ones((3, 4)), {"w": jnp.ones((2, 3, 4))}, jnp.ones(5)]).nu
    assert isinstance(nu[0], Factored) and nu[1]["w"].shape == (2, 3, 4) and nu[2].shape == (5,)
    after, _ = run(make_optimizer(CONFIG), [jnp.ones((3, 4)), jnp.ones(())])
    assert not jnp.any(after[0] == 1.0) and after[1] != 1.0


@pytest.mark.parametrize("how", [{"kind": "adafactor"}, {"moments": "bfloat16", "eps": 1e-2}], ids=str)
def test_any_number_of_microbatches_makes_the_same_update_and_it_learns(how):
    tx = make_optimizer(Optim(lr=0.05, rows=8, steps=10, **how))
    state, batch = init_state(lively(LLAMA), tx), right_padded([9, 3, 5, 4, 9, 8, 3, 6], 9)
    step = {
        count: jax.jit(make_step(partial(sft_loss, logprobs=built(LLAMA).logprobs), tx, microbatches=count))
        for count in (1, 2, 4)
    }
    one, first = step[1](state, batch)
    for count in (2, 4):
        assert_trees_close(one.params, step[count](state, batch)[0].params, atol=1e-5)
    for _ in range(4):
        one, last = step[1](one, batch)
    assert last["nll"] < first["nll"] - 0.1


@pytest.mark.parametrize("how", [{"kind": "adafactor"}, {"moments": "bfloat16"}], ids=str)
def test_adapters_alone_have_state_and_move(how):
    tx = make_optimizer(Optim(lr=0.5, rows=4, steps=3, schedule="constant", **how))
    model = with_lora(built(LLAMA), ADAPTERS)
    start = model.init(jax.random.key(0))
    state = init_state(start, tx)
    adapters = sum(leaf.size for leaf in jax.tree.leaves(start["lora"]))
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim) <= 4 * adapters
    step = jax.jit(make_step(partial(sft_loss, logprobs=model.logprobs), tx))
    after, _ = step(state, right_padded([9, 5, 7, 8], 9))
    assert_trees_close(after.params["base"], start["base"], atol=0)
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), after.params["lora"], start["lora"])
    assert any(jax.tree.leaves(moved))
