"""What a run's policies and reward model are worth, as numbers and as samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from rlhf_jax.config import Evaluation, Experiment
from rlhf_jax.data.schema import Comparison, Prompt
from rlhf_jax.data.tokens.encode import Encoded, encode_pieces
from rlhf_jax.data.tokens.texts import Texts
from rlhf_jax.eval.best_of_n import best_of_n_from_pool, best_of_n_kl
from rlhf_jax.eval.preference import (
    accuracy,
    expected_calibration_error,
    mean_and_error,
    normalised_score,
    wilson_interval,
)
from rlhf_jax.eval.sentiment_words import sentiment_balance
from rlhf_jax.loops.ahead import Ahead, compile_ahead
from rlhf_jax.loops.rlhf import ModelScorer, Scorer, ending_of
from rlhf_jax.loops.run import Run
from rlhf_jax.loops.sources import world_of
from rlhf_jax.models import Model
from rlhf_jax.processes import on_host
from rlhf_jax.report.metrics import MetricsWriter
from rlhf_jax.report.progress import progress
from rlhf_jax.rollout.generate import Ending
from rlhf_jax.rollout.replies import Sampler, make_sampler
from rlhf_jax.rollout.score import describe_rows
from rlhf_jax.rollout.stop_texts import StopTexts
from rlhf_jax.types import Params, Rollout
from rlhf_jax.worlds.instruct import Split

Figures = dict[str, float]
MEASURES = ("gold", "positive_words", "score")
"""What a reply is worth: by the world's program, by a word list (positive - negative words per 100), by the reward model."""
AFTER_SFT = ("best_of_n", "preference", "ilql", "ppo")
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

    @property
    def by_world(self) -> bool:
        """Whether the prompts are the world's, which knows what replies are worth."""
        return self.run.experiment.world is not None and self.run.experiment.prompts is None

    def sampled(self, params: Params, prompts: Sequence[Prompt], *, temperature: float) -> Written:
        """One sampled reply per prompt, its exact KL to the reference along it, its log-probability there, and its worth."""
        return self.drawn(params, prompts, partial(self.describe, params, self.reference), temperature=temperature)

    def drawn(
        self,
        params: Params,
        prompts: Sequence[Prompt],
        describe: Callable[[Rollout], Mapping[str, Any]],
        *,
        temperature: float,
        sample: int = 0,
    ) -> Written:
        """Sample number `sample` of each prompt, with what `describe` says of each row, and its worth by each measure."""
        replies: list[str] = []
        columns: dict[str, list[np.ndarray]] = {}
        key = self.run.key("evaluate")
        how = {"temperature": temperature, "sample": sample}
        for rollout, counts in self.sampler.rollouts(params, self.texts.encode(prompts), key, **how):
            numbers: dict[str, Any] = dict(describe(rollout))
            if self.scorer is not None:
                numbers["score"] = self.scorer(rollout, np.zeros(len(counts), np.int64))
            texts = [self.texts.template.reply_text(text) for text in self.sampler.texts(rollout)]
            replies += [text for text, real in zip(texts, counts, strict=True) if real]
            for name, values in on_host(numbers).items():
                columns.setdefault(name, []).append(values[counts])
        rows = {name: np.concatenate(parts) for name, parts in columns.items()}
        if self.by_world:
            rows["gold"] = self.gold(prompts, replies)
        if self.run.experiment.evaluation.positive_words:
            rows["positive_words"] = np.array([sentiment_balance(reply) for reply in replies])
        return Written(replies, rows)

    def ask(self, ahead: Ahead, params: Params, prompts: Sequence[Prompt]) -> None:
        """Has the programs compiled that replies to prompts, and figures of them, are made with."""
        encoded = self.texts.encode(prompts)
        for length in sorted(set(self.sampler.columns(encoded))):
            given, _ = next(self.sampler.asked(encoded, self.run.key("evaluate"), length=length))
            rollout = ahead(self.sampler.program, params, *given)
            ahead(self.describe, params, self.reference, rollout)
            if isinstance(self.scorer, ModelScorer):
                ahead(self.scorer.program, self.scorer.params, rollout.batch)
        for length in sorted({length for asked in self.splits() for length in self.greedy.columns(asked)}):
            given, _ = next(self.greedy.asked(encoded, self.run.key("evaluate"), length=length))
            ahead(self.greedy.program, params, *given)

    def splits(self) -> Iterator[list[Encoded]]:
        """The prompts of the world's held-out splits, which are answered greedily; none, where there is no world."""
        if self.by_world:
            world, count = world_of(self.run.experiment), self.run.experiment.evaluation.prompts
            yield from (self.texts.encode(world.prompts(split, count)) for split in SPLITS)

    def greedily(self, params: Params, prompts: Sequence[Prompt]) -> list[str]:
        """The likeliest reply to each prompt."""
        replies = self.greedy.replies(params, self.texts.encode(prompts), self.run.key("evaluate"))
        return [self.texts.template.reply_text(reply) for reply in replies]

    def gold(self, prompts: Sequence[Prompt], replies: Sequence[str]) -> np.ndarray:
        """The world's reward of each reply, [N]."""
        world = world_of(self.run.experiment)
        return np.array([world.gold(p.key, reply) for p, reply in zip(prompts, replies, strict=True)])


