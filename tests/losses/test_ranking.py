from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from rlhf_jax.losses.ranking import best_of_k, k_wise, ranking_loss, rao_kupper
from rlhf_jax.losses.reward import bradley_terry, centring
from rlhf_jax.types import RankedBatch, TokenBatch

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def test_k_wise_by_hand():
    losses, accuracy, pairs = k_wise(jnp.array([[2.0, 1.0, 0.0], [0.0, 2.0, 1.0]]), jnp.array([[0, 1, 2], [2, 0, 1]]))
    # (2 softplus(-1) + softplus(-2)) / 3, in any order of the replies
    np.testing.assert_allclose(losses, [0.25115, 0.25115], atol=1e-5)
    np.testing.assert_allclose(accuracy, [1.0, 1.0])
    np.testing.assert_allclose(pairs, [3.0, 3.0])


def test_ties_and_missing_replies_are_no_pairs():
    scores = jnp.array([[2.0, 1.0, 50.0], [5.0, 3.0, 1.0], [1.0, 0.0, jnp.float32(7.0)]])
    rank = jnp.array([[0, 1, 5], [0, 0, 0], [0, 1, 1]])
    weight = jnp.array([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    losses, accuracy, pairs = k_wise(scores, rank, weight)
    expected = [0.31326, 0.0, (0.31326 + 6.00248) / 2]  # softplus(-1); none; softplus(-1) and softplus(6)
    np.testing.assert_allclose(losses, expected, atol=1e-4)
    np.testing.assert_allclose(accuracy, [1.0, 0.0, 0.5])
    np.testing.assert_allclose(pairs, [1.0, 0.0, 2.0])


def test_a_ranking_reads_every_reply_once_and_leaves_out_prompts_without_pairs():
    seen = []

    def scores(params, batch):
        seen.append(batch.tokens.shape)
        return params + batch.tokens[:, 0].astype(jnp.float32)

    tokens = jnp.array([[2], [1], [0], [5], [5], [5]], jnp.int32)
    texts = TokenBatch(tokens, jnp.zeros_like(tokens), jnp.ones_like(tokens), jnp.zeros_like(tokens, bool))
    batch = RankedBatch(texts, jnp.array([[0, 1, 2], [1, 1, 1]]), jnp.ones((2, 3)))
    loss, aux = ranking_loss(jnp.float32(0.0), batch, scores=scores)
    np.testing.assert_allclose(loss, 0.25115, atol=1e-5)
    assert seen == [(6, 1)]
    assert float(aux.weight) == 1.0


def test_best_of_k_by_hand():
    losses = best_of_k(jnp.array([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]), jnp.array([0, 2]))
    np.testing.assert_allclose(losses, [0.74367, np.log(4)], atol=1e-5)


def test_rao_kupper_is_a_distribution_and_bradley_terry_without_a_threshold():
    first, second = jnp.array([1.2, -0.5]), jnp.array([0.4, 0.5])
    losses = [rao_kupper(first, second, jnp.full((2,), outcome), threshold=0.5) for outcome in (1.0, 0.5, 0.0)]
    np.testing.assert_allclose(sum(np.exp(-np.asarray(loss)) for loss in losses), [1.0, 1.0], rtol=1e-5)
    # d = .8, t = .5: the first wins with sigmoid(.3), the second with sigmoid(-1.3), the rest is a tie
    np.testing.assert_allclose([loss[0] for loss in losses], [0.55436, 1.55404, 1.54102], atol=1e-4)
    np.testing.assert_allclose(
        rao_kupper(first, second, jnp.ones((2,)), threshold=0.0), bradley_terry(first, second), rtol=1e-6
    )
    check_grads(
        lambda a, t: jnp.sum(rao_kupper(jnp.asarray(a), second, jnp.array([1.0, 0.5]), threshold=jnp.asarray(t))),
        (first, jnp.float32(0.5)),
        1,
        ["rev"],
    )


def test_label_smoothing_and_centring_by_hand():
    chosen, rejected = jnp.array([1.2]), jnp.array([0.4])
    np.testing.assert_allclose(bradley_terry(chosen, rejected, label_smoothing=0.1), [0.45110], atol=1e-5)
    np.testing.assert_allclose(centring(chosen, rejected), [2.56], rtol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda s: centring(s, -s)[0])(chosen), [0.0])
