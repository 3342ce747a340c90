"""All stages of an experiment in their order: text, SFT, reward model, then preferences, ILQL or PPO, evaluation."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.config import ModelConfig
from rlhf_jax.data.batching.batches import Mixture, pad_labels, pad_pairs, token_batches
from rlhf_jax.data.erasure.seen import seen_from_the_start
from rlhf_jax.data.schema import Comparison, Labelled, Prompt
from rlhf_jax.data.tokens.encode import EncodedLabel, EncodedPair
from rlhf_jax.data.tokens.texts import Texts
from rlhf_jax.eval.preference import mean_and_error
from rlhf_jax.feedback.simulated import bayes_agreement
from rlhf_jax.files import write_atomic
from rlhf_jax.loops.classify import run_classify
from rlhf_jax.loops.collect import dealt_prompts, rate, sample_replies, sampled_comparisons, sampler_of, write_collected
from rlhf_jax.loops.evaluate import (
    Figures,
    accuracy_figures,
    beginning_of,
    evaluate,
    longer_wins,
    make_judge,
    preference_figures,
)
from rlhf_jax.loops.ilql import guidance, rated_of, run_ilql
from rlhf_jax.loops.preference import run_preference
from rlhf_jax.loops.pretrained import locate, read_policy
from rlhf_jax.loops.reward import rescaled, run_reward, score_all
from rlhf_jax.loops.rlhf import Scorer, ending_of, model_scorer, rollout_scorer, run_ppo, text_scorer
from rlhf_jax.loops.run import Run
from rlhf_jax.loops.sft import run_sft
from rlhf_jax.loops.sources import (
    IMITATED,
    Examples,
    first_mixture,
    gathered_records,
    load_examples,
    note_seen,
    open_texts,
    policy_prompts,
    stage_examples,
    world_of,
)
from rlhf_jax.losses.reward import gain_and_bias
from rlhf_jax.models import Model, build_model
from rlhf_jax.models.params import carry_over, count_parameters, without_scores
from rlhf_jax.processes import on_host
from rlhf_jax.report.metrics import read_metrics
from rlhf_jax.rollout.guided import guided
from rlhf_jax.rollout.replies import response_texts
from rlhf_jax.types import Params, Rollout

SUMMARY, SAMPLES, CALIBRATION = "summary.json", "samples.jsonl", "calibration.json"
COMPARISONS, RATED = "comparisons.jsonl", "rated.jsonl"


@dataclasses.dataclass
class Outcome:
    """What a run has to show, filled stage by stage."""

    figures: Figures = dataclasses.field(default_factory=dict)
    calibration: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    samples: list[dict[str, Any]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model with its parameters."""

    model: Model
    params: Params


def run_experiment(run: Run) -> Outcome:
    """Every stage of the run's experiment, each from its newest checkpoint; writes summary, samples and calibration."""
    experiment, outcome = run.experiment, Outcome()
    texts = open_texts(run)
    if experiment.classify is not None:
        found = run_classify(run, start_params(run, experiment.policy), texts)
        return written(run, Outcome(found.figures, found.calibration, found.samples))
    # What cannot work is refused here, before anything is trained.
    prompts, held_out = policy_prompts(run)
    examples = stage_examples(run)
    beginning_of(texts, experiment.evaluation, ending_of(texts, experiment.ppo))
    policy = build_model(dataclasses.replace(experiment.policy, head="lm"))
    start = run.set_aside(start_params(run, policy.config))  # which stages copy that train it
    outcome.figures["policy/parameters"] = float(count_parameters(start))

    tuned, measure = start, None
    if experiment.sft is not None:
        tuned, measure = run_sft(run, policy, start, texts)
        tuned = run.set_aside(tuned)
        outcome.figures |= sft_figures(run)
    reward = None
    if experiment.reward is not None:
        reward = reward_stage(run, policy, tuned, texts, prompts, examples.get("reward"), outcome)
        reward = dataclasses.replace(reward, params=run.set_aside(reward.params))
    learned, preferred, guide = None, None, None
    if experiment.preference is not None:
        preferred = preference_stage(run, policy, tuned, texts, prompts, examples.get("preference"), outcome)
        preferred = run.set_aside(preferred)
    if experiment.ilql is not None:
        guide = ilql_stage(run, policy, tuned, texts, prompts, examples.get("ilql"), outcome)
    if experiment.ppo is not None:
        learned = ppo_stage(run, policy, tuned, reward, texts, prompts)
    if measure is not None and learned is not None:
        outcome.figures["ppo/demonstration_nll"] = measure(learned)["nll"]
    trained = any(part is not None for part in (experiment.sft, learned, preferred, guide))
    if trained or experiment.evaluation.best_of is not None:
        scorer = None if reward is None else model_scorer(run, reward.model, reward.params)
        judge = make_judge(run, texts, policy, tuned, scorer)
        policies = {
            "untrained": None if tuned is start else start,
            "sft": tuned,
            "preference": preferred,
            "ppo": learned,
        }
        candidates = {name: (judge, params) for name, params in policies.items() if params is not None}
        if guide is not None:
            alone = {**guide.params, "beta": jnp.zeros(())}
            candidates["ilql"] = (make_judge(run, texts, guide.model, alone, scorer), guide.params)
        figures, outcome.samples = evaluate(experiment, candidates, held_out)
        outcome.figures |= figures
    return written(run, outcome)


