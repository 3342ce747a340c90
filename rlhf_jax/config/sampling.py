"""Which tokens may be drawn."""

from __future__ import annotations

import dataclasses
import math

from rlhf_jax.checks import fraction, positive, require


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Which tokens may be drawn, at the temperature there is; None: all. Each takes of what the one before has left.

    Log-probs of what is drawn are those among the tokens that are left, with what repeats made less likely.
    """

    # Logits of tokens that stand before are divided by it, those below 0 multiplied. Keskar et al. 2019 (arXiv:1909.05858), section 4.1
    repetition_penalty: float | None = None
    top_k: int | None = None  # the likeliest so many. Fan et al. 2018 (arXiv:1805.04833), section 5.4
    top_p: float | None = (
        None  # the fewest that come to this probability. Holtzman et al. 2020 (arXiv:1904.09751), section 3.1
    )
    min_p: float | None = (
        None  # those at least so many times as likely as the likeliest. Nguyen et al. 2024 (arXiv:2407.01082), section 3
    )

    def __post_init__(self):
        positive(self, "repetition_penalty", "top_k", "top_p")
        fraction(self, "top_p", "min_p")
        penalty = self.repetition_penalty
        require(penalty is None or penalty < math.inf, f"repetition_penalty={penalty} must be finite")


EVERYTHING = Sampling()
