from __future__ import annotations

import dataclasses
import functools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import LLAMA, assert_trees_close, built, jitted, lively, right_padded
from jax.extend.core import jaxprs_in_params
from jax.tree_util import Partial

from rlhf_jax.models.output import compare_tokens, predicted, shift_right, token_logprobs, token_stats
from rlhf_jax.types import TokenBatch

LENGTHS, WIDTH = [9, 4, 7], 9


def identity(x):
    """An output layer for hidden states that are logits already."""
    return x


def one_row(tokens, segments=None):
    tokens = jnp.array([tokens], jnp.int32)
    segments = jnp.ones_like(tokens) if segments is None else jnp.array([segments], jnp.int32)
    return TokenBatch(tokens, jnp.zeros_like(tokens), segments, jnp.ones_like(tokens, bool))


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, -0.12693), (0.7, -0.05584)])
def test_logits_2_and_0_at_a_temperature_by_hand(strict_dtypes, temperature, expected):
    hidden = jnp.array([[[2.0, 0.0], [0.0, 2.0]]])
    stats = token_stats(identity, hidden, one_row([1, 0]), temperature, chunk=8)
    np.testing.assert_allclose(stats.logprobs, [[0.0, expected]], atol=1e-5)
    p = math.exp(expected)
    np.testing.assert_allclose(stats.entropy[0, 1], -p * math.log(p) - (1 - p) * math.log(1 - p), atol=1e-4)


def test_what_is_reported_of_a_token_comes_from_the_one_before_it():
    hidden = jnp.log(jnp.array([[[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.2, 0.6, 0.2]]]))
    stats = token_stats(identity, hidden, one_row([0, 1, 2]), 1.0, chunk=8)
    np.testing.assert_allclose(stats.logprobs, np.log([[1.0, 0.3, 0.8]]), atol=1e-6)


def test_the_first_token_of_a_segment_and_padding_have_no_probability():
    batch = one_row([1, 1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 2, 2, 0])
    assert predicted(batch).tolist() == [[False, False, False, True, False, True, False]]
    stats = token_stats(identity, jnp.ones((1, 7, 2)), batch, 1.0, chunk=3)
    np.testing.assert_allclose(stats.logprobs, [[0, 0, 0, -math.log(2), 0, -math.log(2), 0]], atol=1e-6)
    np.testing.assert_allclose(stats.entropy, -stats.logprobs, atol=1e-6)


def test_shifting_moves_every_column_one_to_the_right():
    x = jnp.arange(1.0, 7.0).reshape(1, 3, 2)
    np.testing.assert_array_equal(shift_right(x), [[[0, 0], [1, 2], [3, 4]]])
    np.testing.assert_array_equal(shift_right(x[:, :, 0]), [[0, 1, 3]])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("tied", [True, False])
def test_logprobs_and_entropies_are_those_of_the_whole_logits(tied, temperature):
    config = dataclasses.replace(LLAMA, tied=tied, logit_chunk=4)
    model, params, batch = built(config), lively(config), right_padded(LENGTHS, WIDTH)
    stats = jitted(model.token_stats)(params, batch, temperature)
    logits = np.asarray(jitted(model.logits)(params, batch), np.float64) / temperature
    log_softmax = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    taken = np.take_along_axis(log_softmax[:, :-1], np.asarray(batch.tokens)[:, 1:, None], axis=-1)[:, :, 0]
    entropy = -(np.exp(log_softmax) * log_softmax).sum(-1)[:, :-1]
    real = np.asarray(batch.segments)[:, 1:] != 0
    np.testing.assert_allclose(stats.logprobs[:, 1:], np.where(real, taken, 0.0), atol=1e-5)
    np.testing.assert_allclose(stats.entropy[:, 1:], np.where(real, entropy, 0.0), atol=1e-5)
    np.testing.assert_array_equal(stats.logprobs[:, 0], 0.0)
    np.testing.assert_array_equal(jitted(model.logprobs)(params, batch, temperature), stats.logprobs)


