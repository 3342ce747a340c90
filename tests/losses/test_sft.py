from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import LLAMA, built, left_padded, lively, moved_left, right_padded

from rlhf_jax.losses.sft import sft_loss
from rlhf_jax.types import TokenBatch

LENGTHS, WIDTH = [9, 4, 7], 9


def given(values):
    """A model whose log-probabilities are its parameters."""
    return partial(sft_loss, logprobs=lambda params, batch, temperature: params / temperature), jnp.asarray(values)


def batch_of(loss_mask):
    mask = jnp.array(loss_mask, bool)
    zeros = jnp.zeros(mask.shape, jnp.int32)
    return TokenBatch(zeros, zeros, zeros + 1, mask)


def test_the_loss_is_the_mean_over_the_tokens_to_learn_by_hand(strict_dtypes):
    loss, logprobs = given([[-9.0, -1.0, -2.0], [-9.0, -9.0, -6.0]])
    value, aux = loss(logprobs, batch_of([[0, 1, 1], [0, 0, 1]]))
    assert float(value) == 3.0  # not 3.75, the mean of the means of rows
    assert float(aux.weight) == 3.0
    assert float(aux.metrics["nll"]) == 3.0


def test_a_batch_without_tokens_to_learn_has_no_loss_no_weight_and_finite_gradients(strict_dtypes):
    loss, logprobs = given([[jnp.nan, -1.0]])
    (value, aux), gradient = jax.value_and_grad(loss, has_aux=True)(logprobs, batch_of([[0, 0]]))
    assert (float(value), float(aux.weight)) == (0.0, 0.0)
    np.testing.assert_array_equal(gradient, 0.0)


def test_the_loss_is_at_temperature_one():
    seen = []
    sft_loss(None, batch_of([[1]]), logprobs=lambda p, b, temperature: seen.append(temperature) or jnp.zeros((1, 1)))
    assert seen == [1.0]


@pytest.mark.parametrize("other", ["on the left", "changed", "longer"])
def test_padding_changes_neither_loss_nor_gradient(other):
    batch = right_padded(LENGTHS, WIDTH)
    padding = np.asarray(batch.segments) == 0
    same = {
        "on the left": moved_left(batch),
        "changed": batch.replace(tokens=jnp.where(padding, 3, batch.tokens)),
        "longer": jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 4))), batch),
    }[other]
    loss = jax.jit(jax.value_and_grad(partial(sft_loss, logprobs=built(LLAMA).logprobs), has_aux=True))
    (one, aux), gradient = loss(lively(LLAMA), batch)
    (two, other_aux), other_gradient = loss(lively(LLAMA), same)
    np.testing.assert_allclose(one, two, atol=1e-5)
    assert float(aux.weight) == float(other_aux.weight) == sum(LENGTHS) - 2 * 3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient, other_gradient)


def test_the_prompt_is_read_and_not_learned():
    batch = left_padded([6], 8)
    loss = jax.jit(partial(sft_loss, logprobs=built(LLAMA).logprobs))
    logprobs = built(LLAMA).logprobs(lively(LLAMA), batch, 1.0)
    np.testing.assert_allclose(loss(lively(LLAMA), batch)[0], -np.mean(logprobs[0, -4:]), rtol=1e-5)
    changed = batch.replace(tokens=batch.tokens.at[0, 2].add(1) % LLAMA.vocab)  # the first token of the prompt
    assert abs(float(loss(lively(LLAMA), changed)[0] - loss(lively(LLAMA), batch)[0])) > 1e-4