def beginning_of(texts: Texts, config: Evaluation, ending: Ending) -> list[int]:
    """The tokens that `config.begin` is at the beginning of a reply. Raises: ValueError where they leave nothing to write."""
    if not config.begin:
        return []
    begin = encode_pieces(texts.template.reply_start(config.begin), texts.tokenizer, texts.template)
    if len(begin) >= config.new_tokens:
        raise ValueError(
            f"evaluation.begin={config.begin!r} is {len(begin)} tokens, and replies have evaluation.new_tokens={config.new_tokens}; "
            "nothing is left to write"
        )
    if ending.token in begin[ending.after :]:
        raise ValueError(f"evaluation.begin={config.begin!r} has ppo.stop_token in it, where every reply would end")
    return begin


def make_judge(run: Run, texts: Texts, model: Model, reference: Params, scorer: Scorer | None) -> Judge:
    """The judge of a run: `reference` is what KL is measured to."""
    config, ending = run.experiment.evaluation, ending_of(texts, run.experiment.ppo)
    sampler = partial(
        make_sampler,
        model,
        texts.tokenizer,
        run.programs,
        rows=config.rows,
        prompt_lengths=run.experiment.text.prompt_lengths,
        new_tokens=config.new_tokens,
        ending=ending,
        sampling=config.sampling,
        slots=config.slots,
        begin=beginning_of(texts, config, ending),
        stop=StopTexts.of(config.stop, texts.tokenizer, model.config.vocab) if config.stop else None,
    )
    describe = run.programs.function(lambda: partial(describe_rows, policy=model))
    return Judge(run, texts, reference, sampler(), sampler(greedy=True), describe, scorer)


Candidates = Mapping[str, tuple[Judge, Params]]
"""Policies by name, each with the judge of its kind of model."""


def evaluate(
    experiment: Experiment, policies: Candidates, prompts: Sequence[Prompt]
) -> tuple[Figures, list[dict[str, Any]]]:
    """(figures, samples side by side) of the policies on these prompts, and what training after SFT changed, prompt by prompt."""
    temperature = experiment.ppo.temperature if experiment.ppo is not None else 1.0
    judged = {id(judge): (judge, params) for judge, params in policies.values()}  # one of each kind of model
    run = next(iter(judged.values()))[0].run
    if run.programs.compiles_ahead:

        def ask(ahead: Ahead) -> None:
            for judge, params in judged.values():
                judge.ask(ahead, params, prompts)

        compile_ahead("evaluate", ask)
    figures: Figures = {}
    written: dict[str, Written] = {}
    for name, (judge, params) in policies.items():
        if judge.by_world:
            figures |= exact_figures(judge, name, params)
        written[name] = judge.sampled(params, prompts, temperature=temperature)
        figures |= row_figures(name, written[name])
    if experiment.evaluation.best_of is not None:
        judge, params = policies["sft"]
        written["best_of_n"], curve = pick(judge, params, prompts, experiment.evaluation.best_of, temperature)
        figures |= {f"best_of_{n}/{name}": mean for n, means in curve.items() for name, mean in means.items()}
        figures |= row_figures("best_of_n", written["best_of_n"])
        figures["best_of_n/kl_bound"] = best_of_n_kl(experiment.evaluation.best_of)
    for name in AFTER_SFT:
        for measure in MEASURES:
            if name in written and measure in written[name].rows:
                difference, error = mean_and_error(written[name].rows[measure] - written["sft"].rows[measure])
                figures |= {f"{name}_minus_sft/{measure}": difference, f"{name}_minus_sft/{measure}_error": error}
    return figures, samples_of(prompts, written, experiment.evaluation.samples_shown)


def exact_figures(judge: Judge, name: str, params: Params) -> Figures:
    """Gold reward and share of exact answers of a policy's greedy replies on each of the world's held-out splits."""
    world, count = world_of(judge.run.experiment), judge.run.experiment.evaluation.prompts
    figures: Figures = {}
    for split in SPLITS:
        prompts = world.prompts(split, count)
        gold = judge.gold(prompts, judge.greedily(params, prompts))
        figures[f"{name}/{split}/exact"], figures[f"{name}/{split}/exact_error"] = mean_and_error(gold == 1.0)
        figures[f"{name}/{split}/gold_greedy"] = float(gold.mean())
    return figures