@pytest.mark.parametrize("last", [1, 4, 99])
def test_what_stands_before_the_last_columns_is_not_computed(last):
    model, params, batch = built(LLAMA), lively(LLAMA), right_padded(LENGTHS, WIDTH)
    unembed, hidden = Partial(model.unembed, params), jitted(model.hidden)(params, batch)
    whole, part = (token_stats(unembed, hidden, batch, 0.7, chunk=3, last=n) for n in (None, last))
    assert_trees_close(part, jax.tree.map(lambda x: x.at[:, : max(WIDTH - last, 0)].set(0.0), whole), atol=1e-5)
    compared = compare_tokens(unembed, hidden, unembed, 0.5 * hidden, batch, 0.7, chunk=3, last=last)
    assert_trees_close(compared[0], part, atol=1e-5)
    assert_trees_close(compared[1], token_stats(unembed, 0.5 * hidden, batch, 0.7, chunk=3, last=last), atol=1e-5)
    traced = jax.make_jaxpr(partial(token_stats, unembed, chunk=99, last=last))(hidden, batch, 0.7)
    assert f",{min(last, WIDTH)},{LLAMA.vocab}]" in str(traced) and (
        last >= WIDTH or f",{WIDTH},{LLAMA.vocab}]" not in str(traced)
    )


