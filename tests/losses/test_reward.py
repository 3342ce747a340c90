from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import LLAMA, built, lively, right_padded

from rlhf_jax.loops.reward import rescaled
from rlhf_jax.losses.reward import bradley_terry, comparison_loss, gain_and_bias, label_loss, weighted_mean
from rlhf_jax.types import LabelBatch, PreferenceBatch, TokenBatch

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def texts(scores) -> TokenBatch:
    """A batch whose rows stand for these scores, for a model that reads them out of the tokens."""
    tokens = jnp.array([[round(100 * score)] for score in scores], jnp.int32)
    return TokenBatch(tokens, jnp.zeros_like(tokens), jnp.ones_like(tokens), jnp.zeros_like(tokens, bool))


def read(params, batch):
    return params + batch.tokens[:, 0].astype(jnp.float32) / jnp.float32(100)


compare = partial(comparison_loss, scores=read)


def pairs(chosen, rejected, weight=None, margin=None) -> PreferenceBatch:
    count = len(chosen)
    return PreferenceBatch(
        chosen=texts(chosen),
        rejected=texts(rejected),
        margin=jnp.array([0.0] * count if margin is None else margin),
        weight=jnp.array([1.0] * count if weight is None else weight),
    )


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [(1.2, 0.4, 0.37110), (0.4, 1.2, 1.17110), (6.2, 5.4, 0.37110), (0.0, 0.0, 0.69315)],
)
def test_bradley_terry_by_hand(chosen, rejected, expected):
    loss = bradley_terry(jnp.array([chosen]), jnp.array([rejected]))
    np.testing.assert_allclose(loss, [expected], atol=1e-5)


def test_a_margin_must_be_won_by():
    loss = bradley_terry(jnp.array([1.2]), jnp.array([0.4]), jnp.array([0.8]))
    np.testing.assert_allclose(loss, [0.69315], atol=1e-5)
    loss, _ = compare(jnp.float32(0.0), pairs([1.2], [0.4], margin=[0.8]))
    np.testing.assert_allclose(loss, 0.69315, atol=1e-5)


def test_gain_and_bias_by_hand():
    scores = np.array([-2.0, 6.0, -2.0, 6.0])  # mean 2, standard deviation 4
    np.testing.assert_allclose(gain_and_bias(scores), (0.25, -0.5))
    gain, bias = gain_and_bias(scores)
    np.testing.assert_allclose(gain_and_bias(gain * scores + bias), (1.0, 0.0), atol=1e-12)


@pytest.mark.parametrize("scores", [[3.0, 3.0], [1.0], [0.0, np.nan], [np.inf, 0.0]])
def test_scores_without_a_spread_have_no_unit(scores):
    with pytest.raises(ValueError, match="there is no unit in them"):
        gain_and_bias(np.array(scores))


def test_rescaling_twice_composes_and_leaves_the_trunk_alone():
    config = dataclasses.replace(LLAMA, head="scalar")
    params, scores = lively(config), jax.jit(built(config).scores)
    batch = right_padded([4, 7, 5], 8)
    raw = np.asarray(scores(params, batch))
    twice = rescaled(rescaled(params, 0.25, -0.5), 2.0, 1.0)
    np.testing.assert_allclose(scores(twice, batch), 2 * (0.25 * raw - 0.5) + 1, atol=1e-5)
    assert twice["tokens"] is params["tokens"]


def test_scores_far_apart_stay_finite_with_live_gradients():
    gradient = jax.grad(lambda x: jnp.sum(bradley_terry(x, jnp.array([1000.0, 0.0]))))(jnp.array([0.0, 1000.0]))
    np.testing.assert_allclose(gradient, [-1.0, 0.0])