def written(run: Run, outcome: Outcome) -> Outcome:
    """Writes summary, samples and calibration of a run that has ended; the summary is the last to be there."""
    outcome.figures |= run.noted
    outcome.figures |= {f"seconds/{stage}": seconds for stage, seconds in run.seconds.items()}
    write_atomic(run.directory / CALIBRATION, json.dumps(outcome.calibration) + "\n")
    lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in outcome.samples]
    write_atomic(run.directory / SAMPLES, "".join(lines))
    write_atomic(run.directory / SUMMARY, json.dumps(outcome.figures, indent=1) + "\n")
    return outcome


def start_params(run: Run, config: ModelConfig) -> Params:
    """The policy's first parameters: random, or those of the experiment's checkpoint.

    Raises: ValueError where the checkpoint's shape is not the experiment's policy.
    """
    model, experiment = build_model(config), run.experiment
    if experiment.checkpoint is None:
        return run.programs.maker(lambda: model.init)(run.key("init"))
    return read_policy(locate(experiment.checkpoint, run.data), config, run.mesh)


def sft_figures(run: Run) -> Figures:
    """Held-out loss before and after, and tokens per second of its updates alone, from what the stage wrote."""
    metrics = read_metrics(run.directory)
    figures: Figures = {}
    held_out = metrics.get("sft/held_out", {}).get("nll")
    if held_out is not None:
        figures = {"sft/held_out_nll_before": held_out.values[0], "sft/held_out_nll_after": held_out.values[-1]}
        figures = {name: float(value) for name, value in figures.items()}
    tokens = metrics["sft"]["real_tokens"].values[run.resumed["sft"] + 1 :]  # of the steps that were timed
    if run.step_seconds["sft"] > 1:
        figures["sft/tokens_per_second"] = float(tokens.sum() / run.step_seconds["sft"])
    return figures


def reward_stage(
    run: Run,
    policy: Model,
    tuned: Params,
    texts: Texts,
    prompts: Sequence[Prompt],
    examples: Examples | None,
    outcome: Outcome,
) -> Trained:
    """The reward model of the experiment, with its accuracy on held-out prompts in the outcome."""
    experiment, config = run.experiment, run.experiment.reward
    assert config is not None
    judged = None
    if config.data is None:
        train, judged = sampled_comparisons(run, config, policy, tuned, texts, prompts)
        parts, kind = Mixture(((texts.encode(train.comparisons), 1.0),)), Comparison
        records = judged.comparisons
        outcome.figures["reward/bayes_accuracy"] = float(bayes_agreement(judged.probability).mean())
        write_collected(run.directory / COMPARISONS, train.comparisons)
    else:
        assert examples is not None, "loaded before anything was trained"
        parts, kind, records = examples.encoded(texts), examples.kind, examples.held_out
        outcome.figures["reward/rejected_rows"] = float(examples.rejected)

    model = build_model(experiment.reward_shape)
    params = run.programs.maker(lambda: model.init)(run.key("reward"))
    if config.init == "policy":
        params = carry_over(tuned, params)
    encoded = texts.encode(records)
    if config.scores == "centred" and not encoded:
        raise ValueError(
            "reward.scores='centred' is the mean of held-out texts, and none are held out: raise reward.data.held_out"
        )
    params = run_reward(run, model, params, texts, parts, kind, encoded)
    reward = Trained(model, params)
    scores = np.zeros(0)
    if encoded:
        scores = (label_figures if kind is Labelled else pair_figures)(run, reward, texts, encoded, outcome)
    pairs = [record for record in records if isinstance(record, Comparison)]
    if pairs:
        outcome.figures["reward/longer_wins"] = longer_wins(pairs)
    if judged is not None:
        agreement = judged.agreement(*np.split(scores, 2))
        below, error = mean_and_error(bayes_agreement(judged.probability) - agreement)
        outcome.figures |= {
            "reward/expected_accuracy": float(agreement.mean()),
            "reward/below_bayes": below,
            "reward/below_bayes_error": error,
        }
    if config.scores == "centred":
        params = rescaled(params, 1.0, -float(np.mean(scores)))
    elif config.scores == "normalised":
        gain, bias = gain_and_bias(sample_scores(run, policy, tuned, reward, texts, prompts))
        params = rescaled(params, gain, bias)
        outcome.figures |= {"reward/gain": gain, "reward/bias": bias}
    return Trained(model, params)


