from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.losses.classification import class_loss
from rlhf_jax.types import LabelBatch, TokenBatch

pytestmark = pytest.mark.usefixtures("strict_dtypes")

LOGITS = np.array([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0], [2.0, 2.5, 0.0], [0.3, 0.1, 0.2]])
LABELS, WEIGHTS = np.array([1, 0, 1, 2]), np.array([1.0, 2.0, 1.0, 0.0])


def batch() -> LabelBatch:
    tokens = jnp.zeros((4, 1), jnp.int32)
    text = TokenBatch(tokens, tokens, jnp.ones_like(tokens), jnp.ones((4, 1), bool))
    return LabelBatch(text, jnp.asarray(LABELS, jnp.float32), jnp.asarray(WEIGHTS, jnp.float32))


measure = partial(class_loss, class_logits=lambda params, text: params)


def test_it_is_the_mean_of_minus_log_p_by_hand():
    loss, aux = measure(jnp.asarray(LOGITS, jnp.float32), batch())
    log_p = LOGITS - np.log(np.exp(LOGITS).sum(axis=1, keepdims=True))
    expected = -(WEIGHTS * log_p[np.arange(4), LABELS]).sum() / WEIGHTS.sum()
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    # Right in the first and the third text, of the weights 1, 2, 1, 0.
    np.testing.assert_allclose(aux.metrics["accuracy"], 0.5, rtol=1e-6)
    assert float(aux.weight) == 4.0


def test_its_gradient_is_p_minus_the_label():
    gradient = jax.grad(lambda logits: measure(logits, batch())[0])(jnp.asarray(LOGITS, jnp.float32))
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
    expected = (p - np.eye(3)[LABELS]) * WEIGHTS[:, None] / WEIGHTS.sum()
    np.testing.assert_allclose(gradient, expected, atol=1e-6)
