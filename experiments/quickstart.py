"""The main job on the embedded instruction world: SFT, comparisons, reward model, PPO, in minutes on two cores."""

from __future__ import annotations

from collections.abc import Mapping

from experiments.registry import Claim, measured, register
from rlhf_jax.config import PPO, SFT, Evaluation, Experiment, Mixture, ModelConfig, Optim, Reward, Text, World

FAMILIES = (
    "count",
    "largest",
    "smallest",
    "lowercase",
    "repeat",
    "to_chinese",
    "to_english",
    "sentiment",
)
"""What a million parameters learn in two minutes. The world has twelve more to train; lists, arithmetic and sorting take longer."""


def judge_quickstart(figures: Mapping[str, list[float]]) -> list[Claim]:
    """SFT learns, the reward model nears the Bayes ceiling, PPO beats SFT by more than four standard errors."""
    exact, exact_error = measured(figures, "sft/held_out_prompts/exact")
    below, below_error = measured(figures, "reward/below_bayes")
    return [
        Claim(
            "SFT answers new prompts exactly", "share of exact greedy answers > 0.5", exact, exact_error, exact > 0.5
        ),
        Claim("the reward model nears the ceiling", "below Bayes accuracy by < 0.05", below, below_error, below < 0.05),
        ppo_gains(figures),
    ]


def ppo_gains(figures: Mapping[str, list[float]]) -> Claim:
    """PPO's samples are worth more than SFT's by the world's own reward."""
    gain, error = measured(figures, "ppo_minus_sft/gold")
    return Claim("PPO beats SFT", "gain in gold reward > 4 standard errors", gain, error, gain > 4 * error)


@register(
    "quickstart",
    paper="Ouyang et al. 2022",
    claim="SFT answers, a reward model learns what is preferred, PPO against it improves the true reward",
    costs={"cpu": "5 min a seed on 2 cores"},
    judge=judge_quickstart,
)
def quickstart(scale: str) -> Experiment:
    """Instruction tuning, reward model and PPO on the embedded world, whose true reward is known.

    Two fifths of the demonstrations have a mistake, mostly talk around the answer, so that SFT leaves something to gain. Expect more
    than half of the greedy answers to new prompts to be exact after SFT, a reward model within 5 points of the Bayes ceiling, and
    samples of PPO with a higher gold reward than those of SFT.
    Source of the recipe: Ouyang et al. 2022 (arXiv:2203.02155), section 3.
    """
    return Experiment(
        name="quickstart",
        scale="cpu",
        policy=ModelConfig(vocab=896, width=128, layers=3, heads=4, kv_heads=4, mlp=384, max_length=128, tied=False),
        text=Text(tokenizer="train:896", template="plain", length=36, prompt_length=28),
        evaluation=Evaluation(prompts=768, rows=256, new_tokens=16),
        world=World(
            demonstrations=60_000,
            prompts=14_336,
            families=FAMILIES,
            flawed=0.4,
            chatty=0.85,
            annotator_temperature=1.0,
        ),
        sft=SFT(
            data=Mixture((("world:instruct", 1.0),)),
            optim=Optim(lr=3e-3, steps=2100, rows=8, warmup=100, b2=0.98, weight_decay=0.01),
            pack_length=64,
            eval_every=700,
        ),
        reward=Reward(
            data=None,
            pairs=22_528,
            optim=Optim(lr=2e-3, steps=360, rows=40, warmup=20, b2=0.98),
            scores="centred",
            eval_every=90,
        ),
        ppo=PPO(
            optim=Optim(lr=2e-4, rows=64, schedule="linear"),
            value_optim=Optim(lr=5e-4, rows=64, schedule="linear"),
            iterations=30,
            prompts=128,
            new_tokens=16,
            epochs=2,
            kl_coef=0.05,
            missing_stop_score=-1.0,
        ),
    )
