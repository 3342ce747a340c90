"""Whole pipelines at their smallest: every stage, every option of PPO, one device and eight."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from experiments.smoke import smoke_dapo
from rlhf_jax.config import (
    PPO,
    SFT,
    Evaluation,
    Experiment,
    MeshConfig,
    Mixture,
    ModelConfig,
    Optim,
    Reward,
    Text,
    World,
)
from rlhf_jax.loops.pipeline import run_experiment
from rlhf_jax.loops.run import open_run
from rlhf_jax.report.metrics import read_metrics

WORLD = Mixture((("world:instruct", 1.0),))
OPTIM = Optim(lr=1e-3, rows=16)
SFT_STAGE = SFT(data=WORLD, optim=dataclasses.replace(OPTIM, steps=6, microbatches=2), eval_every=3)

# Against a learned reward: its own value model, demonstrations mixed in, an averaged policy.
AGAINST_MODEL = PPO(
    optim=dataclasses.replace(OPTIM, microbatches=2),
    value_optim=dataclasses.replace(OPTIM, microbatches=2),
    iterations=2,
    prompts=16,
    samples=2,
    epochs=2,
    new_tokens=6,
    temperature=0.7,
    ptx_coef=0.5,
    ptx_rows=8,
    ema=0.5,
)
# Against the world's own reward, with everything that shapes it, and a value head on the policy.
AGAINST_GOLD = PPO(
    optim=OPTIM,
    value_optim=None,
    iterations=2,
    prompts=16,
    new_tokens=6,
    kl_coef=0.2,
    kl_target=0.5,
    kl_horizon=100.0,
    gamma=0.9,
    lam=0.8,
    clip=0.1,
    value_clip=None,
    value_coef=0.5,
    whiten_rewards=True,
    whiten_advantages=False,
    stop_token="\n",
    stop_after=2,
    missing_stop_score=-1.0,
    reward="gold",
)
# Against a classifier of labelled texts, as Ziegler et al. 2019: files for everything, the value starts from the policy.
AGAINST_LABELS = PPO(
    optim=OPTIM,
    value_optim=OPTIM,
    iterations=2,
    prompts=16,
    new_tokens=6,
    value_init="policy",
    reward_at="eos_plus_1",
    score_unit="normalised",
    score_clip=0.8,
    advantage_clip=0.5,
    entropy_coef=0.01,
    ptx_coef=0.5,
    ptx_rows=16,
    ptx_data=Mixture((("alpaca:demonstrations.json", 1.0),)),
)
# Without a critic: groups of responses, as in GRPO, GSPO and DAPO, with KL in the loss.
IN_GROUPS = PPO(
    optim=dataclasses.replace(OPTIM, rows=32),  # all responses, so that a prompt is read once
    value_optim=None,
    iterations=2,
    prompts=16,
    samples=2,
    new_tokens=6,
    baseline="group_normalised",
    credit="sequence",
    ratio="sequence",
    normaliser="group",
    clip_high=0.28,
    dual_clip=3.0,
    kl_in="loss",
    kl_estimator="exact",
    overlong_cache=2,
)
# REINFORCE with a moving average, reused with truncated importance weights.
AGAINST_AVERAGE = PPO(
    optim=OPTIM,
    value_optim=None,
    iterations=2,
    prompts=16,
    epochs=2,
    new_tokens=6,
    baseline="moving_average",
    decay=0.5,
    objective="truncated",
    importance_cap=1.5,
    normaliser="constant",
)

RUNS = ("one_device", "against_gold", "against_labels", "in_groups", "against_average")


def experiment(**stages) -> Experiment:
    """A tiny experiment in float32 with the stages given."""
    return Experiment(
        name="tiny",
        scale="cpu",
        policy=ModelConfig(vocab=768, width=16, layers=1, heads=4, kv_heads=2, mlp=32, max_length=64),
        text=Text(tokenizer="train:768", template="plain", length=48, prompt_length=40),
        evaluation=Evaluation(prompts=16, rows=16, new_tokens=6, samples_shown=3, positive_words=True),
        **({"world": World(demonstrations=64, prompts=32, flawed=0.2)} | stages),
    )


def everything(mesh: MeshConfig) -> Experiment:
    reward = Reward(data=None, pairs=32, optim=dataclasses.replace(OPTIM, steps=4), scores="centred", eval_every=2)
    config = experiment(sft=SFT_STAGE, reward=reward, ppo=AGAINST_MODEL, mesh=mesh)
    return dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, best_of=5))


@dataclasses.dataclass(frozen=True)
class Result:
    directory: Path
    figures: dict
    metrics: dict


def run(config: Experiment, directory: Path, data_root: Path | None = None) -> Result:
    run_experiment(open_run(config, directory, data_root=data_root))
    return Result(directory, json.loads((directory / "summary.json").read_text()), read_metrics(directory))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A data root with prompts, labelled texts, comparisons and demonstrations."""
    root = tmp_path_factory.mktemp("data")
    words = [
        f"{adjective} {noun}"
        for adjective in ("fine", "awful", "grand", "dull")
        for noun in ("film", "book", "play", "song")
    ]
    words = [f"{word} {number}" for word in words for number in range(8)]
    (root / "prompts.txt").write_text("".join(f"I saw a {word}\n" for word in words))
    labels = [f"{word}\t{int(word.startswith(('fine', 'grand')))}\n" for word in words]
    (root / "labels.tsv").write_text("sentence\tlabel\n" + "".join(labels))
    pair = "\n\nHuman: How was the {0}?\n\nAssistant: {1}"
    comparisons = [{"chosen": pair.format(w, "It was good."), "rejected": pair.format(w, "No.")} for w in words]
    (root / "comparisons.jsonl").write_text("".join(json.dumps(row) + "\n" for row in comparisons))
    demonstrations = [{"instruction": f"Name a {word}", "input": "", "output": word} for word in words]
    (root / "demonstrations.json").write_text(json.dumps(demonstrations))
    return root