def label_figures(
    run: Run, reward: Trained, texts: Texts, encoded: Sequence[EncodedLabel], outcome: Outcome
) -> np.ndarray:
    """The scores of held-out labelled texts, [N]; accuracy and calibration go to the outcome."""
    padded = pad_labels(encoded, run.experiment.text.length, texts.tokenizer.pad)
    scores = score_all(run, reward.model, reward.params, padded.text)
    right = ((scores > 0) == (np.asarray(padded.label) == 1)).astype(float)
    outcome.figures |= accuracy_figures(float(right.mean()), len(right))
    outcome.calibration = {"confidence": (1 / (1 + np.exp(-np.abs(scores)))).tolist(), "right": right.tolist()}
    return scores


def pair_figures(
    run: Run, reward: Trained, texts: Texts, encoded: Sequence[EncodedPair], outcome: Outcome
) -> np.ndarray:
    """The scores of held-out pairs, [2 N], the chosen replies first; accuracy and calibration go to the outcome."""
    pairs = pad_pairs(encoded, run.experiment.text.length, texts.tokenizer.pad)
    both = jax.tree.map(lambda a, b: np.concatenate([a, b]), pairs.chosen, pairs.rejected)
    scores = score_all(run, reward.model, reward.params, both)
    figures, outcome.calibration = preference_figures(*np.split(scores, 2))
    outcome.figures |= figures
    return scores


def sample_scores(
    run: Run, policy: Model, tuned: Params, reward: Trained, texts: Texts, prompts: Sequence[Prompt]
) -> np.ndarray:
    """Scores of the tuned policy's samples, one to each of as many training prompts as the evaluation asks, [N]."""
    config, size = run.experiment.ppo, run.experiment.evaluation
    sampler = sampler_of(run, policy, texts)
    score = model_scorer(run, reward.model, reward.params)
    assert config is not None, "Experiment checks that normalised scores have PPO's samples"
    asked = texts.encode(prompts[: size.prompts])
    rollouts = sampler.rollouts(tuned, asked, run.key("normalise"), temperature=config.temperature)
    return np.concatenate([on_host(score(rollout, counts))[counts] for rollout, counts in rollouts])


def preference_stage(
    run: Run,
    policy: Model,
    tuned: Params,
    texts: Texts,
    prompts: Sequence[Prompt],
    examples: Examples | None,
    outcome: Outcome,
) -> Params:
    """The policy that learned from comparisons, sampled from the tuned one or read, or with KTO from labelled replies that are read."""
    config = run.experiment.preference
    assert config is not None
    if config.data is None:
        train, judged = sampled_comparisons(run, config, policy, tuned, texts, prompts)
        parts, held_out = Mixture(((texts.encode(train.comparisons), 1.0),)), judged.comparisons
        write_collected(run.directory / COMPARISONS, train.comparisons)
    else:
        assert examples is not None, "loaded before anything was trained"
        parts, held_out = examples.encoded(texts), examples.held_out
        outcome.figures["preference/rejected_rows"] = float(examples.rejected)
    return run_preference(run, policy, tuned, texts, parts, texts.encode(held_out))


