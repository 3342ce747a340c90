"""Losses and gradients that jump: how far a value is above those just before it."""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import NamedTuple

WATCHED = ("nll", "loss", "policy_loss", "value_loss", "q_loss", "grad_norm")
"""Metrics of a step that are looked at, where a stage has them."""

WINDOW, FEWEST, BOUND = 64, 16, 10.0
SIGMA = 1 / 1.349  # times the distance between the quartiles is the standard deviation, if values are normal


class Spike(NamedTuple):
    """A value far above the median of those before it."""

    step: int
    value: float
    usual: float  # that median

    def __str__(self) -> str:
        return f"{self.value:.4g}, where {self.usual:.4g} was usual"


class Spikes:
    """Finds them one value after the other: above the median of the last 64 by more than 10 robust standard deviations, and a tenth of it.

    The standard deviation is taken from the distance between the quartiles, which a few outliers do not move.
    """

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=WINDOW)

    def look(self, step: int, value: float) -> Spike | None:
        """The spike that this value is, if it is one. What is not finite is none: such updates are left out, and told of by themselves."""
        if not math.isfinite(value):
            return None
        found = None
        if len(self._last) >= FEWEST:
            low, usual, high = statistics.quantiles(self._last, n=4, method="inclusive")
            if value - usual > max(BOUND * SIGMA * (high - low), abs(usual) / 10):
                found = Spike(step, value, usual)
        self._last.append(value)
        return found
