"""Runs that learn to classify: from a file of one's own, from a pretrained encoder, with adapters; and what leaves them."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
import torch
from encoders import BERT
from families import random_model, tensor
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer, BertConfig

from experiments import run
from experiments.registry import find
from rlhf_jax.checkpoint import load_part, newest_intact
from rlhf_jax.data.tokens.tokenizer import train_sentencepiece
from rlhf_jax.loops.export import export_model, read_experiment
from rlhf_jax.loops.pipeline import run_experiment
from rlhf_jax.loops.run import open_run
from rlhf_jax.mesh import make_mesh
from rlhf_jax.models.convert.load import load_pretrained
from rlhf_jax.models.params import count_parameters
from rlhf_jax.overrides import apply_overrides
from rlhf_jax.plan.programs import lower_updates
from rlhf_jax.report.metrics import read_metrics

KINDS = {"ask": "which {} is it?", "sum up": "sum up the {} for me", "write": "write a {} now"}
WORDS = ("house", "letter", "song", "tree", "river", "book", "street", "window", "table", "horse", "cloud", "garden")
TEXTS = [(form.format(word), kind) for word in WORDS for kind, form in KINDS.items()]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data root with labelled texts and a tokenizer."""
    root = tmp_path_factory.mktemp("data")
    lines = [json.dumps({"text": text, "label": kind}) + "\n" for text, kind in TEXTS]
    (root / "texts.jsonl").write_text("".join(lines))
    train_sentencepiece([text for text, _ in TEXTS], 320).save(root / "own.model")
    return root


SETTINGS = {
    "text.tokenizer": "own.model",
    "text.length": 32,
    "text.prompt_length": 16,
    "policy.vocab": 320,
    "policy.width": 16,
    "policy.layers": 1,
    "policy.mlp": 32,
    "policy.max_length": 40,
    "evaluation.rows": 8,
    "classify.labels": '["ask", "sum up", "write"]',
    "classify.data.sources": '[["classified:texts.jsonl", 1.0]]',
    "classify.optim.lr": 0.01,
    "classify.optim.rows": 8,
    "classify.optim.steps": 40,
    "classify.optim.warmup": 0,
    "classify.eval_every": 20,
}


def words(**changes: object) -> list[str]:
    settings = SETTINGS | {name.replace("__", "."): value for name, value in changes.items()}
    return [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]


def started(directory, data, **changes) -> int:
    given = ["--workdir", str(directory), "--data-root", str(data)]
    return run.main(["run", "real/instruction_fields", *given, *words(**changes)])


def summary(directory) -> dict[str, float]:
    return json.loads((directory / "seed_0" / "summary.json").read_text())


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "run"
    assert started(directory, data) == 0
    return directory


