from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from rlhf_jax.losses.rating import ordinal, process_loss, regression, solution_logprob, thresholds_of
from rlhf_jax.types import StepBatch, TokenBatch

pytestmark = pytest.mark.usefixtures("strict_dtypes")

CUTS = jnp.array([-1.0, 0.5])


def test_regression_by_hand():
    np.testing.assert_allclose(regression(jnp.array([1.0, 3.5]), jnp.array([2.0, 3.0])), [0.5, 0.125])


def test_grades_are_a_distribution_that_is_crossed_in_order():
    scores = jnp.array([-3.0, 0.0, 2.0])
    probability = np.exp([-np.asarray(ordinal(scores, jnp.full((3,), grade), CUTS)) for grade in range(3)])
    np.testing.assert_allclose(probability.sum(axis=0), 1.0, rtol=1e-5)
    # sigmoid(-1) and sigmoid(.5) at score 0
    np.testing.assert_allclose(probability[:, 1], [0.26894, 0.62246 - 0.26894, 0.37754], atol=1e-4)
    np.testing.assert_array_equal(probability.argmax(axis=0), [0, 2, 2])


@pytest.mark.parametrize("grade", [0, 1, 2])
@pytest.mark.parametrize("score", [-60.0, 0.3, 60.0])
def test_ordinal_gradients_are_finite_far_out(grade, score):
    def loss(s, cuts):
        return ordinal(jnp.asarray(s)[None], jnp.array([grade]), jnp.asarray(cuts))[0]

    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(jnp.float32(score), CUTS)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    if abs(score) < 1:
        check_grads(loss, (jnp.float32(score), CUTS), 1, ["rev"], atol=2e-3, rtol=2e-3)


def test_thresholds_rise():
    np.testing.assert_allclose(
        thresholds_of(jnp.float32(-1.0), jnp.log(jnp.array([1.5, 0.5]))), [-1.0, 0.5, 1.0], rtol=1e-6
    )


def test_process_loss_counts_labelled_steps_alone():
    tokens = jnp.array([[1, 2, 3, 0]], jnp.int32)
    text = TokenBatch(tokens, tokens, jnp.ones_like(tokens), jnp.ones_like(tokens, bool))
    batch = StepBatch(text, jnp.array([[0.0, 1.0, 0.0, 0.0]]), jnp.array([[False, True, True, False]]))
    scores = jnp.array([[jnp.nan, 1.0, 2.0, jnp.nan]])
    loss, aux = process_loss(None, batch, token_scores=lambda params, text: scores)
    np.testing.assert_allclose(loss, (0.31326 + 2.12693) / 2, atol=1e-5)  # softplus(-1) and softplus(2)
    np.testing.assert_allclose(aux.metrics["accuracy"], 0.5)
    assert float(aux.weight) == 2.0
    np.testing.assert_allclose(solution_logprob(scores, batch.mask), [-0.31326 - 0.12693], atol=1e-5)
