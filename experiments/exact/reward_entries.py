"""The studies of reward models in the exact world: their configs, and what they have to show."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from experiments.registry import Claim, exceeds, register
from rlhf_jax.config.study import EnsembleStudy
from rlhf_jax.eval.preference import mean_and_error

COUNTS = tuple(float(n) for n in np.round(np.geomspace(1, 60_000, 41), 2))
"""The n of best-of-n, evenly in log n, which is nearly evenly in KL."""

WORTH = 0.05
"""Gold reward, in standard deviations of the reference, that a claim may overlook."""

ROUNDING = 1e-4
"""Reward by which float32 may let a rising curve fall."""


def judge_ensembles(figures: Mapping[str, list[float]]) -> list[Claim]:
    """What noise does to single reward models, and how much of it an ensemble takes back."""

    def noisy(one: str, other: str, claim: str, by: float = 0.0) -> Claim:
        return exceeds(figures, f"noisy_{one}", f"noisy_{other}", claim, by=by)

    fall = np.maximum(figures["clean_proxy_fall"], figures["noisy_proxy_fall"])
    mean, error = mean_and_error(fall)
    statistic = f"largest fall from one n to the next < {ROUNDING}"
    return [
        Claim("the proxy reward never falls with n", statistic, mean, error, bool(fall.max() < ROUNDING)),
        noisy("single/peak", "single/end", "noise makes single models fall from their peak", by=WORTH),
        noisy("mean/end", "single/end", "the mean ends above its members"),
        noisy("wco/end", "mean/end", "WCO ends at least as high as the mean", by=-WORTH),
        noisy("uwo/end", "mean/end", "UWO ends at least as high as the mean", by=-WORTH),
    ]


@register(
    "exact/ensembles",
    paper="Coste et al. 2023; Gao et al. 2022",
    claim="with noisy labels best-of-n over-optimises a single reward model; an ensemble's mean less, and WCO and UWO no more than that",
    costs={"cpu": "6 min for 5 seeds on 2 cores"},
    judge=judge_ensembles,
    run_study="experiments.exact.ensembles:run",
)
def ensembles(scale: str) -> EnsembleStudy:
    """Five reward models on the same 1,600 pairs, labelled by the gold reward, all rightly or 25 % wrongly; exact best-of-n to n = 60,000.

    Expected: the proxy reward rises with n; the gold reward peaks and falls, further from noisy labels. From those, at the largest n, the
    mean of the members has more gold reward than they have alone, the worst case (WCO) and the mean less half of the variance (UWO) have
    as much and more: by 0.3 over 15 seeds, which 5 seeds may leave open. Members differ in their initial parameters and in the order of
    the data.
    """
    return EnsembleStudy(name="exact/ensembles", counts=COUNTS)
