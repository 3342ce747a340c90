from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.losses.policy import (
    clipped_surrogate,
    importance_ratio,
    only_finished,
    overlong_penalty,
    score_function,
    token_weights,
    truncated_importance,
    weighted_loss,
)

pytestmark = pytest.mark.usefixtures("strict_dtypes")

TWO_AND_FOUR = jnp.array([[1, 1, 0, 0], [1, 1, 1, 1]], bool)
ONE_AND_THREE = jnp.array([[1.0, 1.0, jnp.nan, jnp.nan], [3.0, 3.0, 3.0, 3.0]])


@pytest.mark.parametrize(
    ("normaliser", "how", "expected"),
    [
        ("token", {}, 14 / 6),
        ("sequence", {}, 2.0),
        ("constant", {"constant": 5.0}, 1.4),
        ("group", {"group": jnp.array([0, 1]), "groups": 2}, 2.0),
        ("group", {"group": jnp.array([1, 1]), "groups": 2}, 14 / 6),
    ],
)
def test_normalisers_by_hand(normaliser, how, expected):
    loss = weighted_loss(ONE_AND_THREE, token_weights(TWO_AND_FOUR, normaliser, **how))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_groups_are_averaged_before_prompts():
    mask = jnp.array([[1, 0], [1, 1], [1, 1]], bool)
    losses = jnp.array([[1.0, 0.0], [4.0, 4.0], [10.0, 20.0]])
    weights = token_weights(mask, "group", group=jnp.array([0, 0, 1]), groups=2)
    np.testing.assert_allclose(weighted_loss(losses, weights), (3 + 15) / 2, rtol=1e-6)