def row_figures(name: str, written: Written) -> Figures:
    """Means over replies: their worth by each measure, length, and where the rows have it KL in nats per reply, entropy per token and
    perplexity under the reference.
    """
    rows = written.rows
    tokens = max(rows["length"].sum(), 1.0)
    figures: Figures = {f"{name}/length": float(rows["length"].mean())}
    for measure in (*MEASURES, "kl"):
        if measure in rows:
            figures[f"{name}/{measure}"], figures[f"{name}/{measure}_error"] = mean_and_error(rows[measure])
    if "entropy" in rows:
        figures[f"{name}/entropy"] = float(rows["entropy"].sum() / tokens)
    if "ref_logprob" in rows:
        figures[f"{name}/reference_perplexity"] = float(np.exp(-rows["ref_logprob"].sum() / tokens))
    return figures


def pick(
    judge: Judge, params: Params, prompts: Sequence[Prompt], n: int, temperature: float
) -> tuple[Written, dict[int, Figures]]:
    """(of n samples to each prompt the one that the reward model scores highest, what the best of 1, 2, 4, ... n is worth).

    The first of the samples is that of `Judge.sampled`. What the best of fewer is worth is estimated from all n; it is written as metrics,
    too, whose step is the number of samples.
    Source: Stiennon et al. 2020 (arXiv:2009.01325), appendix G.3; Nakano et al. 2021 (arXiv:2112.09332), appendix I, for the estimate.
    """
    pool: list[Written] = []
    with progress(n, "best of n") as bar:
        for sample in range(n):
            pool.append(judge.drawn(params, prompts, reply_lengths, temperature=temperature, sample=sample))
            bar.advance()
    rows = {name: np.stack([written.rows[name] for written in pool], axis=1) for name in pool[0].rows}
    curve: dict[int, Figures] = {}
    with MetricsWriter(judge.run.directory, "best_of_n", resume_step=0) as writer:
        for fewer in sorted({2**k for k in range(n.bit_length())} | {n}):
            worth = {name: rows[name] for name in MEASURES if name in rows}
            estimate = partial(best_of_n_from_pool, n=fewer)
            curve[fewer] = {
                name: float(np.mean(list(map(estimate, rows["score"], values)))) for name, values in worth.items()
            }
            writer.write("best_of_n", fewer, curve[fewer])
    best = np.argmax(rows["score"], axis=1)
    chosen = {name: np.take_along_axis(values, best[:, None], axis=1)[:, 0] for name, values in rows.items()}
    return Written([pool[sample].replies[place] for place, sample in enumerate(best)], chosen), curve


def reply_lengths(rollout: Rollout) -> dict[str, np.ndarray]:
    """Tokens of each response."""
    return {"length": on_host(rollout.batch.loss_mask).sum(axis=1, dtype=np.float32)}


def accuracy_figures(share: float, count: int) -> Figures:
    """What is right of `count` choices between two: the share, its 95 % interval, and per cent of the way from chance to all."""
    low, high = wilson_interval(share, count)
    return {
        "reward/accuracy": share,
        "reward/accuracy_low": low,
        "reward/accuracy_high": high,
        "reward/normalised_accuracy": normalised_score(100 * share, chance=50.0),
    }


def preference_figures(chosen: np.ndarray, rejected: np.ndarray) -> tuple[Figures, dict[str, list[float]]]:
    """Accuracy with its 95 % interval and calibration error of scores of held-out pairs, and what a calibration plot needs.

    Each pair enters the calibration once with the model's own confidence: max(p, 1 - p), and whether that side was chosen.
    """
    gap = np.abs(chosen - rejected)
    confidence = 1 / (1 + np.exp(-gap))
    right = np.where(chosen == rejected, 0.5, (chosen > rejected).astype(float))
    figures = accuracy_figures(accuracy(chosen, rejected), len(chosen)) | {
        "reward/calibration_error": expected_calibration_error(confidence, right),
        "reward/pairs": float(len(chosen)),
    }
    return figures, {"confidence": confidence.tolist(), "right": right.tolist()}


def longer_wins(comparisons: Sequence[Comparison]) -> float:
    """Accuracy of preferring the longer reply, in characters."""
    lengths = np.array([[len(c.chosen), len(c.rejected)] for c in comparisons])
    return accuracy(lengths[:, 0], lengths[:, 1])


def samples_of(prompts: Sequence[Prompt], written: Mapping[str, Written], count: int) -> list[dict[str, Any]]:
    """The first `count` prompts with each policy's reply and its worth, as JSON objects."""
    columns: dict[str, Any] = {}
    for policy, by_policy in written.items():
        columns[policy] = by_policy.replies
        rows = by_policy.rows
        columns |= {f"{policy} {measure.replace('_', ' ')}": rows[measure] for measure in MEASURES if measure in rows}
    return [
        {"prompt": prompt.turns[-1].text} | {name: _plain(values[n]) for name, values in columns.items()}
        for n, prompt in enumerate(prompts[:count])
    ]


def _plain(value: Any) -> Any:
    return value if isinstance(value, str) else round(float(value), 4)
