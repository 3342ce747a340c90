"""What the stages between SFT and PPO read from files: both kinds of replies, prompts to be evaluated on, and what is refused early."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from rlhf_jax.config import (
    ILQL,
    SFT,
    Curation,
    Evaluation,
    Experiment,
    Mixture,
    ModelConfig,
    Optim,
    Preference,
    Reward,
    Text,
    World,
)
from rlhf_jax.data.schema import Comparison, Conversation, Demonstration, Provenance, user_prompt
from rlhf_jax.data.splits import split_by_prompt
from rlhf_jax.loops.pipeline import run_experiment
from rlhf_jax.loops.run import open_run
from rlhf_jax.loops.sources import IMITATED, load_examples, open_texts, rate
from rlhf_jax.report.metrics import read_metrics

OPTIM = Optim(lr=1e-3, rows=16, steps=2)
PAIRS, SINGLES = "hh:comparisons.jsonl", "unpaired:replies.jsonl"


def mixture(*sources: str, held_out: float = 0.3) -> Mixture:
    return Mixture(tuple((source, 1.0) for source in sources), held_out=held_out)


def experiment(**stages) -> Experiment:
    """A tiny experiment without a world."""
    usual = {
        "evaluation": Evaluation(prompts=8, rows=8, new_tokens=4),
        "text": Text(tokenizer="train:768", template="plain", length=48, prompt_length=40),
    }
    policy = ModelConfig(vocab=768, width=16, layers=1, heads=4, kv_heads=2, mlp=32, max_length=64)
    return Experiment(name="tiny", scale="cpu", policy=policy, **(usual | stages))


def reply(prompt: str, label: bool) -> str:
    """A line of labelled replies."""
    return json.dumps({"prompt": prompt, "completion": "Yes." if label else "No.", "label": label}) + "\n"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Comparisons, and labelled replies to other prompts."""
    root = tmp_path_factory.mktemp("data")
    pair = "\n\nHuman: How was number {0}?\n\nAssistant: {1}"
    comparisons = [{"chosen": pair.format(n, "It was good."), "rejected": pair.format(n, "No.")} for n in range(80)]
    (root / "comparisons.jsonl").write_text("".join(json.dumps(row) + "\n" for row in comparisons))
    (root / "replies.jsonl").write_text("".join(reply(f"Was number {n} good?", n % 2 == 0) for n in range(60)))
    return root


def run(config: Experiment, directory: Path, files: Path) -> dict[str, float]:
    run_experiment(open_run(config, directory, data_root=files))
    return json.loads((directory / "summary.json").read_text())


def test_both_replies_of_comparisons_teach_critics_which_is_better(tmp_path, files):
    stage = ILQL(data=mixture(PAIRS), optim=dataclasses.replace(OPTIM, steps=40, lr=5e-3), polyak=0.2, beta=50.0)
    figures = run(experiment(ilql=stage), tmp_path, files)
    held_out = read_metrics(tmp_path)["ilql/held_out"]
    assert held_out["q_loss"].values[-1] < 0.5 * held_out["q_loss"].values[0]
    assert figures["ilql/kl"] > 0.1
    assert figures["sft/kl"] == pytest.approx(0, abs=1e-6), "what the critics guide is the policy they started from"
    assert not (tmp_path / "rated.jsonl").exists()


def test_kto_takes_comparisons_and_labelled_replies_together(tmp_path, files):
    stage = Preference(data=mixture(PAIRS, SINGLES), objective="kto", optim=OPTIM, eval_every=1)
    figures = run(experiment(preference=stage), tmp_path, files)
    assert np.isfinite(figures["preference/kl"])
    assert 60 < figures["preference/examples"] < 140 and figures["preference/cut_replies"] == 0


def test_replies_that_were_cut_are_counted(tmp_path, files):
    short = Text(tokenizer="train:768", template="plain", length=8, prompt_length=6)
    stage = Preference(data=mixture(PAIRS, SINGLES), objective="kto", optim=OPTIM)
    figures = run(experiment(preference=stage, text=short), tmp_path, files)
    assert figures["preference/cut_prompts"] == figures["preference/examples"]


