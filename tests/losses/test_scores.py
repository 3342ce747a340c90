from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.losses.scores import in_unit, no_moments, with_batch
from rlhf_jax.types import Moments

pytestmark = pytest.mark.usefixtures("strict_dtypes")

MEAN_1_STD_2 = Moments(jnp.float32(7.0), jnp.float32(1.0), jnp.float32(4.0))


def test_running_moments_by_hand():
    moments = with_batch(no_moments(), jnp.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose([moments.count, moments.mean, moments.variance], [3.0, 2.0, 2 / 3], rtol=1e-6)
    moments = with_batch(moments, jnp.array([4.0, 5.0]))
    np.testing.assert_allclose([moments.count, moments.mean, moments.variance], [5.0, 3.0, 2.0], rtol=1e-6)


def test_however_they_come_in_the_moments_are_those_of_all_numbers():
    numbers = np.random.default_rng(0).normal(40.0, 0.5, size=1000).astype(np.float32)
    moments = no_moments()
    for part in np.split(numbers, [1, 2, 300, 310, 900]):
        moments = jax.jit(with_batch)(moments, jnp.asarray(part))
    np.testing.assert_allclose(moments.mean, numbers.mean(), rtol=1e-6)
    np.testing.assert_allclose(moments.variance, numbers.var(), rtol=1e-4)


@pytest.mark.parametrize(
    ("unit", "clip", "expected"),
    [
        ("normalised", 0.8, [0.8, -0.8, 0.5]),
        ("normalised", None, [2.0, -3.0, 0.5]),
        ("scaled", None, [2.5, -2.5, 1.0]),
        ("scaled", 2.0, [2.0, -2.0, 1.0]),
        ("raw", None, [5.0, -5.0, 2.0]),
        ("raw", 3.0, [3.0, -3.0, 2.0]),
    ],
)
def test_scores_in_their_unit_by_hand(unit, clip, expected):
    found = in_unit(jnp.array([5.0, -5.0, 2.0]), MEAN_1_STD_2, unit=unit, clip=clip)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(("unit", "expected"), [("raw", 0.1), ("scaled", 0.1), ("normalised", 0.0)])
def test_scores_that_are_all_the_same_have_no_deviation_and_keep_their_unit(unit, expected):
    same = jnp.full((7,), 0.1)
    moments = with_batch(with_batch(no_moments(), same), same)
    np.testing.assert_allclose(in_unit(same, moments, unit=unit, clip=None), expected, atol=1e-6)