def test_comparisons_by_hand():
    loss, aux = compare(jnp.float32(0.0), pairs([1.2, 0.4, 0.5], [0.4, 1.2, 0.5]))
    np.testing.assert_allclose(loss, (0.37110 + 1.17110 + 0.69315) / 3, atol=1e-5)
    metrics = {name: float(value) for name, value in aux.metrics.items()}
    assert float(aux.weight) == 3.0
    assert metrics["accuracy"] == pytest.approx(0.5)  # right, wrong, and a tie that counts one half
    assert metrics["gap"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["score"] == pytest.approx(0.7)
    assert metrics["loss"] == pytest.approx(float(loss))


def test_weights_say_how_much_a_pair_counts_and_zero_leaves_it_out():
    weighted, aux = compare(jnp.float32(0.0), pairs([1.2, 0.4], [0.4, 1.2], weight=[1.0, 0.0]))
    np.testing.assert_allclose(weighted, 0.37110, atol=1e-5)
    np.testing.assert_allclose([aux.weight, aux.metrics["accuracy"], aux.metrics["gap"]], [1.0, 1.0, 0.8], rtol=1e-6)
    third, aux = compare(jnp.float32(0.0), pairs([1.2, 0.4], [0.4, 1.2], weight=[0.5, 0.25]))
    np.testing.assert_allclose(third, (2 * 0.37110 + 1.17110) / 3, atol=1e-5)
    assert float(aux.weight) == 0.75


def test_a_batch_that_only_fills_has_no_loss_and_no_gradient():
    value, gradient = jax.value_and_grad(compare, has_aux=True)(jnp.float32(1.0), pairs([1.0], [2.0], weight=[0.0]))
    assert (float(value[0]), float(value[1].weight), float(gradient)) == (0.0, 0.0, 0.0)
    assert float(weighted_mean(jnp.array([3.0, 9.0]), jnp.array([1.0, 0.0]))) == 3.0


def test_a_constant_added_to_all_scores_changes_nothing():
    batch = pairs([1.2, 0.4], [0.4, 1.0])
    one, other = compare(jnp.float32(0.0), batch)[0], compare(jnp.float32(5.0), batch)[0]
    np.testing.assert_allclose(one, other, atol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda p: compare(p, batch)[0])(jnp.float32(0.0)), 0.0, atol=1e-6)


def test_labels_are_learned_as_log_odds_by_hand():
    batch = LabelBatch(
        text=texts([2.0, 2.0, -1.0, 3.0]), label=jnp.array([1.0, 0.0, 0.0, 0.0]), weight=jnp.array([1.0, 1.0, 1.0, 0.0])
    )
    loss, aux = label_loss(jnp.float32(0.0), batch, scores=read)
    expected = [np.log1p(np.exp(-2.0)), np.log1p(np.exp(2.0)), np.log1p(np.exp(-1.0))]
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-5)
    assert float(aux.weight) == 3.0
    np.testing.assert_allclose([aux.metrics["accuracy"], aux.metrics["score"]], [2 / 3, 1.0], rtol=1e-6)
    gradient = jax.grad(lambda p: label_loss(p, batch, scores=read)[0])(jnp.float32(0.0))
    sigmoid = [1 / (1 + np.exp(-x)) for x in (2.0, 2.0, -1.0)]
    np.testing.assert_allclose(gradient, np.mean(np.array(sigmoid) - [1.0, 0.0, 0.0]), rtol=1e-5)


def test_training_on_comparisons_moves_the_scores_of_a_model_apart():
    with jax.numpy_dtype_promotion("standard"):  # a model mixes dtypes itself
        model = built(dataclasses.replace(LLAMA, head="scalar"))
        params = lively(model.config)
        batch = PreferenceBatch(
            chosen=right_padded([5, 7], 8, seed=1),
            rejected=right_padded([6, 4], 8, seed=2),
            margin=jnp.zeros(2),
            weight=jnp.ones(2),
        )
        loss = jax.jit(jax.value_and_grad(partial(comparison_loss, scores=model.scores), has_aux=True))
        (before, aux), gradient = loss(params, batch)
        apart = np.asarray(model.scores(params, batch.chosen) - model.scores(params, batch.rejected))
        np.testing.assert_allclose(aux.metrics["gap"], apart.mean(), atol=1e-5)
        moved = jax.tree.map(lambda p, g: p - 0.01 * g, params, gradient)
        assert float(loss(moved, batch)[0][0]) < float(before)
