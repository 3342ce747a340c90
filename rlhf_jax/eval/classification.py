"""How well classes are predicted: accuracy, and precision, recall and F1 of each class and averaged over classes."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int


@dataclasses.dataclass(frozen=True)
class ClassFigures:
    """Shares of 1. An array has one entry per class; a macro figure is the mean over the classes, each counting the same."""

    accuracy: float
    precision: Float[np.ndarray, "C"]
    recall: Float[np.ndarray, "C"]
    f1: Float[np.ndarray, "C"]
    support: Int[np.ndarray, "C"]  # examples that are of the class

    @property
    def macro_precision(self) -> float:
        return float(self.precision.mean())

    @property
    def macro_recall(self) -> float:
        return float(self.recall.mean())

    @property
    def macro_f1(self) -> float:
        """The mean of the classes' F1, not the F1 of the means: the two differ, and the first is scikit-learn's."""
        return float(self.f1.mean())


def confusion(predicted: Int[np.ndarray, "N"], actual: Int[np.ndarray, "N"], classes: int) -> Int[np.ndarray, "C C"]:
    """How many examples of class i (row) were predicted to be of class j (column).

    Raises: ValueError for no examples, and for a class that is not 0 .. classes - 1.
    """
    if len(actual) == 0:
        raise ValueError("no examples to classify; expected at least one")
    for name, given in (("predicted", predicted), ("actual", actual)):
        wrong = given[(given < 0) | (given >= classes)]
        if len(wrong):
            raise ValueError(f"{name} class {wrong[0]}; expected 0 to {classes - 1}")
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (actual, predicted), 1)
    return counts


def class_figures(predicted: Int[np.ndarray, "N"], actual: Int[np.ndarray, "N"], classes: int) -> ClassFigures:
    """Figures of N predictions.

    With true positives t, predictions p and examples n of a class: precision t / p, recall t / n, F1 2 t / (p + n). What would be 0 / 0,
    as the precision of a class that is never predicted, is 0.
    """
    counts = confusion(predicted, actual, classes)
    right, found, support = np.diag(counts), counts.sum(axis=0), counts.sum(axis=1)
    return ClassFigures(
        accuracy=float(right.sum() / counts.sum()),
        precision=right / np.maximum(found, 1),
        recall=right / np.maximum(support, 1),
        f1=2 * right / np.maximum(found + support, 1),
        support=support,
    )
