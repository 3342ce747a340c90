"""Simulated annotators: probabilities by hand, labels that follow them, and noise that no batch layout changes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlhf_jax.feedback.simulated import SimulatedAnnotator, bayes_agreement, bradley_terry_probability

PAIRS = 40_000


def golds(count: int = PAIRS) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.uniform(size=count), rng.uniform(size=count)


def test_bradley_terry_by_hand():
    # sigmoid(1) = 1 / (1 + e^-1) = .7310586, sigmoid(2) = .8807971
    p = bradley_terry_probability([0.5, 1.0, 0.3, 0.0], [0.25, 0.5, 0.3, 0.25], 0.25)
    np.testing.assert_allclose(p, [0.7310586, 0.8807971, 0.5, 0.2689414], atol=1e-7)


def test_no_temperature_means_no_noise_but_for_ties():
    np.testing.assert_array_equal(bradley_terry_probability([1.0, 0.2, 0.5], [0.2, 1.0, 0.5], 0.0), [1.0, 0.0, 0.5])


def test_a_tiny_temperature_neither_warns_nor_overflows():
    np.testing.assert_array_equal(bradley_terry_probability([1.0, 0.0], [0.0, 1.0], 1e-320), [1.0, 0.0])


def test_flips_mix_the_label_with_its_opposite_by_hand():
    annotator = SimulatedAnnotator(temperature=0.0, flip=0.25)
    np.testing.assert_allclose(annotator.probability([1.0, 0.0, 0.5], [0.0, 1.0, 0.5]), [0.75, 0.25, 0.5])
    # .75 * .7310586 + .25 * .2689414 = .6155293
    soft = SimulatedAnnotator(temperature=0.25, flip=0.25)
    np.testing.assert_allclose(soft.probability([0.5], [0.25]), [0.6155293], atol=1e-7)


def test_swapping_the_replies_swaps_the_probability():
    a, b = golds(100)
    annotator = SimulatedAnnotator(temperature=0.3, flip=0.1)
    np.testing.assert_allclose(annotator.probability(a, b) + annotator.probability(b, a), 1.0, rtol=1e-12)


@pytest.mark.parametrize(
    "annotator", [SimulatedAnnotator(), SimulatedAnnotator(0.1, 0.25, 3), SimulatedAnnotator(0.0, 0.1)]
)
def test_labels_come_as_often_as_their_probability_says(annotator):
    a, b = golds()
    p, labels = annotator.probability(a, b), annotator.prefers_first(a, b, np.arange(PAIRS))
    for low, high in [(0, 0.3), (0.3, 0.5), (0.5, 0.7), (0.7, 1.01)]:
        inside = (low <= p) & (p < high)
        variance = (p * (1 - p))[inside].sum()
        assert abs(labels[inside].sum() - p[inside].sum()) <= 4 * math.sqrt(variance)


def test_ties_are_split_evenly_even_without_noise():
    labels = SimulatedAnnotator(temperature=0.0).prefers_first(np.ones(PAIRS), np.ones(PAIRS), np.arange(PAIRS))
    assert abs(labels.mean() - 0.5) < 4 * 0.5 / math.sqrt(PAIRS)


def test_without_noise_labels_are_the_gold_order():
    a, b = golds(1000)
    np.testing.assert_array_equal(SimulatedAnnotator(temperature=0.0).prefers_first(a, b, np.arange(1000)), a > b)


def test_bayes_accuracy_by_hand():
    def ceiling(first, second, **noise):
        return bayes_agreement(SimulatedAnnotator(**noise).probability(first, second)).mean()

    assert ceiling([1.0, 0.0], [0.0, 1.0], temperature=0.0) == 1.0
    assert ceiling([1.0, 0.0], [0.0, 1.0], temperature=0.0, flip=0.25) == 0.75
    # mean of .7310586, .5 and .8807971
    assert ceiling([0.25, 0.5, 0.0], [0.0, 0.5, 0.5], temperature=0.25) == pytest.approx(0.7039519, abs=1e-7)


def test_the_gold_order_itself_reaches_the_bayes_accuracy_and_no_more():
    a, b = golds()
    annotator = SimulatedAnnotator(temperature=0.5, flip=0.1)
    accuracy = np.mean((a > b) == annotator.prefers_first(a, b, np.arange(PAIRS)))
    assert abs(accuracy - bayes_agreement(annotator.probability(a, b)).mean()) < 4 * 0.5 / math.sqrt(PAIRS)


def test_labels_do_not_depend_on_batch_layout():
    a, b = golds(512)
    ids = np.random.default_rng(1).integers(0, 2**62, size=512)
    annotator = SimulatedAnnotator(flip=0.2, seed=5)
    labels = annotator.prefers_first(a, b, ids)
    order = np.random.default_rng(2).permutation(512)
    np.testing.assert_array_equal(annotator.prefers_first(a[order], b[order], ids[order]), labels[order])
    np.testing.assert_array_equal(
        annotator.prefers_first(a.reshape(8, 64), b.reshape(8, 64), ids.reshape(8, 64)), labels.reshape(8, 64)
    )
    one_by_one = [annotator.prefers_first(a[i], b[i], ids[i]) for i in range(512)]
    np.testing.assert_array_equal(one_by_one, labels)
    np.testing.assert_array_equal(SimulatedAnnotator(flip=0.2, seed=5).prefers_first(a, b, ids), labels)


def test_seed_and_pair_id_change_the_noise():
    ties, ids = np.zeros(PAIRS), np.arange(PAIRS)
    labels = SimulatedAnnotator(seed=0).prefers_first(ties, ties, ids)
    for other in (
        SimulatedAnnotator(seed=1).prefers_first(ties, ties, ids),
        SimulatedAnnotator(seed=-1).prefers_first(ties, ties, ids),
        SimulatedAnnotator(seed=0).prefers_first(ties, ties, ids + PAIRS),
        SimulatedAnnotator(seed=0).prefers_first(ties, ties, ids + 1),
    ):
        assert abs(np.mean(labels == other) - 0.5) < 4 * 0.5 / math.sqrt(PAIRS)


def test_judgement_and_flip_are_independent_of_each_other():
    ties, ids = np.zeros(PAIRS), np.arange(PAIRS)
    plain = SimulatedAnnotator().prefers_first(ties, ties, ids)
    flipped = SimulatedAnnotator(flip=0.25).prefers_first(ties, ties, ids) != plain
    assert abs(flipped.mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / PAIRS)
    assert abs(flipped[plain].mean() - flipped[~plain].mean()) < 4 * math.sqrt(0.25 * 0.75 / (PAIRS / 4))


def test_labels_stay_the_same_over_versions():
    # A change here changes every data set of simulated preferences.
    labels = SimulatedAnnotator(flip=0.25, seed=0).prefers_first(np.zeros(16), np.zeros(16), np.arange(16))
    assert "".join("ba"[int(label)] for label in labels) == "bbbaabbaabbaaabb"


def test_bad_settings_and_golds_say_what_would_be_right():
    with pytest.raises(ValueError, match=r"temperature is -0\.1"):
        SimulatedAnnotator(temperature=-0.1)
    with pytest.raises(ValueError, match="temperature is nan"):
        SimulatedAnnotator(temperature=math.nan)
    with pytest.raises(ValueError, match=r"flip is 1\.2"):
        SimulatedAnnotator(flip=1.2)
    annotator = SimulatedAnnotator()
    with pytest.raises(ValueError, match=r"shape \(2,\) and gold_b \(3,\)"):
        annotator.probability(np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match="finite"):
        annotator.probability([math.nan], [0.0])
    with pytest.raises(ValueError, match="integers, not float64"):
        annotator.prefers_first([0.0], [0.0], [0.5])
    with pytest.raises(ValueError, match=r"pair_ids has shape \(3,\)"):
        annotator.prefers_first(np.zeros(2), np.zeros(2), np.arange(3))
