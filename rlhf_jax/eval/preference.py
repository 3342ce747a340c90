"""How well scores predict preferences: accuracy with its interval, calibration, and the longer-answer baseline."""

from __future__ import annotations

import math

import numpy as np


def accuracy(chosen: np.ndarray, rejected: np.ndarray) -> float:
    """Share of pairs in which the chosen score is higher; equal scores count one half."""
    return float(np.mean(np.where(chosen == rejected, 0.5, chosen > rejected)))


def normalised_score(raw: float, chance: float) -> float:
    """A score in per cent, where 0 is chance and 100 perfect: 100 (raw - chance) / (100 - chance).

    Source: Srivastava et al. 2022 (BIG-bench, arXiv:2206.04615), section 2.2; Chung et al. 2022 (arXiv:2210.11416), section 2.
    """
    if not chance < 100.0:
        raise ValueError(f"chance is {chance} %; expected less than 100, or nothing could be above it")
    return 100.0 * (raw - chance) / (100.0 - chance)


def wilson_interval(share: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a share observed in `count` trials. Source: Wilson 1927."""
    if count < 1:
        raise ValueError("an interval needs at least one observation")
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return centre - half, centre + half


def expected_calibration_error(probability: np.ndarray, outcome: np.ndarray, bins: int = 10) -> float:
    """sum_b (n_b / n) |mean outcome - mean probability| over equal-width bins of [0, 1].

    Source: Naeini et al. 2015; Guo et al. 2017 (arXiv:1706.04599), eq. 3.
    """
    place = np.minimum((probability * bins).astype(int), bins - 1)
    error = 0.0
    for b in range(bins):
        inside = place == b
        if inside.any():
            error += inside.mean() * abs(outcome[inside].mean() - probability[inside].mean())
    return float(error)


def mean_and_error(values: np.ndarray | list[float]) -> tuple[float, float]:
    """(mean, standard error of the mean with n - 1); the error of a single value is nan."""
    values = np.asarray(values, np.float64)
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return float(values.mean()), error
