"""Stiennon et al. 2020, "Learning to summarize from human feedback" (arXiv:2009.01325): the parts that need no summaries."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from experiments.quickstart import ppo_gains, quickstart
from experiments.registry import Claim, measured, register
from rlhf_jax.config import Experiment


def judge_best_of_n(figures: Mapping[str, list[float]]) -> list[Claim]:
    """Choosing among samples gains true reward, as PPO on the same reward model does."""
    gain, error = measured(figures, "best_of_n_minus_sft/gold")
    claim = Claim("best of n beats SFT", "gain in gold reward > 4 standard errors", gain, error, gain > 4 * error)
    return [claim, ppo_gains(figures)]


@register(
    "stiennon2020/best_of_n",
    paper="Stiennon et al. 2020",
    claim="the best of n samples by the reward model beats one sample of SFT in true reward, as PPO against the same model does",
    costs={"cpu": "6 min a seed on 2 cores"},
    judge=judge_best_of_n,
)
def best_of_n(scale: str) -> Experiment:
    """The quickstart, whose SFT policy is also asked 32 times for each prompt; its reward model picks one reply.

    Expect a gain in gold reward that grows with n, fast at first. The score of what is picked grows for ever; where the gold reward stops
    following it, the reward model is over-optimised (appendix G.3). The KL of the best of n is at most log n - (n - 1) / n nats: 2.5 here,
    beside some 0.4 of PPO.
    """
    config = quickstart(scale)
    return dataclasses.replace(
        config, name="stiennon2020/best_of_n", evaluation=dataclasses.replace(config.evaluation, best_of=32)
    )
