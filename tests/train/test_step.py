from __future__ import annotations

import dataclasses
import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from builders import LLAMA, VALUE, assert_trees_close, built, lively, right_padded

from rlhf_jax.config import Optim
from rlhf_jax.losses.reward import comparison_loss
from rlhf_jax.losses.sft import sft_loss
from rlhf_jax.sharding import deal
from rlhf_jax.train import init_state, make_step
from rlhf_jax.train.optimizer import make_optimizer
from rlhf_jax.train.step import apply_gradients, gradients
from rlhf_jax.types import Aux, PreferenceBatch, TokenBatch

SFT = partial(sft_loss, logprobs=built(LLAMA).logprobs)
ADAM = make_optimizer(Optim(lr=0.1, rows=8, steps=10, eps=1e-2))


@functools.cache
def sft_step(microbatches):
    return jax.jit(make_step(SFT, ADAM, microbatches=microbatches))


def distance(params, batch):
    """Weighted mean squared distance, for updates that can be done by hand."""
    weight = jnp.sum(batch["w"])
    mean = jnp.sum(batch["w"] * (params["p"] - batch["x"]) ** 2) / jnp.maximum(weight, 1e-9)
    return mean, Aux(weight=weight, metrics={"mean": mean})


def by_hand(x, w):
    return {"x": jnp.array(x), "w": jnp.array(w)}


def test_an_update_by_hand():
    tx = optax.sgd(0.5)
    state = init_state({"p": jnp.float32(1.0)}, tx)
    new, metrics = make_step(distance, tx)(state, by_hand([0.0, 4.0], [3.0, 1.0]))
    # gradient: (3 * 2 * 1 + 1 * 2 * -3) / 4 = 0, loss: (3 * 1 + 9) / 4
    assert float(new.params["p"]) == 1.0
    assert (float(metrics["mean"]), float(metrics["grad_norm"])) == (3.0, 0.0)
    new, metrics = make_step(distance, tx)(new, by_hand([0.0, 4.0], [1.0, 0.0]))
    assert float(new.params["p"]) == 0.0
    assert float(metrics["grad_norm"]) == 2.0
    assert int(new.step) == 2


def test_microbatches_count_by_their_weight_and_not_alike():
    batch = by_hand([0.0, 4.0, 0.0, 4.0], [3.0, 1.0, 2.0, 0.0])
    params = {"p": jnp.float32(2.0)}
    for microbatches in (1, 2, 4):
        grads, metrics, weight, _ = gradients(distance, params, batch, microbatches)
        # (3 * 4 - 1 * 4 + 2 * 4) / 6; a mean of the means of two would be (4 - 4) / 2
        np.testing.assert_allclose(grads["p"], 16 / 6, rtol=1e-6)
        np.testing.assert_allclose(metrics["mean"], 4.0, rtol=1e-6)
        assert float(weight) == 6.0


def test_a_batch_without_weight_changes_nothing():
    for microbatches in (1, 2):
        nothing = by_hand([9.0, 9.0], [0.0, 0.0])
        grads, metrics, weight, _ = gradients(distance, {"p": jnp.float32(2.0)}, nothing, microbatches)
        assert (float(grads["p"]), float(metrics["mean"]), float(weight)) == (0.0, 0.0, 0.0)


def test_row_r_goes_to_microbatch_r_modulo_their_number_and_scalars_to_all():
    batch = {"x": jnp.arange(6), "y": jnp.arange(12).reshape(6, 2), "temperature": jnp.float32(0.7)}
    dealt = deal(batch, 3)
    assert dealt["x"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert dealt["y"][1].tolist() == [[2, 3], [8, 9]]
    np.testing.assert_allclose(dealt["temperature"], [0.7] * 3)
    assert deal({"x": jnp.arange(12)}, 3, 2)["x"].tolist() == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]


@pytest.mark.parametrize("microbatches", [2, 4])
@pytest.mark.parametrize(
    "lengths", [[9, 3, 5, 4, 9, 8, 3, 6], [9, 2, 9, 2, 8, 2, 8, 2]], ids=["unequal", "one without loss"]
)
def test_any_number_of_microbatches_makes_the_same_update(lengths, microbatches):
    state, batch = init_state(lively(LLAMA), ADAM), right_padded(lengths, 9)
    (one, metrics), (other, other_metrics) = (sft_step(count)(state, batch) for count in (1, microbatches))
    assert_trees_close(one, other, atol=1e-5)
    assert_trees_close(metrics, other_metrics, atol=1e-5, rtol=1e-5)
    assert float(metrics["nll"]) > 0


def test_microbatches_of_pairs_make_the_same_update_whatever_the_weights():
    batch = PreferenceBatch(
        chosen=right_padded([5, 7, 3, 8], 8, seed=1),
        rejected=right_padded([6, 4, 8, 2], 8, seed=2),
        margin=jnp.array([0.0, 0.5, 0.0, 1.0]),
        weight=jnp.array([1.0, 0.25, 0.5, 0.0]),
    )
    loss = partial(comparison_loss, scores=built(VALUE).scores)
    one, other = (jax.jit(partial(gradients, loss, microbatches=n))(lively(VALUE), batch) for n in (1, 2))
    assert_trees_close(one, other, atol=1e-5)


def test_a_step_trains():
    state, batch = init_state(lively(LLAMA), ADAM), right_padded([9, 5, 7, 8] * 2, 9)
    losses = []
    for _ in range(10):
        state, metrics = sft_step(2)(state, batch)
        losses.append(float(metrics["nll"]))
    assert losses[-1] < 0.7 * losses[0]