def test_the_best_of_n_by_a_reward_model_of_files_is_picked_on_its_held_out_prompts(tmp_path, files):
    evaluation = Evaluation(prompts=8, rows=8, new_tokens=4, best_of=2)
    config = experiment(reward=Reward(data=mixture(PAIRS), optim=OPTIM), evaluation=evaluation)
    figures = run(config, tmp_path, files)
    assert figures["best_of_2/score"] == pytest.approx(figures["best_of_n/score"], abs=1e-5)
    assert figures["best_of_n/score"] >= figures["sft/score"]


def one_held_out() -> int:
    """So many prompts that one of them is held out."""
    for count in range(2, 60):
        prompts = [user_prompt(f"Was number {n} good?", Provenance("made up", "CC0")) for n in range(count)]
        if len(split_by_prompt(prompts, 0.1, 0)[1]) == 1:
            return count
    raise AssertionError("no count of prompts holds one out")


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (
            {"preference": Preference(data=mixture(SINGLES), optim=OPTIM)},
            "'unpaired:replies.jsonl' gave records of kind LabelledReply; this stage reads Comparison",
        ),
        (
            {"preference": Preference(data=mixture("unpaired:few.jsonl", held_out=0.1), objective="kto", optim=OPTIM)},
            r"preference\.data\.held_out leaves one prompt",
        ),
        ({"ilql": ILQL(data=mixture("world:instruct"), optim=OPTIM)}, "gave records of kind Demonstration"),
    ],
)
def test_what_a_later_stage_cannot_read_is_refused_before_anything_is_trained(tmp_path, files, stage, message):
    (files / "few.jsonl").write_text("".join(reply(f"Was number {n} good?", True) for n in range(one_held_out())))
    sft = SFT(data=mixture("world:instruct"), optim=OPTIM)
    config = experiment(world=World(demonstrations=64, prompts=32), sft=sft, **stage)
    with pytest.raises(ValueError, match=message):
        run(config, tmp_path / "run", files)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_replies_of_critics_are_none_that_the_reward_model_was_trained_on(tmp_path, files):
    reward, critics = Reward(data=None, pairs=16, optim=OPTIM), ILQL(data=None, replies=16, optim=OPTIM)
    run(experiment(world=World(demonstrations=64, prompts=24), reward=reward, ilql=critics), tmp_path, files)
    pairs, rated = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("comparisons", "rated")
    )
    judged = {(row["key"], row[side]) for row in pairs for side in ("chosen", "rejected")}
    assert len(rated) == len({row["key"] for row in rated}) == 16
    assert judged.isdisjoint((row["key"], row["reply"]) for row in rated)


def test_a_cap_mixes_sources_by_their_sizes_up_to_it(tmp_path):
    # PAPERS 7.3: sizes 1k, 3k, 30k and a cap of 3k (here a hundredth of each) give .1429, .4286, .4286.
    for name, size in {"small": 10, "middle": 30, "large": 300}.items():
        rows = [{"instruction": f"{name} {row}", "input": "", "output": "Yes."} for row in range(size)]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    names = ("alpaca:small.json", "alpaca:middle.json", "alpaca:large.json")

    def shares(weights=(1.0, 1.0, 1.0), **settings) -> np.ndarray:
        data = Mixture(tuple(zip(names, weights, strict=True)), held_out=0.0, **settings)
        run = open_run(experiment(sft=SFT(data=data, optim=OPTIM)), tmp_path / "run", data_root=tmp_path)
        given = np.array([weight for _, weight in load_examples(run, data, Demonstration).parts])
        return given / given.sum()

    np.testing.assert_allclose(shares(cap=30), [0.1429, 0.4286, 0.4286], atol=5e-5)
    np.testing.assert_allclose(shares(cap=1000), np.array([10, 30, 300]) / 340)
    np.testing.assert_allclose(shares(), [1 / 3] * 3)
    np.testing.assert_allclose(shares((3.0, 1.0, 1.0), cap=30), [1 / 3] * 3)


