from __future__ import annotations

import math

import numpy as np
import pytest

from rlhf_jax.eval.preference import (
    accuracy,
    expected_calibration_error,
    mean_and_error,
    normalised_score,
    wilson_interval,
)


def test_a_tie_counts_one_half():
    assert accuracy(np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 2.0, 5.0, 1.0])) == 0.625


def test_calibration_by_hand():
    probability = np.array([0.9] * 10 + [0.6] * 10)
    outcome = np.array([1.0] * 9 + [0.0] + [1.0] * 3 + [0.0] * 7)
    # half of the pairs are off by 0, half by .3
    assert expected_calibration_error(probability, outcome) == pytest.approx(0.15)


def test_over_and_under_confidence_do_not_cancel_between_bins_but_do_within_one():
    apart = expected_calibration_error(np.array([0.2, 0.8]), np.array([1.0, 0.0]))
    together = expected_calibration_error(np.array([0.2, 0.8]), np.array([1.0, 0.0]), bins=1)
    assert (apart, together) == (pytest.approx(0.8), pytest.approx(0.0))


def test_certainty_belongs_to_the_last_bin():
    assert expected_calibration_error(np.array([1.0, 0.95]), np.array([1.0, 1.0])) == pytest.approx(0.025)
    assert expected_calibration_error(np.array([1.0, 1.0]), np.array([0.0, 0.0])) == 1.0


@pytest.mark.parametrize(
    ("share", "count", "low", "high"),
    # The first two: Newcombe 1998, Statistics in Medicine 17, table I, method 3 without continuity correction.
    [(81 / 263, 263, 0.2553, 0.3662), (0 / 20, 20, 0.0, 0.1611), (0.5, 805, 0.4655, 0.5345), (1.0, 1, 0.2065, 1.0)],
)
def test_wilsons_interval_against_known_values(share, count, low, high):
    np.testing.assert_allclose(wilson_interval(share, count), (low, high), atol=6e-5)


def test_an_interval_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one observation"):
        wilson_interval(0.5, 0)


def test_the_error_of_a_mean_by_hand():
    mean, error = mean_and_error([1.0, 2.0, 3.0, 4.0])
    assert mean == 2.5
    assert error == pytest.approx(math.sqrt(5 / 3) / 2)
    assert math.isnan(mean_and_error([7.0])[1])
    assert mean_and_error(np.array([7.0]))[0] == 7.0


@pytest.mark.parametrize(
    ("raw", "chance", "expected"), [(55.0, 50.0, 10.0), (50.0, 50.0, 0.0), (100.0, 25.0, 100.0), (0.0, 20.0, -25.0)]
)
def test_the_normalised_score_is_the_way_from_chance_to_perfect(raw, chance, expected):
    assert normalised_score(raw, chance) == pytest.approx(expected)


def test_a_normalised_score_needs_room_above_chance():
    with pytest.raises(ValueError, match=r"chance is 100.0 %; expected less than 100"):
        normalised_score(100.0, 100.0)