def test_classes_are_learned_and_measured(trained):
    figures, metrics = summary(trained), read_metrics(trained / "seed_0")
    assert figures["classify/accuracy"] == pytest.approx(1.0)
    # Of the tree that was trained: the output layer that the trunk came with is none of the classifier's.
    newest, _ = newest_intact(trained / "seed_0" / "checkpoints" / "classify")
    assert newest is not None
    assert figures["classify/parameters"] == count_parameters(load_part(newest, "params"))
    assert figures["classify/macro_f1"] == pytest.approx(1.0)
    assert figures["classify/macro_precision"] == figures["classify/macro_recall"] == pytest.approx(1.0)
    assert metrics["classify"]["loss"].values[-1] < 0.2 * metrics["classify"]["loss"].values[0]
    assert metrics["classify/held_out"]["accuracy"].steps.tolist() == [0, 20, 40]
    samples = [json.loads(line) for line in (trained / "seed_0" / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == figures["classify/texts"]
    assert {(sample["prompt"], sample["label"]) for sample in samples} <= set(TEXTS)
    assert all(sample["predicted"] == sample["label"] for sample in samples)
    page = (trained / "report.html").read_text()
    assert "accuracy of the classes" in page
    assert "Calibration on held-out data" in page
    assert f"<td>{samples[0]['prompt']}</td>" in page


def test_transformers_reads_the_classifier_and_names_the_classes(trained, data, tmp_path):
    out = tmp_path / "out"
    assert run.main(["export", str(trained), "--data-root", str(data), "--model", "classifier", "--out", str(out)]) == 0
    theirs, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(out).eval(),
        AutoTokenizer.from_pretrained(out),
    )
    assert theirs.config.id2label == dict(enumerate(KINDS))
    samples = [json.loads(line) for line in (trained / "seed_0" / "samples.jsonl").read_text().splitlines()]
    for sample in samples[:4]:
        with torch.no_grad():
            logits = theirs(**tokenizer(sample["prompt"], return_tensors="pt")).logits
        assert theirs.config.id2label[int(logits.argmax())] == sample["predicted"]
    assert load_pretrained(out).labels == tuple(KINDS)


def test_what_is_no_classifier_or_no_policy_is_said(trained, tmp_path, capsys):
    assert run.main(["export", str(trained), "--out", str(tmp_path / "out")]) == 2
    assert "trains no policy: it has no stage sft, preference or ppo" in capsys.readouterr().err


def test_a_label_that_is_not_listed_is_named_with_its_place(data, tmp_path, capsys):
    assert started(tmp_path / "run", data, classify__labels='["ask", "write"]') == 2
    said = capsys.readouterr().err
    assert "texts.jsonl:2: label 'sum up'; expected one of classify.labels, 'ask', 'write'" in said


@pytest.mark.parametrize("kind", [AutoModelForMaskedLM, AutoModel], ids=["masked", "trunk alone"])
def test_a_pretrained_encoder_is_where_it_starts(data, tmp_path, kind):
    folder = tmp_path / "bert"
    _, settings = BERT
    theirs = random_model(BertConfig(**settings | {"vocab_size": 320}), AutoModelForMaskedLM)
    (theirs if kind is AutoModelForMaskedLM else theirs.bert).save_pretrained(folder)
    tiny = {"classify__optim__steps": 1, "classify__optim__lr": 1e-12, "model__init": folder}
    drop = ("policy.vocab", "policy.width", "policy.layers", "policy.mlp", "policy.max_length")
    settings = [word for name, value in SETTINGS.items() if name not in drop for word in ("--set", f"{name}={value}")]
    settings += [word for name, value in tiny.items() for word in ("--set", f"{name.replace('__', '.')}={value}")]
    given = ["--workdir", str(tmp_path / "run"), "--data-root", str(data)]
    assert run.main(["run", "real/instruction_fields", *given, *settings]) == 0
    experiment = read_experiment(tmp_path / "run")
    export_model(experiment, tmp_path / "run" / "seed_0", tmp_path / "out", data, model="classifier")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").bert.encoder.state_dict()
    for name, weight in theirs.bert.encoder.state_dict().items():
        np.testing.assert_allclose(again[name], weight, atol=1e-6, err_msg=name)


def test_adapters_of_an_encoder_are_merged_when_it_leaves(data, tmp_path):
    assert started(tmp_path / "run", data, lora__rank=2, classify__optim__steps=5) == 0
    experiment = read_experiment(tmp_path / "run")
    assert experiment.lora is not None
    found = export_model(experiment, tmp_path / "run" / "seed_0", tmp_path / "out", data, model="classifier")
    assert (found.stage, found.step) == ("classify", 5)
    ours = load_pretrained(tmp_path / "out")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    tokens = np.arange(4, 20)[None]
    with torch.no_grad():
        assert np.isfinite(theirs(tensor(tokens)).logits.numpy()).all()
    assert ours.config.classes == 3


def test_it_continues_to_the_bit_and_its_update_is_lowered_from_shapes(data, tmp_path):
    changes = SETTINGS | {"checkpoint_every": 3, "classify.optim.steps": 6}
    experiment = apply_overrides(
        find("real/instruction_fields").make("cpu"), [f"{name}={value}" for name, value in changes.items()]
    )
    run_experiment(open_run(experiment, tmp_path / "whole", data_root=data))

    class Killed(Exception):
        pass

    def kill(stage, step):
        if step == 4:
            raise Killed

    with pytest.raises(Killed):
        run_experiment(open_run(experiment, tmp_path / "again", data_root=data, on_step=kill))
    run_experiment(open_run(experiment, tmp_path / "again", data_root=data))
    whole, again = (read_metrics(tmp_path / name)["classify"]["loss"].values for name in ("whole", "again"))
    np.testing.assert_array_equal(whole, again)
    assert lower_updates(experiment, make_mesh(experiment.mesh)).keys() == {"classify"}
    assert jax.tree.leaves(lower_updates(experiment, make_mesh(experiment.mesh))["classify"].args_info)
