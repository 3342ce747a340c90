"""Figures of classifiers, against numbers counted by hand."""

import numpy as np
import pytest

from rlhf_jax.eval.classification import class_figures, confusion

ACTUAL = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 2])
PREDICTED = np.array([0, 0, 1, 1, 2, 2, 2, 2, 0, 1])


def test_rows_are_what_was_and_columns_what_was_predicted():
    assert confusion(PREDICTED, ACTUAL, 3).tolist() == [[2, 1, 0], [0, 1, 1], [1, 1, 3]]


def test_figures_counted_by_hand():
    figures = class_figures(PREDICTED, ACTUAL, 3)
    assert figures.accuracy == pytest.approx(0.6)
    assert figures.support.tolist() == [3, 2, 5]
    np.testing.assert_allclose(figures.precision, [2 / 3, 1 / 3, 3 / 4])
    np.testing.assert_allclose(figures.recall, [2 / 3, 1 / 2, 3 / 5])
    np.testing.assert_allclose(figures.f1, [2 / 3, 2 / 5, 2 / 3])  # 4 / 6, 2 / 5, 6 / 9
    assert figures.macro_precision == pytest.approx(7 / 12)
    assert figures.macro_recall == pytest.approx(53 / 90)
    assert figures.macro_f1 == pytest.approx(26 / 45)


def test_classes_that_are_never_predicted_or_never_there_count_as_0_and_still_count():
    figures = class_figures(np.array([0, 0, 3]), np.array([0, 1, 0]), 4)
    np.testing.assert_allclose(figures.precision, [1 / 2, 0, 0, 0])
    np.testing.assert_allclose(figures.recall, [1 / 2, 0, 0, 0])
    np.testing.assert_allclose(figures.f1, [1 / 2, 0, 0, 0])
    assert figures.macro_f1 == pytest.approx(1 / 8)


def test_two_classes_are_each_other_mirrored():
    figures = class_figures(1 - PREDICTED.clip(0, 1), 1 - ACTUAL.clip(0, 1), 2)
    mirrored = class_figures(PREDICTED.clip(0, 1), ACTUAL.clip(0, 1), 2)
    np.testing.assert_allclose(figures.f1, mirrored.f1[::-1])
    assert figures.accuracy == mirrored.accuracy == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("predicted", "actual", "message"),
    [
        ([], [], "no examples to classify"),
        ([0, 3], [0, 1], "predicted class 3; expected 0 to 2"),
        ([0, 1], [0, -1], "actual class -1; expected 0 to 2"),
    ],
)
def test_what_cannot_be_counted_is_refused(predicted, actual, message):
    with pytest.raises(ValueError, match=message):
        class_figures(np.array(predicted, int), np.array(actual, int), 3)
