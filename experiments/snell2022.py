"""Snell et al. 2022, "Offline RL for Natural Language Generation with Implicit Language Q Learning" (arXiv:2206.11871)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from experiments.quickstart import quickstart
from experiments.registry import Claim, measured, register
from rlhf_jax.config import ILQL, Experiment, Optim


def judge_ilql(figures: Mapping[str, list[float]]) -> list[Claim]:
    """The guided policy beats the policy whose replies its critics learned from."""
    gain, error = measured(figures, "ilql_minus_sft/gold")
    return [Claim("ILQL beats SFT", "gain in gold reward > 4 standard errors", gain, error, gain > 4 * error)]


@register(
    "snell2022/ilql",
    paper="Snell et al. 2022",
    claim="critics of a policy's own replies, each with its reward, guide it to replies of more reward without a step of its own",
    costs={"cpu": "6 min a seed on 2 cores"},
    judge=judge_ilql,
)
def ilql(scale: str) -> Experiment:
    """SFT as in the quickstart, then ILQL on 14,336 of its samples, scored by the world; the policy itself stays as SFT left it.

    Expect samples of more gold reward at a small KL. Greedy answers, which are right after SFT wherever they can be, gain nothing and
    may lose. gamma 0.99 and a Polyak rate of 0.005 are those of the authors' released configuration.
    """
    return dataclasses.replace(
        quickstart(scale),
        name="snell2022/ilql",
        reward=None,
        ppo=None,
        ilql=ILQL(
            data=None,
            replies=14_336,
            optim=Optim(lr=5e-4, steps=400, rows=64, warmup=20, b2=0.98),
            eval_every=100,
        ),
    )