@pytest.mark.parametrize("chunk", [1, 4, 9, None])
def test_the_output_layer_in_chunks_gives_the_values_and_gradients_of_the_whole(chunk):
    (whole, gradient), (parts, other_gradient) = in_chunks(100), in_chunks(chunk)
    assert_trees_close(parts, whole, atol=1e-5)
    assert_trees_close(other_gradient, gradient, atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("chunk", [3, 8, None])
@pytest.mark.parametrize(
    "of", [token_logprobs, lambda *a, **k: token_stats(*a, **k).logprobs], ids=["logprobs", "stats"]
)
def test_an_output_layer_may_close_over_what_is_learned(of, chunk):
    weights, hidden = jax.random.normal(jax.random.key(0), (6, 11)), jax.random.normal(jax.random.key(1), (2, 7, 6))
    batch = right_padded([7, 5], 7, vocab=11)

    def total(weights, closed):
        unembed = (lambda h: h @ weights) if closed else Partial(lambda w, h: h @ w, weights)
        return jnp.sum(of(unembed, hidden, batch, 0.7, chunk=chunk))

    np.testing.assert_allclose(jax.grad(total)(weights, True), jax.grad(total)(weights, False), atol=1e-5)


@pytest.mark.parametrize("chunk", [3, None])
@pytest.mark.parametrize("of", ["logprobs", "stats"])
def test_the_backward_pass_written_here_is_that_of_the_arithmetic(strict_dtypes, of, chunk):
    keys = jax.random.split(jax.random.key(0), 5)
    weights, hidden = 0.5 * jax.random.normal(keys[0], (6, 11)), jax.random.normal(keys[1], (2, 7, 6))
    given = [jax.random.normal(key, (2, 7)) for key in keys[2:4]]
    batch = right_padded([7, 5], 7, vocab=11)

    def written_here(weights, hidden, temperature):
        unembed = Partial(lambda w, h: h @ w, weights)
        if of == "logprobs":
            return jnp.sum(given[0] * token_logprobs(unembed, hidden, batch, temperature, chunk=chunk))
        stats = token_stats(unembed, hidden, batch, temperature, chunk=chunk)
        return jnp.sum(given[0] * stats.logprobs + given[1] * stats.entropy)

    def plainly(weights, hidden, temperature):
        logp = jax.nn.log_softmax(shift_right(hidden) @ weights / temperature)
        known, tokens = predicted(batch), batch.tokens[:, :, None]
        total = jnp.sum(jnp.where(known, given[0] * jnp.take_along_axis(logp, tokens, axis=-1)[:, :, 0], 0.0))
        if of == "logprobs":
            return total
        return total - jnp.sum(jnp.where(known, given[1] * jnp.sum(jnp.exp(logp) * logp, axis=-1), 0.0))

    at = (weights, hidden, jnp.float32(0.7))
    mine, theirs = (jax.value_and_grad(function, argnums=(0, 1, 2))(*at) for function in (written_here, plainly))
    assert_trees_close(mine, theirs, atol=1e-5, rtol=1e-5)


@functools.cache
def in_chunks(size):
    """(log-probs and entropies, gradient of a sum of both)."""
    model, batch = built(dataclasses.replace(LLAMA, logit_chunk=size)), right_padded(LENGTHS, WIDTH)

    def total(params):
        stats = model.token_stats(params, batch, 0.7)
        return jnp.sum(stats.logprobs) + 0.3 * jnp.sum(stats.entropy), stats

    (_, stats), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(lively(LLAMA))
    return stats, gradient


def arrays_of(jaxpr):
    """Sizes of all arrays that a program makes, those of its inner programs too."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.size for variable in equation.outvars if hasattr(variable.aval, "size"))
        for inner in jaxprs_in_params(equation.params):
            yield from arrays_of(inner)


def test_the_logits_of_a_whole_sequence_never_exist_not_even_in_the_backward_pass():
    batch = right_padded([64], 64, vocab=1024)
    whole = 64 * 1024

    def largest(chunk):
        config = dataclasses.replace(LLAMA, vocab=1024, logit_chunk=chunk)
        loss = jax.grad(lambda params: jnp.sum(built(config).logprobs(params, batch, 1.0)))
        params = jax.eval_shape(built(config).init, jax.random.key(0))
        return max(arrays_of(jax.make_jaxpr(loss)(params).jaxpr))

    assert largest(64) >= whole
    assert largest(16) < whole


@pytest.mark.parametrize("of", ["logprobs", "stats"])
def test_logits_that_are_kept_are_not_made_again(of):
    """Three products, of the logits and of both gradients, in place of four."""
    weights, hidden = jnp.ones((6, 11)), jnp.ones((2, 7, 6))
    batch = right_padded([7, 5], 7, vocab=11)

    def products(chunk):
        def total(weights, hidden):
            unembed = Partial(lambda w, h: h @ w, weights)
            if of == "logprobs":
                return jnp.sum(token_logprobs(unembed, hidden, batch, 0.7, chunk=chunk))
            return jnp.sum(jax.tree.reduce(jnp.add, token_stats(unembed, hidden, batch, 0.7, chunk=chunk)))

        return jax.jit(jax.grad(total, argnums=(0, 1))).lower(weights, hidden).as_text().count("stablehlo.dot_general")

    assert (products(None), products(8)) == (3, 4)


def test_kl_by_hand_and_of_a_distribution_to_itself():
    p, q = jnp.log(jnp.array([[[0.5, 0.5]] * 3])), jnp.log(jnp.array([[[0.9, 0.1]] * 3]))
    batch = one_row([0, 1, 0], [1, 1, 0])
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    for chunk in (1, 2, 8):
        kl = compare_tokens(identity, p, identity, q, batch, 1.0, chunk=chunk)[2]
        np.testing.assert_allclose(kl, [[0.0, expected, 0.0]], atol=1e-6)
    np.testing.assert_array_equal(compare_tokens(identity, p, identity, p, batch, 0.7, chunk=2)[2], 0.0)


def test_kl_is_that_of_the_tempered_distributions():
    p, q = jnp.array([[[2.0, 0.0]] * 2]), jnp.array([[[0.0, 1.0]] * 2])
    kl = compare_tokens(identity, p, identity, q, one_row([0, 0]), 0.5, chunk=8)[2][0, 1]
    a, b = 1 / (1 + math.exp(-4.0)), 1 / (1 + math.exp(2.0))
    np.testing.assert_allclose(kl, a * math.log(a / b) + (1 - a) * math.log((1 - a) / (1 - b)), rtol=1e-5)


def test_gradients_of_logprobs_and_kl_are_finite_for_certain_tokens():
    logits = jnp.array([[[200.0, -200.0], [-200.0, 200.0]]])
    batch = one_row([0, 1])

    def loss(x):
        stats = token_stats(identity, x, batch, 0.7, chunk=1)
        kl = compare_tokens(identity, x, identity, -logits, batch, 0.7, chunk=1)[2]
        return jnp.sum(stats.logprobs) + jnp.sum(stats.entropy) + jnp.sum(kl)

    assert np.isfinite(jax.grad(loss)(logits)).all()