@pytest.fixture(scope="module")
def one_device(tmp_path_factory) -> Result:
    return run(everything(MeshConfig()), tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def against_gold(tmp_path_factory) -> Result:
    return run(experiment(ppo=AGAINST_GOLD), tmp_path_factory.mktemp("gold"))


def by_labels(ppo: PPO, directory: Path, files: Path) -> Result:
    prompts = Mixture((("lines:prompts.txt", 1.0),), held_out=0.3)
    labels = Mixture((("sst2:labels.tsv", 1.0),), held_out=0.2)
    reward = Reward(
        data=labels, optim=dataclasses.replace(OPTIM, steps=30, lr=1e-2), init="random", scores="normalised"
    )
    shape = ModelConfig(vocab=768, width=24, layers=1, heads=2, kv_heads=2, mlp=32, max_length=64)
    config = experiment(world=None, prompts=prompts, reward=reward, reward_model=shape, ppo=ppo)
    return run(config, directory, files)


@pytest.fixture(scope="module")
def against_labels(tmp_path_factory, files) -> Result:
    return by_labels(AGAINST_LABELS, tmp_path_factory.mktemp("labels"), files)


@pytest.fixture(scope="module")
def in_groups(tmp_path_factory, files) -> Result:
    return by_labels(IN_GROUPS, tmp_path_factory.mktemp("groups"), files)


@pytest.fixture(scope="module")
def against_average(tmp_path_factory, files) -> Result:
    return by_labels(AGAINST_AVERAGE, tmp_path_factory.mktemp("average"), files)


@pytest.mark.parametrize("name", RUNS)
def test_all_figures_and_metrics_are_finite(name, request):
    result = request.getfixturevalue(name)
    assert result.figures
    assert [key for key, value in result.figures.items() if not np.isfinite(value)] == []
    for stage, metrics in result.metrics.items():
        bad = [key for key, series in metrics.items() if not np.isfinite(series.values).all()]
        assert bad == [], f"{stage}: {bad}"


@pytest.mark.parametrize("name", RUNS)
def test_ppo_starts_on_policy_at_the_reference_whatever_the_options(name, request):
    ppo = request.getfixturevalue(name).metrics["ppo"]
    assert list(ppo["score"].steps) == [0, 1]
    np.testing.assert_allclose(ppo["first_ratio"].values, 1, atol=1e-6)
    assert all((ppo[name].values == 0).all() for name in ("first_clip_fraction",) if name in ppo)
    np.testing.assert_allclose(ppo["kl_sequence"].values[0], 0, atol=1e-6)
    assert ppo["kl_sequence"].values[1] > 1e-5, "the first iteration taught nothing"
    assert ppo["sampler_gap"].values.max() < 1e-4, "the sampler and the trainer disagree"


def test_all_stages_in_one_leave_figures_of_each(one_device):
    figures, metrics = one_device.figures, one_device.metrics
    assert figures["sft/held_out_nll_after"] < figures["sft/held_out_nll_before"]
    np.testing.assert_array_equal(metrics["sft/held_out"]["nll"].steps, [0, 3, 6])
    assert 0.5 <= figures["reward/bayes_accuracy"] <= 1
    assert figures["reward/accuracy_low"] <= figures["reward/accuracy"] <= figures["reward/accuracy_high"]
    assert figures["reward/normalised_accuracy"] == pytest.approx(200 * figures["reward/accuracy"] - 100)
    assert figures["sft/kl"] == pytest.approx(0, abs=1e-5)
    assert figures["ppo/kl"] > 0
    gain = figures["ppo/score"] - figures["sft/score"]
    assert figures["ppo_minus_sft/score"] == pytest.approx(gain, abs=1e-5)
    samples = [json.loads(line) for line in (one_device.directory / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 3
    assert {"prompt", "untrained", "sft", "ppo", "ppo gold", "ppo score"} <= samples[0].keys()
    calibration = json.loads((one_device.directory / "calibration.json").read_text())
    assert len(calibration["confidence"]) == figures["reward/pairs"]
    assert len((one_device.directory / "comparisons.jsonl").read_text().splitlines()) <= 32


def test_the_best_of_n_is_picked_by_score_and_estimated_for_fewer(one_device):
    figures, curve = one_device.figures, one_device.metrics["best_of_n"]
    np.testing.assert_array_equal(curve["score"].steps, [1, 2, 4, 5])
    assert (np.diff(curve["score"].values) > 0).all()
    assert curve["score"].values[-1] == pytest.approx(figures["best_of_n/score"], abs=1e-5)
    assert curve["gold"].values[-1] == pytest.approx(figures["best_of_n/gold"], abs=1e-5)
    assert figures["best_of_2/score"] == pytest.approx(curve["score"].values[1])
    assert figures["best_of_n/kl_bound"] == pytest.approx(np.log(5) - 0.8)
    assert "best_of_n/kl" not in figures and "best_of_n/entropy" not in figures
    gain = figures["best_of_n/score"] - figures["sft/score"]
    assert figures["best_of_n_minus_sft/score"] == pytest.approx(gain, abs=1e-5)
    samples = [json.loads(line) for line in (one_device.directory / "samples.jsonl").read_text().splitlines()]
    for sample in samples:  # SFT's reply is the first of the five
        assert sample["best_of_n score"] >= sample["sft score"]
        assert (sample["best_of_n"] == sample["sft"]) == (sample["best_of_n score"] == sample["sft score"])


def test_demonstrations_enter_every_update_of_ppo_ptx(one_device, against_gold):
    assert (one_device.metrics["ppo"]["ptx_nll"].values > 1).all()
    before, after = (one_device.figures[name] for name in ("sft/held_out_nll_after", "ppo/demonstration_nll"))
    assert after != before and after == pytest.approx(before, abs=0.5), "both are of the held-out demonstrations"
    assert "ptx_nll" not in against_gold.metrics["ppo"]


@pytest.mark.slow
def test_eight_devices_on_three_axes_give_the_numbers_of_one(one_device, tmp_path):
    eight = run(everything(MeshConfig(data=2, fsdp=2, tensor=2)), tmp_path)
    timed = ("seconds", "sft/tokens_per_second")  # of stages that took long enough to time
    assert {name for name in eight.figures if not name.startswith(timed)} == {
        name for name in one_device.figures if not name.startswith(timed)
    }
    for stage, names in {
        "sft": ("nll", "grad_norm"),
        "sft/held_out": ("nll",),
        "reward": ("loss", "grad_norm"),
        "ppo": ("score", "kl_sequence", "rollout_entropy", "length", "policy_loss", "value_loss", "ptx_nll"),
    }.items():
        for name in names:
            found, expected = eight.metrics[stage][name].values, one_device.metrics[stage][name].values
            np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5, err_msg=f"{stage} {name}")


def test_the_adaptive_coefficient_moves_towards_its_target(against_gold, one_device):
    # The KL is below the target of 0.5 nats, so the coefficient falls by the error, clipped at 0.2, times 16 / 100.
    np.testing.assert_allclose(against_gold.metrics["ppo"]["kl_coef"].values, [0.2, 0.2 * (1 - 0.2 * 0.16)], rtol=1e-5)
    np.testing.assert_allclose(one_device.metrics["ppo"]["kl_coef"].values, 0.05)


def test_a_response_without_the_stop_token_gets_the_fixed_score(against_gold):
    ppo = against_gold.metrics["ppo"]
    unfinished = ppo["finished"].values == 0
    assert unfinished.any(), "every rollout of an untrained policy held a stop token"
    np.testing.assert_array_equal(ppo["score"].values[unfinished], -1)


def test_a_classifier_of_labelled_texts_is_a_reward_and_learns_its_labels(against_labels):
    figures = against_labels.figures
    assert figures["reward/accuracy"] > 0.7
    assert np.isfinite(figures["ppo_minus_sft/positive_words"])
    assert "gold" not in against_labels.metrics["ppo"], "prompts from files have no gold reward"
    assert "ppo/gold" not in figures


def test_sft_alone_on_files_shows_what_the_policy_writes(tmp_path, files):
    data = Mixture((("alpaca:demonstrations.json", 1.0),), held_out=0.3)
    result = run(experiment(world=None, sft=dataclasses.replace(SFT_STAGE, data=data)), tmp_path, files)
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [list(sample) for sample in samples] == [
        ["prompt", "untrained", "untrained positive words", "sft", "sft positive words"]
    ] * 3
    assert all(sample["prompt"].startswith("Name a") for sample in samples)
    assert 0 < result.figures["sft/length"] <= 6
    assert not any(name.startswith("ppo") for name in result.figures)


def test_too_few_held_out_prompts_are_named_by_their_field(tmp_path, files):
    data = Mixture((("alpaca:demonstrations.json", 1.0),), held_out=0.02)
    with pytest.raises(ValueError, match=r"evaluation\.prompts=16, but sft\.data\.held_out=0\.02 leaves"):
        run(experiment(world=None, sft=dataclasses.replace(SFT_STAGE, data=data)), tmp_path, files)


def test_normalised_scores_have_mean_0_and_deviation_1_on_samples_of_the_starting_policy(against_labels):
    # PPO's first rollouts are other samples of the same policy; all of them end early or are cut, none is replaced.
    ppo = against_labels.metrics["ppo"]
    assert abs(ppo["score"].values[0]) < 1.0
    assert 0.4 < ppo["score_std"].values[0] < 2.5
    assert against_labels.figures["reward/gain"] > 0
    assert against_labels.figures["reward/gain"] != 1.0


def test_centred_scores_average_0_on_held_out_pairs(one_device):
    assert abs(one_device.metrics["ppo"]["score"].values[0]) < 1.0
    assert "reward/gain" not in one_device.figures


def test_comparisons_from_files_train_a_reward_model_beside_the_length_baseline(tmp_path, files):
    data = Mixture((("hh:comparisons.jsonl", 1.0),), held_out=0.2)
    stage = Reward(data=data, optim=dataclasses.replace(OPTIM, steps=12, lr=5e-3))
    result = run(experiment(world=None, reward=stage), tmp_path, files)
    assert result.figures["reward/longer_wins"] == 1.0
    assert result.figures["reward/accuracy"] == 1.0
    assert result.metrics["reward"]["loss"].values[-1] < result.metrics["reward"]["loss"].values[0]
    assert not (tmp_path / "comparisons.jsonl").exists()


def test_a_run_without_a_critic_has_none_to_report(in_groups, against_average):
    for result in (in_groups, against_average):
        assert not [name for name in result.metrics["ppo"] if "value" in name or "variance" in name]
    assert "clip_fraction" in in_groups.metrics["ppo"]
    assert "clip_fraction" not in against_average.metrics["ppo"], "nothing is clipped there"


def test_one_of_these_runs_sets_every_option_of_ppo():
    runs = (AGAINST_MODEL, AGAINST_GOLD, AGAINST_LABELS, IN_GROUPS, AGAINST_AVERAGE, smoke_dapo("cpu").ppo)
    never = [
        field.name
        for field in dataclasses.fields(PPO)
        if field.default is not dataclasses.MISSING
        and all(getattr(config, field.name) == field.default for config in runs)
    ]
    # Of online DPO, which exact/selection runs; while the value warms up the policy learns nothing, tests/loops/test_stages.py has that.
    # smoke/dapo is run by test_resume.py.
    assert never == ["labels", "value_warmup"]
    for name, choices in {"reward": {"model", "gold"}, "value_init": {"reward", "policy"}}.items():
        assert {getattr(config, name) for config in runs} == choices
    assert {config.value_optim is None for config in runs} == {True, False}
