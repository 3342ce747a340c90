"""Stiennon et al. 2020, "Learning to summarize from human feedback" (arXiv:2009.01325): the parts that need no summaries."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from experiments.quickstart import ppo_gains, quickstart
from experiments.registry import Claim, exceeds, register
from rlhf_jax.config import Experiment

FEW, MANY = 4, 32


def judge_best_of_n(figures: Mapping[str, list[float]]) -> list[Claim]:
    """Choosing among a few samples gains true reward, as PPO on the same reward model does; among many it over-optimises."""
    few, many = f"best_of_{FEW}", f"best_of_{MANY}"
    return [
        exceeds(figures, f"{few}/gold", "best_of_1/gold", f"the best of {FEW} is worth more than one sample"),
        exceeds(figures, f"{many}/score", f"{few}/score", f"the best of {MANY} scores higher than that of {FEW}"),
        exceeds(figures, f"{few}/gold", f"{many}/gold", "but is worth less: the reward model is over-optimised"),
        ppo_gains(figures),
    ]


@register(
    "stiennon2020/best_of_n",
    paper="Stiennon et al. 2020; Gao et al. 2022",
    claim="the best of a few samples by the reward model beats one; of many it is worth less, while its score still rises",
    costs={"cpu": "6 min a seed on 2 cores"},
    judge=judge_best_of_n,
)
def best_of_n(scale: str) -> Experiment:
    """The quickstart, whose SFT policy is also asked 32 times for each prompt; its reward model picks one reply.

    Expect the gold reward to rise with n at first, to peak near n = 4 above SFT, and to fall from there, while the score of what is picked
    rises throughout: over-optimisation (Stiennon et al. 2020, section 4.3; Gao et al. 2022). The KL of the best of n is at most
    log n - (n - 1) / n nats, 2.5 for 32, beside some 0.4 of PPO, which stays this side of the peak.
    """
    config = quickstart(scale)
    return dataclasses.replace(
        config, name="stiennon2020/best_of_n", evaluation=dataclasses.replace(config.evaluation, best_of=MANY)
    )
