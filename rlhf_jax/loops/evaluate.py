"""What a run's policies and reward model are worth, as numbers and as samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from rlhf_jax.data.schema import Comparison, Prompt
from rlhf_jax.eval.preference import accuracy, expected_calibration_error, mean_and_error, wilson_interval
from rlhf_jax.eval.sentiment_words import sentiment_balance
from rlhf_jax.loops.rlhf import Scorer
from rlhf_jax.loops.run import Run
from rlhf_jax.loops.sources import Texts, world_of
from rlhf_jax.models import Model
from rlhf_jax.rollout.replies import Sampler, make_sampler, response_texts
from rlhf_jax.rollout.score import describe_rows
from rlhf_jax.sharding import compile_function
from rlhf_jax.types import Params
from rlhf_jax.worlds.instruct import Split

Figures = dict[str, float]
SPLITS: tuple[Split, ...] = ("held_out_prompts", "held_out_phrasings", "held_out_families")


@dataclasses.dataclass(frozen=True)
class Written:
    """Replies of one policy to the evaluation prompts, and numbers per reply."""

    replies: list[str]
    rows: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Judge:
    """Evaluates policies on the same prompts, with the programs compiled once."""

    run: Run
    texts: Texts
    reference: Params
    sampler: Sampler
    greedy: Sampler
    describe: Callable
    scorer: Scorer | None

    def sampled(self, params: Params, prompts: Sequence[Prompt], *, temperature: float) -> Written:
        """One sampled reply per prompt, with its exact KL to the reference, its score, and its log-probability under the reference."""
        replies: list[str] = []
        columns: dict[str, list[np.ndarray]] = {}
        key = self.run.key("evaluate")
        for rollout, counts in self.sampler.rollouts(params, self.texts.encode(prompts), key, temperature=temperature):
            numbers: dict[str, Any] = dict(self.describe(params, self.reference, rollout))
            if self.scorer is not None:
                numbers["score"] = self.scorer(rollout, np.zeros(len(counts), np.int64))
            texts = [self.texts.template.reply_text(t) for t in response_texts(rollout, self.texts.tokenizer)]
            replies += [text for text, real in zip(texts, counts, strict=True) if real]
            for name, values in numbers.items():
                columns.setdefault(name, []).append(np.asarray(values)[counts])
        return Written(replies, {name: np.concatenate(parts) for name, parts in columns.items()})

    def greedily(self, params: Params, prompts: Sequence[Prompt]) -> list[str]:
        """The likeliest reply to each prompt."""
        replies = self.greedy.replies(params, self.texts.encode(prompts), self.run.key("evaluate"))
        return [self.texts.template.reply_text(reply) for reply in replies]


def make_judge(run: Run, texts: Texts, model: Model, reference: Params, scorer: Scorer | None) -> Judge:
    """The judge of a run: `reference` is what KL is measured to."""
    config = run.experiment.evaluation
    sampler = partial(
        make_sampler,
        model,
        texts.tokenizer,
        run.mesh,
        rows=config.rows,
        prompt_length=run.experiment.text.prompt_length,
        new_tokens=config.new_tokens,
    )
    describe = compile_function(partial(describe_rows, policy=model), run.mesh)
    return Judge(run, texts, reference, sampler(), sampler(greedy=True), describe, scorer)


def gold_figures(judge: Judge, name: str, params: Params, *, temperature: float) -> tuple[Figures, Written, np.ndarray]:
    """Gold reward and exact answers of a policy on the world's held-out splits; the replies to new prompts, and their gold rewards."""
    world, count = world_of(judge.run.experiment), judge.run.experiment.evaluation.prompts
    figures: Figures = {}
    for split in SPLITS:
        prompts = world.prompts(split, count)
        gold = np.array([world.gold(p.key, r) for p, r in zip(prompts, judge.greedily(params, prompts), strict=True)])
        figures[f"{name}/{split}/exact"] = float(np.mean(gold == 1.0))
        figures[f"{name}/{split}/gold_greedy"] = float(gold.mean())
    prompts = world.prompts("held_out_prompts", count)
    written = judge.sampled(params, prompts, temperature=temperature)
    gold = np.array([world.gold(p.key, reply) for p, reply in zip(prompts, written.replies, strict=True)])
    figures[f"{name}/gold"], figures[f"{name}/gold_error"] = mean_and_error(gold)
    return figures | row_figures(name, written), written, gold


def row_figures(name: str, written: Written) -> Figures:
    """Means over replies: KL in nats per reply, entropy per token, length, score, perplexity under the reference."""
    rows = written.rows
    tokens = max(rows["length"].sum(), 1.0)
    figures = {
        f"{name}/kl": float(rows["kl"].mean()),
        f"{name}/entropy": float(rows["entropy"].sum() / tokens),
        f"{name}/length": float(rows["length"].mean()),
        f"{name}/reference_perplexity": float(np.exp(-rows["ref_logprob"].sum() / tokens)),
    }
    if "score" in rows:
        figures[f"{name}/score"], figures[f"{name}/score_error"] = mean_and_error(rows["score"])
    return figures


def text_figures(judge: Judge, name: str, params: Params, prompts: Sequence[Prompt], *, temperature: float):
    """Figures of a policy on prompts without a gold reward, its replies, and their word-list sentiment."""
    written = judge.sampled(params, prompts, temperature=temperature)
    balance = np.array([sentiment_balance(reply) for reply in written.replies])
    figures = row_figures(name, written)
    figures[f"{name}/positive_words"], figures[f"{name}/positive_words_error"] = mean_and_error(balance)
    return figures, written, balance


def paired_difference(after: np.ndarray, before: np.ndarray) -> tuple[float, float]:
    """(mean, standard error) of after - before, prompt by prompt."""
    return mean_and_error(after - before)


def preference_figures(chosen: np.ndarray, rejected: np.ndarray) -> tuple[Figures, dict[str, list[float]]]:
    """Accuracy with its 95 % interval and calibration error of scores of held-out pairs, and what a calibration plot needs.

    Each pair enters the calibration once with the model's own confidence: max(p, 1 - p), and whether that side was chosen.
    """
    share = accuracy(chosen, rejected)
    low, high = wilson_interval(share, len(chosen))
    gap = np.abs(chosen - rejected)
    confidence = 1 / (1 + np.exp(-gap))
    right = np.where(chosen == rejected, 0.5, (chosen > rejected).astype(float))
    figures = {
        "reward/accuracy": share,
        "reward/accuracy_low": low,
        "reward/accuracy_high": high,
        "reward/calibration_error": expected_calibration_error(confidence, right),
        "reward/pairs": float(len(chosen)),
    }
    return figures, {"confidence": confidence.tolist(), "right": right.tolist()}


def longer_wins(comparisons: Sequence[Comparison]) -> float:
    """Accuracy of preferring the longer reply, in characters."""
    lengths = np.array([[len(c.chosen), len(c.rejected)] for c in comparisons])
    return accuracy(lengths[:, 0], lengths[:, 1])


def samples_of(prompts: Sequence[Prompt], columns: Mapping[str, Sequence[Any]], count: int) -> list[dict[str, Any]]:
    """The first `count` prompts with each policy's reply and numbers, as JSON objects."""
    return [
        {"prompt": prompt.turns[-1].text} | {name: _plain(values[n]) for name, values in columns.items()}
        for n, prompt in enumerate(prompts[:count])
    ]


def _plain(value: Any) -> Any:
    return value if isinstance(value, str) else round(float(value), 4)
