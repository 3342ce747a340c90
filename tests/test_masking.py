from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.masking import (
    first_index,
    in_prompt,
    last_index,
    mask_weight,
    masked_mean,
    masked_sum,
    masked_var,
    positions_of,
    whiten,
)

pytestmark = pytest.mark.usefixtures("strict_dtypes")

X = np.array([[1.0, 2.0, 6.0], [5.0, 0.0, 0.0]], np.float32)
MASK = np.array([[True, False, True], [True, False, False]])


def arrays():
    return jnp.asarray(X), jnp.asarray(MASK)


def test_masked_mean_by_hand():
    x, mask = arrays()
    assert float(masked_sum(x, mask)) == 12.0
    assert float(masked_mean(x, mask)) == 4.0
    assert float(mask_weight(mask)) == 3.0


def test_variance_divides_by_the_count():
    x, mask = arrays()
    # ((1 - 4)^2 + (6 - 4)^2 + (5 - 4)^2) / 3
    np.testing.assert_allclose(masked_var(x, mask), 14 / 3, rtol=1e-6)


def test_a_mean_over_a_mask_is_the_mean_of_the_slice():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 9)), jnp.float32)
    mask = jnp.arange(9)[None, :] < 4
    np.testing.assert_allclose(masked_mean(x, mask), np.mean(x[:, :4]), rtol=1e-6)
    np.testing.assert_allclose(masked_var(x, mask), np.var(x[:, :4]), rtol=1e-5)


def test_what_stands_outside_the_mask_changes_neither_mean_nor_gradient():
    x, mask = arrays()
    broken = jnp.where(mask, x, jnp.nan)
    value, gradient = jax.value_and_grad(masked_mean)(broken, mask)
    assert float(value) == 4.0
    np.testing.assert_allclose(gradient, np.where(MASK, 1 / 3, 0.0), rtol=1e-6)


def test_an_empty_mask_gives_zero_with_finite_gradients():
    x, mask = arrays()
    for function in (masked_mean, masked_var, masked_sum):
        value, gradient = jax.value_and_grad(function)(x, jnp.zeros_like(mask))
        assert float(value) == 0.0
        np.testing.assert_array_equal(gradient, np.zeros_like(X))
    np.testing.assert_array_equal(whiten(x, jnp.zeros_like(mask)), np.zeros_like(X))


def test_sums_of_bfloat16_are_made_in_float32():
    ones = jnp.ones((1, 1000), jnp.bfloat16)  # in bfloat16 256 + 1 is 256
    total = masked_sum(ones, jnp.ones((1, 1000), bool))
    assert total.dtype == jnp.float32
    assert float(total) == 1000.0


def test_whitening_gives_the_numbers_of_ziegler():
    x = jnp.asarray(np.arange(12, 21).reshape(3, 3) / 10, jnp.float32)
    everything = jnp.ones((3, 3), bool)
    # torch's unbiased variance would give .1394, .5046, .8697.
    np.testing.assert_allclose(whiten(x, everything, shift_mean=False)[0], [0.0508, 0.4381, 0.8254], atol=1e-4)
    np.testing.assert_allclose(whiten(x, everything)[0], [-1.5492, -1.1619, -0.7746], atol=1e-4)


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening_under_a_mask_is_whitening_of_what_it_holds(shift_mean):
    x, mask = arrays()
    inside = jnp.asarray(X[MASK][None, :])
    whole = whiten(inside, jnp.ones_like(inside, bool), shift_mean=shift_mean)[0]
    masked = np.asarray(whiten(jnp.where(mask, x, jnp.nan), mask, shift_mean=shift_mean))
    np.testing.assert_allclose(masked[MASK], whole, rtol=1e-6)
    np.testing.assert_array_equal(masked[~MASK], 0.0)


def test_whitening_gives_unit_variance_and_keeps_the_mean_where_asked():
    x = jnp.asarray(np.random.default_rng(1).normal(3.0, 0.01, size=(4, 50)), jnp.float32)
    everything = jnp.ones(x.shape, bool)
    shifted, kept = whiten(x, everything), whiten(x, everything, shift_mean=False)
    np.testing.assert_allclose([np.std(shifted), np.std(kept)], 1.0, atol=2e-3)
    np.testing.assert_allclose([np.mean(shifted), np.mean(kept)], [0.0, 3.0], atol=2e-3)


def test_whitening_equal_numbers_gives_zero_and_not_nan():
    same = jnp.full((2, 3), 0.7)
    np.testing.assert_allclose(whiten(same, jnp.ones((2, 3), bool)), 0.0, atol=1e-3)


def test_first_and_last_index_are_those_of_the_first_and_last_true_wherever_padding_stands():
    real = jnp.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]], bool)
    assert last_index(real).tolist() == [2, 4, 4, 0, 0]
    assert first_index(real).tolist() == [0, 0, 2, 0, 0]


@pytest.mark.parametrize(
    ("mask", "positions"),
    [
        ([0, 0, 1, 1, 1], [0, 0, 0, 1, 2]),
        ([1, 0, 0, 1, 1, 1], [0, 1, 1, 1, 2, 3]),
        ([1, 1, 1, 0, 0], [0, 1, 2, 3, 3]),
    ],
)
def test_positions_count_real_tokens_wherever_padding_stands(mask, positions):
    assert positions_of(jnp.array([mask], bool)).tolist() == [positions]


def test_shapes_that_differ_are_refused_and_not_broadcast():
    with pytest.raises(TypeError):
        masked_mean(jnp.ones((2, 3)), jnp.ones((3,), bool))


def test_nothing_in_the_tests_broadcasts_ranks_or_mixes_dtypes_in_silence():
    with pytest.raises(ValueError, match="rank"):
        jnp.ones((2, 3)) + jnp.ones(3)
    with pytest.raises(jax.dtypes.TypePromotionError):
        jnp.ones(3) + jnp.ones(3, jnp.int32)


def test_a_prompt_is_what_stands_before_the_first_token_to_learn_of_its_segment():
    segments = jnp.array([[1, 1, 1, 2, 2, 3, 3, 4, 4, 0], [0, 1, 1, 1, 1, 1, 2, 2, 0, 0]], jnp.int32)
    learned = jnp.array([[0, 0, 1, 0, 1, 1, 1, 0, 0, 0], [0, 0, 1, 0, 0, 1, 1, 0, 0, 0]], bool)
    expected = [[1, 1, 0, 1, 0, 0, 0, 1, 1, 0], [0, 1, 0, 0, 0, 0, 0, 0, 0, 0]]
    np.testing.assert_array_equal(in_prompt(segments, learned), np.array(expected, bool))
