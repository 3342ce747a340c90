"""Simulated annotators: preferences between replies whose true worth is known, with the noise of people.

Two kinds of noise add up: near-ties are judged at random (Bradley & Terry 1952), and a share of the labels is simply
inverted, as in AlpacaFarm (Dubois et al. 2023, arXiv:2305.14387).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

_MASK = 2**64 - 1
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15
_JUDGEMENT, _FLIP = 1, 2


def _golds(gold_a: ArrayLike, gold_b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(gold_a, np.float64), np.asarray(gold_b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"gold_a has shape {a.shape} and gold_b {b.shape}; one gold reward per reply is needed")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("gold rewards must be finite; at least one is nan or infinite")
    return a, b


def _check_temperature(temperature: float) -> None:
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; it must be 0 (no noise) or a positive number")


def bradley_terry_probability(gold_a: ArrayLike, gold_b: ArrayLike, temperature: float) -> np.ndarray:
    """P(a is preferred to b) per pair.

    P = sigmoid((gold_a - gold_b) / temperature);  at temperature 0 its limit: 1, 0, or .5 for a tie.

    Source: Bradley & Terry 1952.
    Raises: ValueError for golds of different shapes or not finite, and for a negative temperature.
    """
    a, b = _golds(gold_a, gold_b)
    _check_temperature(temperature)
    if temperature == 0:
        return np.asarray(0.5 * (1 + np.sign(a - b)))
    with np.errstate(over="ignore"):  # a tiny temperature: infinity is right, tanh takes it to 1
        return np.asarray(0.5 * (1 + np.tanh(0.5 * (a - b) / temperature)))


def bayes_agreement(probability: ArrayLike) -> np.ndarray:
    """max(p, 1 - p) of each pair: how probably the best possible order is the labelled one.

    Its mean is the Bayes accuracy, which no reward model can exceed in expectation.
    """
    p = np.asarray(probability, np.float64)
    return np.maximum(p, 1 - p)


def _mix(z: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit integers that changes half of the output bits for any change of the input (splitmix64)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _uniform(seed: int, stream: int, ids: np.ndarray) -> np.ndarray:
    """One number in [0, 1) per id, a function of (seed, stream, id) alone, so that no batch layout changes it.

    Source: Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators".
    """
    start = _mix(np.array([(seed * _GOLDEN_GAMMA + stream) & _MASK], np.uint64))
    flat = ids.astype(np.uint64).reshape(-1)  # one dimension: numpy warns of wrap-around for scalars only
    bits = _mix(start ^ _mix(flat * np.uint64(_GOLDEN_GAMMA) + np.uint64(_GOLDEN_GAMMA)))
    return ((bits >> np.uint64(11)) * 2.0**-53).reshape(ids.shape)


@dataclass(frozen=True)
class SimulatedAnnotator:
    """Someone who prefers the reply of higher gold reward, as far as noise allows.

    Raises: ValueError for a negative temperature or a flip outside [0, 1].
    """

    temperature: float = 0.25  # in units of gold reward; 0: no noise but for exact ties
    flip: float = 0.0  # share of the labels inverted after the judgement
    seed: int = 0

    def __post_init__(self) -> None:
        _check_temperature(self.temperature)
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip is {self.flip}; it is a share of labels, from 0 to 1")

    def probability(self, gold_a: ArrayLike, gold_b: ArrayLike) -> np.ndarray:
        """P(a is labelled better) per pair: (1 - flip) P + flip (1 - P), with P of `bradley_terry_probability`.

        Raises: as that does.
        """
        judged = bradley_terry_probability(gold_a, gold_b, self.temperature)
        return np.asarray((1 - self.flip) * judged + self.flip * (1 - judged))

    def prefers_first(self, gold_a: ArrayLike, gold_b: ArrayLike, pair_ids: ArrayLike) -> np.ndarray:
        """Whether a is labelled better, per pair: a function of seed, pair id and golds, whatever the batch.

        Judgement and flip have their own random numbers: annotators that differ in `flip` alone judge alike, and the
        labels flipped at a small share are flipped at a larger one too.

        Raises: ValueError as `probability` does, and for pair ids that are not integers or not one per pair.
        """
        judged = bradley_terry_probability(gold_a, gold_b, self.temperature)
        ids = np.asarray(pair_ids)
        if not (np.issubdtype(ids.dtype, np.integer) or ids.size == 0):
            raise ValueError(f"pair ids are integers, not {ids.dtype}")
        if ids.shape != judged.shape:
            raise ValueError(f"pair_ids has shape {ids.shape}, the golds {judged.shape}; one id per pair is needed")
        flipped = _uniform(self.seed, _FLIP, ids) < self.flip
        return np.asarray((_uniform(self.seed, _JUDGEMENT, ids) < judged) ^ flipped)