def test_the_norm_reported_is_that_before_clipping():
    tx = make_optimizer(Optim(lr=0.1, rows=1, steps=1, max_grad_norm=0.01))
    _, metrics = make_step(distance, tx)(init_state({"p": jnp.float32(3.0)}, tx), by_hand([0.0], [1.0]))
    assert float(metrics["grad_norm"]) == 6.0


def test_the_average_follows_the_new_parameters():
    tx = optax.sgd(1.0)
    state = init_state({"p": jnp.float32(2.0)}, tx, ema=True)
    for expected in (0.9 * 2.0 + 0.1 * 1.0, 0.9 * 1.9 + 0.1 * 0.0):
        state = apply_gradients(state, {"p": jnp.float32(1.0)}, tx, ema=0.9)
        np.testing.assert_allclose(state.ema["p"], expected, rtol=1e-6)
    assert float(state.params["p"]) == 0.0


def poisoned(where: str):
    """A loss that is (p - x)^2 for x < 9, and is not finite, or has a gradient that is not, from there on."""

    def loss(params, batch):
        bad = jnp.max(batch["x"]) >= 9
        value, aux = distance(params, batch)
        if where == "loss":  # while its gradient is finite
            return value + jax.lax.stop_gradient(jnp.where(bad, jnp.inf, 0.0)), aux
        return value + jnp.where(bad, jnp.sqrt(jnp.where(bad, params["p"] - params["p"], 1.0)), 0.0), aux

    return loss


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("microbatches", [1, 2])
def test_an_update_that_is_not_finite_is_left_out_and_counted_and_the_next_is_as_if_it_had_not_been(
    where, microbatches
):
    tx = optax.adam(optax.linear_schedule(0.1, 0.0, 10))
    step = make_step(poisoned(where), tx, microbatches=microbatches)
    good, bad = by_hand([0.0, 4.0], [3.0, 1.0]), by_hand([0.0, 9.0], [1.0, 1.0])
    (first, _), rows = step(init_state({"p": jnp.float32(2.0)}, tx), good), []
    state = first
    for batch in (bad, bad, good, bad):
        state, metrics = step(state, batch)
        rows.append((float(metrics["skipped"]), float(metrics["skipped_in_a_row"])))
    assert rows == [(1, 1), (1, 2), (0, 0), (1, 1)]
    expected, _ = step(first, good)
    assert_trees_close(dataclasses.replace(state, skipped=expected.skipped), expected, atol=0)
    assert int(state.step) == 2 and float(state.params["p"]) != float(first.params["p"])


def test_an_average_does_not_move_with_an_update_that_is_left_out():
    tx = optax.sgd(1.0)
    state = apply_gradients(init_state({"p": jnp.float32(2.0)}, tx, ema=True), {"p": jnp.float32(1.0)}, tx, ema=0.5)
    after = apply_gradients(state, {"p": jnp.float32(jnp.nan)}, tx, ema=0.5)
    assert (float(after.ema["p"]), float(after.params["p"]), int(after.skipped)) == (1.5, 1.0, 1)


def test_a_state_shares_no_memory_with_the_tree_it_was_made_from():
    params = {"p": jnp.ones(4)}
    state = init_state(params, optax.adam(0.1), ema=True)
    jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state), donate_argnums=0)(state)
    np.testing.assert_array_equal(params["p"], 1.0)


def test_parameters_of_another_dtype_keep_it():
    tx = optax.sgd(0.5)
    state = init_state({"p": jnp.bfloat16(1.0)}, tx)
    for microbatches in (1, 2):
        new, _ = make_step(distance, tx, microbatches=microbatches)(state, by_hand([0.0, 0.0], [1.0, 1.0]))
        assert new.params["p"].dtype == jnp.bfloat16


def bigram_logprobs(params, batch: TokenBatch, temperature):
    """A model that is nothing but a table: logits of the next token by the last one."""
    table = jax.nn.log_softmax(params["table"] / temperature)
    return jnp.pad(table[batch.tokens[:, :-1], batch.tokens[:, 1:]], ((0, 0), (1, 0)))


def nnx_model():
    """(parameters, logprobs) of a flax.nnx module."""
    from flax import nnx

    class Bigram(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(32, 8, rngs=rngs)
            self.out = nnx.Linear(8, 32, rngs=rngs)

        def __call__(self, tokens):
            return self.out(self.embed(tokens))

    graph, params = nnx.split(Bigram(nnx.Rngs(0)))

    def logprobs(params, batch, temperature):
        with jax.numpy_rank_promotion("allow"):  # flax adds its biases that way
            logits = nnx.merge(graph, params)(batch.tokens[:, :-1])
        table = jax.nn.log_softmax(logits / temperature)
        taken = jnp.take_along_axis(table, batch.tokens[:, 1:, None], axis=-1)[:, :, 0]
        return jnp.pad(taken, ((0, 0), (1, 0)))

    return params, logprobs


@pytest.mark.parametrize("kind", ["plain function", "nnx module"])
def test_anything_that_gives_log_probs_is_a_model(kind):
    params, logprobs = ({"table": jnp.zeros((32, 32))}, bigram_logprobs) if kind == "plain function" else nnx_model()
    tx = make_optimizer(Optim(lr=0.1, rows=4, steps=40, schedule="constant"))
    step = jax.jit(make_step(partial(sft_loss, logprobs=logprobs), tx, microbatches=2))
    state, batch = init_state(params, tx), right_padded([9, 5, 7, 8], 9)
    state, first = step(state, batch)
    for _ in range(39):
        state, last = step(state, batch)
    assert float(last["nll"]) < 0.5 * float(first["nll"])