@pytest.mark.parametrize("normaliser", ["token", "sequence", "constant", "group"])
def test_any_split_into_microbatches_adds_up_to_the_whole(normaliser):
    noise = np.random.default_rng(0)
    mask = jnp.asarray(noise.random((8, 5)) < 0.6)
    losses = jnp.asarray(noise.normal(size=(8, 5)), jnp.float32)
    whole = token_weights(mask, normaliser, constant=7.0, group=jnp.arange(8) // 2, groups=4)
    parts = [jax.tree.map(lambda x, rows=rows: x[rows], whole) for rows in (slice(0, 3), slice(3, 4), slice(4, 8))]
    pieces = [
        weighted_loss(losses[rows], part)
        for rows, part in zip((slice(0, 3), slice(3, 4), slice(4, 8)), parts, strict=True)
    ]
    sizes = [float(jnp.sum(part.row)) for part in parts]
    np.testing.assert_allclose(np.average(pieces, weights=sizes), weighted_loss(losses, whole), rtol=1e-5)


def test_empty_rows_weigh_nothing_but_under_a_constant():
    mask = jnp.array([[1, 1], [0, 0]], bool)
    losses = jnp.array([[2.0, 4.0], [jnp.nan, jnp.nan]])
    assert float(weighted_loss(losses, token_weights(mask, "sequence"))) == 3.0
    assert float(weighted_loss(losses, token_weights(mask, "token"))) == 3.0
    # Dr. GRPO divides by the number of responses, whatever they contain.
    assert float(weighted_loss(losses, token_weights(mask, "constant", constant=2.0))) == 1.5


@pytest.mark.parametrize(("normaliser", "message"), [("constant", "give constant"), ("group", "give group")])
def test_normalisers_say_what_they_lack(normaliser, message):
    with pytest.raises(ValueError, match=message):
        token_weights(TWO_AND_FOUR, normaliser)


@pytest.mark.parametrize(
    ("advantage", "ratio", "how", "value", "gradient"),
    [
        (1.0, 1.25, {"clip": 0.2}, 1.2, 0.0),
        (1.0, 1.25, {"clip": 0.2, "clip_high": 0.28}, 1.25, 1.25),
        (1.0, 1.3, {"clip": 0.2}, 1.2, 0.0),
        (-1.0, 0.7, {"clip": 0.2}, -0.8, 0.0),
        (-1.0, 0.7, {"clip": 0.2, "clip_high": 0.28}, -0.8, 0.0),
        (-1.0, 1.5, {"clip": 0.2}, -1.5, -1.5),
        (-1.0, 5.0, {"clip": 0.2}, -5.0, -5.0),
        (-1.0, 5.0, {"clip": 0.2, "dual_clip": 3.0}, -3.0, 0.0),
        (-1.0, 2.5, {"clip": 0.2, "dual_clip": 3.0}, -2.5, -2.5),
        (1.0, 5.0, {"clip": 0.2, "dual_clip": 3.0}, 1.2, 0.0),
    ],
)
def test_the_clipped_surrogate_by_hand(advantage, ratio, how, value, gradient):
    def surrogate(logprob):
        return clipped_surrogate(jnp.exp(logprob), jnp.float32(advantage), **how)

    found, slope = jax.value_and_grad(surrogate)(jnp.log(jnp.float32(ratio)))
    np.testing.assert_allclose(found, value, rtol=1e-6)
    np.testing.assert_allclose(slope, gradient, rtol=1e-6)


def test_ratios_per_token_and_per_sequence_by_hand():
    logprobs, old = jnp.array([[jnp.nan, -1.0, -2.0]]), jnp.array([[0.0, -1.5, -1.9]])
    mask = jnp.array([[False, True, True]])
    np.testing.assert_allclose(importance_ratio(logprobs, old, mask), [[1.0, np.exp(0.5), np.exp(-0.1)]], rtol=1e-6)
    both = np.exp(0.2)  # the mean of .5 and -.1
    np.testing.assert_allclose(importance_ratio(logprobs, old, mask, level="sequence"), [[1.0, both, both]], rtol=1e-6)


def test_the_gradient_of_a_sequence_ratio_is_spread_over_its_tokens():
    mask = jnp.array([[True, True, False]])

    def gspo(logprobs):
        ratio = importance_ratio(logprobs, jnp.array([[-1.5, -1.9, 0.0]]), mask, level="sequence")
        return weighted_loss(clipped_surrogate(ratio, jnp.full((1, 3), 2.0), clip=0.3), token_weights(mask, "sequence"))

    gradient = jax.grad(gspo)(jnp.array([[-1.0, -2.0, 0.0]]))
    # d(s A) / d log pi_t = s A / |y|
    np.testing.assert_allclose(gradient, [[np.exp(0.2), np.exp(0.2), 0.0]], rtol=1e-6)


def test_truncated_importance_holds_its_weight_fixed():
    old = jnp.log(jnp.array([0.2, 0.05]))

    def objective(logprobs):
        return jnp.sum(truncated_importance(logprobs, jnp.exp(logprobs - old), jnp.array([1.0, -1.0]), cap=2.0))

    # ratios 1.5 and 6: the weight of the second is cut to 2, and its gradient stays
    np.testing.assert_allclose(jax.grad(objective)(jnp.log(jnp.array([0.3, 0.3]))), [1.5, -2.0], rtol=1e-6)


def test_score_function_and_ppo_have_one_gradient_where_the_ratio_is_1():
    logits, action = jnp.array([1.0, 2.0, 1.0, 1.0]), 1

    def logprob(x):
        return jax.nn.log_softmax(x)[action]

    old = logprob(logits)
    first = jax.grad(lambda x: score_function(logprob(x), jnp.float32(1.0)))(logits)
    second = jax.grad(lambda x: clipped_surrogate(jnp.exp(logprob(x) - old), jnp.float32(1.0), clip=0.2))(logits)
    np.testing.assert_allclose(first, [-0.1749, 0.5246, -0.1749, -0.1749], atol=1e-4)
    np.testing.assert_allclose(second, first, rtol=1e-6)


def test_the_overlong_filter_drops_what_was_cut():
    mask = only_finished(TWO_AND_FOUR, jnp.array([True, False]))
    np.testing.assert_array_equal(mask, [[True, True, False, False], [False] * 4])


@pytest.mark.parametrize(("length", "expected"), [(16384, 0.0), (18432, -0.5), (20480, -1.0), (20481, -1.0), (10, 0.0)])
def test_the_soft_overlong_penalty_by_hand(length, expected):
    found = overlong_penalty(jnp.float32(length), longest=20480, cache=4096)
    np.testing.assert_allclose(found, expected)
