"""How many times as long a peer takes, with an interval from the rounds in which both were timed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median, least and most, rounded to four digits that count; nothing of nothing."""
    if not len(seconds):
        return {}
    return _rounded(median=np.median(seconds), min=np.min(seconds), max=np.max(seconds))


def ratio(peer: Sequence[float], ours: Sequence[float], seed: int = 0) -> dict[str, float]:
    """Median over rounds of peer / ours, above 1 where ours is faster, and its 95 % percentile interval over resampled rounds.

    A round's two times stand beside each other in time, so that their ratio feels less of what else the machine does than either.
    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, section 13.3.
    Raises: ValueError where one side has more rounds than the other, or there are none.
    """
    if len(peer) != len(ours) or not len(ours):
        raise ValueError(
            f"{len(peer)} rounds of the peer beside {len(ours)} of ours; there must be as many, and at least 1"
        )
    ratios = np.asarray(peer, np.float64) / np.asarray(ours, np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(ratios), (RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(ratios[drawn], axis=1), [2.5, 97.5])
    return _rounded(median=np.median(ratios), low=low, high=high)


def _rounded(**values) -> dict[str, float]:
    return {name: float(f"{value:.4g}") for name, value in values.items()}