def ilql_stage(
    run: Run,
    policy: Model,
    tuned: Params,
    texts: Texts,
    prompts: Sequence[Prompt],
    examples: Examples | None,
    outcome: Outcome,
) -> Trained:
    """The tuned policy, guided by critics of its own samples, or of comparisons and labelled replies that are read."""
    config = run.experiment.ilql
    assert config is not None
    if config.data is None:
        assert config.replies is not None, "the config checks that a stage without data has replies"
        repeated, aside = dealt_prompts(run, prompts, config.replies)
        draw = partial(
            sample_replies, run, sampler_of(run, policy, texts), tuned, texts, temperature=config.temperature
        )
        # Behind those of the reward model's pairs: it should not judge the replies that it was trained on.
        first = 0 if run.experiment.reward is None else (run.experiment.reward.pairs or 0) + 2
        train = rate(run, repeated, draw(repeated, sample=first))
        held_out = rate(run, aside, draw(aside, sample=first + 1))
        write_collected(run.directory / RATED, train)
        parts = Mixture(((texts.encode(train), 1.0),))
    else:
        assert examples is not None, "loaded before anything was trained"
        sides = ((texts.encode(rated_of(records)), weight) for records, weight in examples.parts)
        parts, held_out = Mixture(tuple(sides)), rated_of(examples.held_out)
        outcome.figures["ilql/rejected_rows"] = float(examples.rejected)
    critics, params = run_ilql(run, tuned, texts, parts, texts.encode(held_out))
    return Trained(guided(policy, critics), guidance(tuned, params, config.beta))


def ppo_stage(
    run: Run, policy: Model, tuned: Params, reward: Trained | None, texts: Texts, prompts: Sequence[Prompt]
) -> Params:
    """The policy after PPO, as parameters of the plain language model."""
    experiment, config = run.experiment, run.experiment.ppo
    assert config is not None
    scorer: Scorer
    if config.reward == "gold":
        world = world_of(experiment)
        scorer = text_scorer(run, texts, lambda place, reply: world.gold(prompts[place].key, reply))
    else:
        assert reward is not None, "Experiment checks that PPO has a reward"
        scorer = rollout_scorer(run, reward.model, reward.params, config)

    value, value_params, model, params = None, None, policy, tuned
    if config.baseline == "value" and config.value_optim is None:
        model = build_model(dataclasses.replace(experiment.policy, head="lm+scalar"))
        params = carry_over(tuned, run.programs.maker(lambda: model.init)(run.key("value")))
    elif config.value_optim is not None:
        shape = experiment.reward_shape if config.value_init == "reward" and reward else experiment.policy
        value = build_model(dataclasses.replace(shape, head="scalar"))
        source = reward.params if config.value_init == "reward" and reward else tuned
        fresh = run.programs.maker(partial(getattr, value, "init"))(run.key("value"))
        value_params = carry_over(source, fresh)

    asked = experiment.prompts or (first_mixture(experiment) or ("", None))[1]
    note_seen(run, "ppo", seen_from_the_start(gathered_records(run, asked, config.ptx_data)))
    demonstrations = None
    if config.ptx_coef:
        mixture = config.ptx_data or (experiment.sft.data if experiment.sft else None)
        if mixture is None or config.ptx_rows is None:
            raise ValueError("ppo.ptx_coef needs demonstrations: set ppo.ptx_data, or an SFT stage")
        rows = config.ptx_rows * config.epochs * config.minibatches
        examples = load_examples(run, mixture, IMITATED, together=True)
        demonstrations = token_batches(
            examples.encoded(texts), rows, experiment.text.length, texts.tokenizer.pad, experiment.seed
        )

    watch = gold_watch(run, texts, prompts) if experiment.world is not None and experiment.prompts is None else None

    learned = run_ppo(
        run, model, params, value, value_params, scorer, texts, texts.encode(prompts), demonstrations, watch
    )
    return without_scores(learned)


def gold_watch(run: Run, texts: Texts, prompts: Sequence[Prompt]):
    """(rollout, prompt index of each row) -> the mean gold reward of the replies, which PPO does not see but the report does."""
    world = world_of(run.experiment)

    def watch(rollout: Rollout, index: np.ndarray) -> dict[str, float]:
        replies = response_texts(rollout, texts.tokenizer)
        gold = [
            world.gold(prompts[place].key, texts.template.reply_text(reply))
            for place, reply in zip(index, replies, strict=True)
        ]
        return {"gold": float(np.mean(gold))}

    return watch
