"""Studies of learning from fixed texts in the exact world: their configs, and what they have to show."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from experiments.registry import Claim, exceeds, register
from rlhf_jax.config.study import OfflineStudy

FRACTIONS = (0.1, 0.3)
TAUS = (0.5, 0.7, 0.9)
DECODE_BETAS = (0.0, 1.0, 4.0, 16.0)
USUAL = f"ilql_t{TAUS[1]:g}"
"""ILQL with the tau of a run's ilql stage."""
NEAR = 0.2
"""Of reward: how far below the best string's value, 1.18, that may lie which is learned from all strings."""


def judge_offline(figures: Mapping[str, list[float]]) -> list[Claim]:
    """Whether values beat filtering and filtering beats cloning, and what tau and the beta of decoding do."""
    best, more = (f"bc_best{part:g}" for part in FRACTIONS)
    claims = [_more(figures, "reward", f"ilql_t{tau:g}_b{DECODE_BETAS[-1]:g}", best) for tau in TAUS]
    claims += [_more(figures, "reward", one, other) for one, other in pairwise([best, more, "bc"])]
    betas = pairwise(DECODE_BETAS)
    claims += [_more(figures, "reward", f"{USUAL}_b{high:g}", f"{USUAL}_b{low:g}") for low, high in betas]
    claims += [_more(figures, "value", f"ilql_t{high:g}", f"ilql_t{low:g}") for low, high in pairwise(TAUS)]
    return [
        *claims,
        exceeds(
            figures, "texts/highest_value", f"ilql_t{TAUS[-1]:g}/value", "V stays below the most that the texts earn"
        ),
        *judge_one_step(figures),
    ]


def judge_one_step(figures: Mapping[str, list[float]]) -> list[Claim]:
    """Whether one-step Q-learning makes up values of what the texts do not show, and finds the true ones where everything is shown."""
    most = "world/highest_value"
    shown = "where all strings are shown, one-step Q-learning"
    return [
        exceeds(figures, "q/value", "q/true_value", "on the texts, one-step Q-learning expects more than it earns"),
        exceeds(figures, "q/value", most, "and more than any string is worth"),
        exceeds(figures, "bc/reward", "q/reward", "and earns less than cloning"),
        exceeds(figures, most, "q_all/value", f"{shown} expects no more than the best string is worth"),
        exceeds(figures, "q_all/value", most, f"{shown} expects nearly as much", by=-NEAR),
        exceeds(figures, "q_all/true_value", most, f"{shown} earns nearly as much", by=-NEAR),
    ]


def _more(figures: Mapping[str, list[float]], figure: str, one: str, other: str) -> Claim:
    return exceeds(figures, f"{one}/{figure}", f"{other}/{figure}", f"{one} has more {figure} than {other}")


@register(
    "exact/offline_q",
    paper="Snell et al. 2022; Kumar et al. 2020",
    claim="on texts that are good in parts, ILQL > cloning of the best > cloning of all; V rises with tau towards the best of the texts; "
    "one-step Q-learning overestimates",
    costs={"cpu": "6 min for 5 seeds on 2 cores"},
    judge=judge_offline,
    run_study="experiments.exact.offline_q:run",
)
def offline_q(scale: str) -> OfflineStudy:
    """Cloning, cloning of the best 10 % and 30 %, ILQL and Q-learning on 400 texts: half start well and end badly, half the reverse.

    Expected by the paper: ILQL joins the good halves and earns more than any cloning. Measured: its reward rises with the beta of decoding
    at the price of KL to the clone, far above the clone and the best 30 %. At tau 0.5 it passes the best 10 %, at 0.7 perhaps; at 0.9,
    where V chases the best of few texts, it stays below. V of the start rises with tau, close to the enumerated expectile of the texts.
    The model limits it too: to a decoder without a first token, a prompt and the prompt with its own word again are one state; the Q of
    one-step learning has learned positions instead.

    One-step Q-learning takes the max over tokens that the texts never show: it expects more than any string is worth and its greedy policy
    earns less than the clone. Given strings whose every token is drawn evenly, as many, it comes near the best string's value.
    """
    return OfflineStudy(name="exact/offline_q", texts=400, fractions=FRACTIONS, taus=TAUS, decode_betas=DECODE_BETAS)
