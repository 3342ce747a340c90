"""The policy's own replies, compared by the world's simulated annotator or scored by the world."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from rlhf_jax.config import Preference, Reward
from rlhf_jax.data.schema import Comparison, Prompt, Rated
from rlhf_jax.data.tokens.texts import Texts
from rlhf_jax.feedback.simulated import SimulatedAnnotator
from rlhf_jax.files import write_atomic
from rlhf_jax.loops.rlhf import ending_of
from rlhf_jax.loops.run import Run
from rlhf_jax.loops.sources import world_of
from rlhf_jax.models import Model
from rlhf_jax.rollout.replies import Sampler, make_sampler
from rlhf_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Judged:
    """Comparisons with what the world knows of them."""

    comparisons: tuple[Comparison, ...]
    probability: np.ndarray  # of the label that was given, under the annotator; [N]

    def agreement(self, chosen: np.ndarray, rejected: np.ndarray) -> np.ndarray:
        """How probably the annotator orders each pair as these scores do, [N]: accuracy without the noise of the labels drawn."""
        agrees = np.where(chosen > rejected, self.probability, 1 - self.probability)
        return np.where(chosen == rejected, 0.5, agrees)


def annotator_of(run: Run) -> SimulatedAnnotator:
    """The annotator of a run's world."""
    world = run.experiment.world
    assert world is not None, "Experiment checks that sampled pairs have a world"
    return SimulatedAnnotator(
        temperature=world.annotator_temperature, flip=world.annotator_flip, seed=run.experiment.seed
    )


def judge(run: Run, prompts: Sequence[Prompt], first: Sequence[str], second: Sequence[str], offset: int) -> Judged:
    """Which of two replies to each prompt the annotator prefers; identical replies are left out, as they say nothing.

    `offset` numbers the pairs, so that different sets get different noise.
    """
    world, annotator = world_of(run.experiment), annotator_of(run)
    places = [n for n, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]
    gold = np.array([[world.gold(prompts[n].key, reply) for reply in (first[n], second[n])] for n in places])
    gold = gold.reshape(-1, 2)
    ids = offset + np.array(places, np.int64)
    prefers = annotator.prefers_first(gold[:, 0], gold[:, 1], ids)
    probability = annotator.probability(gold[:, 0], gold[:, 1])
    comparisons = tuple(
        Comparison(prompts[n], *((first[n], second[n]) if won else (second[n], first[n])))
        for n, won in zip(places, prefers, strict=True)
    )
    return Judged(comparisons, np.where(prefers, probability, 1 - probability))


def sample_pairs(
    run: Run,
    sampler: Sampler,
    params: Params,
    texts: Texts,
    prompts: Sequence[Prompt],
    *,
    temperature: float,
    offset: int,
) -> Judged:
    """Two sampled replies to each prompt, judged; as texts without what the template writes around a reply."""
    draw = partial(sample_replies, run, sampler, params, texts, prompts, temperature=temperature)
    return judge(run, prompts, draw(sample=offset), draw(sample=offset + 1), offset)


def sampled_comparisons(
    run: Run, config: Reward | Preference, policy: Model, tuned: Params, texts: Texts, prompts: Sequence[Prompt]
) -> tuple[Judged, Judged]:
    """(training, held-out) comparisons of the tuned policy's own samples, as many as the stage asks for."""
    assert config.pairs is not None, "the config checks that a stage without data has pairs"
    repeated, held_out = dealt_prompts(run, prompts, config.pairs)
    sampler = sampler_of(run, policy, texts)
    train = sample_pairs(run, sampler, tuned, texts, repeated, temperature=config.temperature, offset=0)
    aside = sample_pairs(run, sampler, tuned, texts, held_out, temperature=config.temperature, offset=config.pairs)
    if not train.comparisons or not aside.comparisons:
        raise ValueError("the policy gave the same reply twice to every prompt: there is nothing to compare")
    return train, aside


def rate(run: Run, prompts: Sequence[Prompt], replies: Sequence[str]) -> tuple[Rated, ...]:
    """A reply to each prompt with the world's reward."""
    world = world_of(run.experiment)
    return tuple(Rated(p, reply, world.gold(p.key, reply)) for p, reply in zip(prompts, replies, strict=True))


def sampler_of(run: Run, policy: Model, texts: Texts) -> Sampler:
    """A sampler of the experiment's replies, ended as in PPO."""
    experiment, size = run.experiment, run.experiment.evaluation
    return make_sampler(
        policy,
        texts.tokenizer,
        run.programs,
        rows=size.rows,
        prompt_lengths=experiment.text.prompt_lengths,
        new_tokens=size.new_tokens,
        ending=ending_of(texts, experiment.ppo),
    )


def dealt_prompts(run: Run, prompts: Sequence[Prompt], count: int) -> tuple[list[Prompt], Sequence[Prompt]]:
    """(`count` prompts to train on, each as often as it takes; the last ones, held out: of the same kind, but unseen by training)."""
    held_out = prompts[-run.experiment.evaluation.prompts :]
    asked = {prompt.turns for prompt in held_out}
    prompts = [prompt for prompt in prompts if prompt.turns not in asked]
    return [prompts[n % len(prompts)] for n in range(count)], held_out


def sample_replies(
    run: Run,
    sampler: Sampler,
    params: Params,
    texts: Texts,
    prompts: Sequence[Prompt],
    *,
    temperature: float,
    sample: int,
) -> list[str]:
    """A reply to each prompt as text, without what the template writes around it; `sample` numbers the noise."""
    encoded, key = texts.encode(prompts), run.key("collect")
    replies = sampler.replies(params, encoded, key, temperature=temperature, sample=sample)
    return [texts.template.reply_text(reply) for reply in replies]


def write_collected(path: Path, records: Sequence[Comparison] | Sequence[Rated]) -> None:
    """One JSON object per line: prompt (key and text), and chosen and rejected, or reply and reward."""
    lines = []
    for record in records:
        asked = {"key": record.prompt.key, "prompt": record.prompt.turns[-1].text}
        if isinstance(record, Rated):
            said = {"reply": record.reply, "reward": record.reward}
        else:
            said = {"chosen": record.chosen, "rejected": record.rejected}
        lines.append(json.dumps(asked | said, ensure_ascii=False) + "\n")
    write_atomic(path, "".join(lines))
