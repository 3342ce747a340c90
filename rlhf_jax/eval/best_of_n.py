"""Best of n: its KL to the policy it draws from, its reward estimated from a pool of samples, and the law of over-optimisation."""

from __future__ import annotations

import math

import numpy as np


def best_of_n_kl(n: float) -> float:
    """log n - (n - 1) / n nats: the KL of the best of n where no two samples score alike, and an upper bound where some do.

    Source: Stiennon et al. 2020 (arXiv:2009.01325), appendix G.3; Beirami et al. 2024 (arXiv:2401.01879) for the bound.
    Raises: ValueError for n below 1.
    """
    if n < 1:
        raise ValueError(f"n={n}; the best of at least one sample is meant")
    return math.log(n) - (n - 1) / n


def best_of_n_from_pool(scores: np.ndarray, values: np.ndarray, n: int) -> float:
    """Unbiased estimate of the value of the best of n by score, from a pool of N >= n samples of one prompt.

    The i-th smallest of the pool is the best of C(i - 1, n - 1) of its C(N, n) subsets; equal scores share their weights.

    Source: Nakano et al. 2021 (arXiv:2112.09332), appendix I.
    Raises: ValueError for pools of different shapes, and where n is not within 1 .. N.
    """
    scores, values = np.asarray(scores, np.float64), np.asarray(values, np.float64)
    if scores.shape != values.shape or scores.ndim != 1:
        raise ValueError(
            f"scores have shape {scores.shape} and values {values.shape}; one of each per sample is needed"
        )
    size = len(scores)
    if not 1 <= n <= size:
        raise ValueError(f"n={n}; a pool of {size} samples gives the best of 1 to {size}")
    weights = np.array([math.comb(i, n - 1) / math.comb(size, n) for i in range(size)])
    order = np.argsort(scores)
    _, group = np.unique(scores[order], return_inverse=True)
    mean_values = np.bincount(group, values[order]) / np.bincount(group)
    return float(np.dot(weights, mean_values[group]))


def over_optimisation_fit(kl: np.ndarray, reward: np.ndarray) -> tuple[float, float, float]:
    """(a, b, R^2) of the least squares fit reward = d (a - b d), d = sqrt(KL): gold reward gained over the n of best-of-n.

    It peaks at d = a / 2b with a^2 / 4b. R^2 is the share of the variance around the mean that the fit explains.

    Source: Gao et al. 2022 (arXiv:2210.10760), section 3.1.
    """
    d = np.sqrt(np.maximum(kl, 0.0))  # of n = 1 it is 0 but for rounding
    design = np.stack([d, -(d**2)], axis=1)
    (a, b), *_ = np.linalg.lstsq(design, reward)
    return float(a), float(b), float(1 - np.var(reward - design @ (a, b)) / np.var(reward))