def test_a_cap_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"Mixture.cap is 0; it must be above 0"):
        Mixture((("alpaca:x.json", 1.0),), cap=0)


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> Path:
    """Dialogues, documents, and rankings."""
    root = tmp_path_factory.mktemp("told")
    rows = {
        "talks.jsonl": [
            {
                "messages": [{"role": "user", "content": f"Is {n} good?"}, {"role": "assistant", "content": "Yes."}]
                * (1 + n % 3)
            }
            for n in range(40)
        ],
        "pages.jsonl": [{"text": f"Number {n} was good. " * (1 + n % 9)} for n in range(30)],
        "ranked.jsonl": [{"prompt": f"Is {n} good?", "replies": ["Yes.", "No.", "Well."]} for n in range(40)],
    }
    for name, lines in rows.items():
        (root / name).write_text("".join(json.dumps(row) + "\n" for row in lines))
    return root


@pytest.mark.parametrize(("template", "each"), [("zephyr", 1), ("plain", 2)])
def test_dialogues_and_documents_are_imitated_together(tmp_path, told, template, each):
    text = Text(tokenizer="train:768", template=template, length=48, prompt_length=40, buckets=(24,))
    data = mixture("messages:talks.jsonl", "documents:pages.jsonl")
    config = experiment(text=text, sft=SFT(data=data, optim=OPTIM))
    figures = run(config, tmp_path / "a", told)
    run_ = open_run(config, tmp_path / "b", data_root=told)
    examples = load_examples(run_, data, IMITATED, together=True)
    talks, pages = (records for records, _ in examples.parts)
    texts = open_texts(run_)
    windows = sum(len(texts.encode([page])) for page in pages)
    replies = sum(len(talk.demonstrations()) for talk in talks if isinstance(talk, Conversation))
    # Where a token ends each reply a dialogue is one example, else each of its replies is.
    assert figures["sft/examples"] == windows + (len(talks) if each == 1 else replies)
    assert np.isfinite(figures["sft/held_out_nll_after"])


def test_a_ranking_counts_as_the_comparisons_of_one_prompt(tmp_path, told):
    config = experiment(reward=Reward(data=mixture("rankings:ranked.jsonl"), optim=OPTIM))
    examples = load_examples(open_run(config, tmp_path, data_root=told), mixture("rankings:ranked.jsonl"), Comparison)
    pairs = [*examples.parts[0][0], *examples.held_out]
    assert len(pairs) == 40 * 3
    assert sum(pair.weight for pair in pairs if isinstance(pair, Comparison)) == pytest.approx(40)
    held = {record.prompt.key for record in examples.held_out if isinstance(record, Comparison)}
    assert not held & {pair.prompt.key for pair in examples.parts[0][0] if isinstance(pair, Comparison)}


def test_temperature_evens_out_the_sizes():
    mixed = dataclasses.replace(mixture("documents:a"), temperature=2.0)
    assert [rate(count, mixed) for count in (100, 400)] == [10.0, 20.0]
    assert rate(400, dataclasses.replace(mixed, cap=100)) == 10.0
    assert rate(400, dataclasses.replace(mixed, cap=100, temperature=None)) == 100.0
    assert rate(400, mixture("documents:a")) == 1.0


def test_a_run_leaves_the_card_of_its_data_and_trains_on_what_cleaning_left(tmp_path, told):
    rows = [{"instruction": f"Is {n % 20} good?", "output": "Mail ann@example.org."} for n in range(40)]
    (told / "twice.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = Curation(licences=("MIT",), clean=("exact_duplicates",), mask=("email",))
    config = experiment(
        data=data,
        sft=SFT(data=mixture("alpaca:twice.jsonl?licence=MIT", held_out=0.0), optim=OPTIM),
        prompts=mixture("messages:talks.jsonl?licence=MIT"),
    )
    figures = run(config, tmp_path, told)
    assert (figures["sft/examples"], figures["sft/rejected_rows"]) == (20, 20)
    card = json.loads((tmp_path / "data" / "sft.json").read_text())
    assert (card["records"], card["masked"]) == (20, {"email": 40})
    assert "| exact_duplicates | 40 | 0 | 20 |" in (tmp_path / "data" / "sft.md").read_text()
    assert (tmp_path / "data" / "prompts.md").is_file()
    with pytest.raises(ValueError, match=r"data\.licences allows Apache-2\.0"):
        run(dataclasses.replace(config, data=Curation(licences=("Apache-2.0",))), tmp_path / "b", told)
