"""Losses that jump, found without taking noise or a trend for a jump."""

from __future__ import annotations

import numpy as np

from rlhf_jax.report.spikes import FEWEST, Spike, Spikes

RNG = np.random.default_rng(0)


def found(values) -> list[Spike]:
    detector = Spikes()
    looked = [detector.look(step, float(value)) for step, value in enumerate(values)]
    return [spike for spike in looked if spike is not None]


def test_a_jump_is_found_with_what_was_usual():
    values = [2.0, 2.2] * 20
    values[25] = 8.0
    (spike,) = found(values)
    assert (spike.step, spike.value) == (25, 8.0) and 2.0 <= spike.usual <= 2.2
    assert str(Spike(25, 8.0, 2.125)) == "8, where 2.125 was usual"


def test_noise_and_falling_losses_have_no_jumps():
    assert found(RNG.normal(3.0, 0.5, size=2000)) == []
    assert found(10 * np.exp(-np.arange(500) / 50) + RNG.normal(0, 0.01, size=500)) == []


def test_values_that_are_almost_equal_need_a_tenth_to_jump():
    assert found([1.0] * 40 + [1.09]) == []
    assert [spike.step for spike in found([1.0] * 40 + [1.11])] == [40]


def test_the_first_values_say_nothing_yet():
    assert found([1.0] * (FEWEST - 1) + [100.0]) == []
    assert len(found([1.0] * FEWEST + [100.0])) == 1


def test_a_new_level_is_told_until_it_is_usual():
    steps = [spike.step for spike in found([1.0, 1.1] * 40 + [5.0] * 100)]
    assert steps[0] == 80 and 10 < len(steps) < 33


def test_what_is_not_finite_is_no_jump_and_does_not_hide_one():
    values = [1.0] * 30 + [float("nan"), float("inf"), 7.0]
    assert [spike.value for spike in found(values)] == [7.0]
