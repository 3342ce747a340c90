"""Runs that start from a checkpoint of another library, and reward models that leave for one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from families import random_model, tensor
from transformers import AutoModelForSequenceClassification, GPT2Config

from experiments import run
from rlhf_jax.checkpoint import load_part, newest_intact
from rlhf_jax.config import ONE_DEVICE
from rlhf_jax.data.tokens.tokenizer import SentencePieceTokenizer, train_sentencepiece
from rlhf_jax.doctor.subjects import right_padded
from rlhf_jax.loops.pretrained import read_policy
from rlhf_jax.mesh import make_mesh
from rlhf_jax.models import build_model
from rlhf_jax.models.convert.load import load_pretrained
from rlhf_jax.worlds.instruct import InstructWorld

SHORT = (
    "sft.optim.steps=1",
    "sft.optim.rows=8",
    "sft.optim.microbatches=1",
    "sft.optim.warmup=0",
    "sft.optim.lr=1e-12",
    "evaluation.prompts=8",
    "evaluation.rows=8",
    "evaluation.new_tokens=4",
    "world.demonstrations=32",
)


def settings(*assignments: str) -> list[str]:
    return [word for assignment in assignments for word in ("--set", assignment)]


@pytest.fixture(scope="module")
def tokenizer() -> SentencePieceTokenizer:
    return train_sentencepiece(InstructWorld(seed=0).corpus(500), 700)


@pytest.fixture(scope="module")
def gpt2(tokenizer, tmp_path_factory) -> Path:
    """A small GPT-2 of transformers with a tokenizer beside it."""
    folder = tmp_path_factory.mktemp("checkpoints") / "gpt2"
    config = GPT2Config(vocab_size=700, n_embd=24, n_layer=2, n_head=2, n_positions=80, bos_token_id=2, eos_token_id=3)
    random_model(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["model.init", "checkpoint"])
def test_a_run_takes_weights_shape_and_tokenizer_from_a_folder(gpt2, name, tmp_path):
    directory = tmp_path / "run"
    assert run.main(["run", "smoke/sft", "--workdir", str(directory), *settings(f"{name}={gpt2}", *SHORT)]) == 0
    config = json.loads((directory / "config.json").read_text())
    assert (config["checkpoint"], config["text"]["tokenizer"]) == (str(gpt2), "checkpoint")
    shape = config["policy"]
    assert (shape["width"], shape["layers"], shape["position"], shape["vocab"]) == (24, 2, "learned", 700)
    newest, _ = newest_intact(directory / "seed_0" / "checkpoints" / "sft")
    assert newest is not None
    # One update at a vanishing rate: what was saved is what was read.
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6),
        load_part(newest, "params"),
        load_pretrained(gpt2).params,
    )


def test_what_was_asked_for_by_name_stays_and_is_held_against_the_checkpoint(gpt2, tmp_path, capsys):
    asked = settings(f"checkpoint={gpt2}", "policy.width=32", "text.tokenizer=train:700", *SHORT)
    assert run.main(["run", "smoke/sft", "--workdir", str(tmp_path / "run"), *asked]) == 2
    assert "of another shape than policy: width is 24 there, policy.width is 32" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ("/nowhere", "there is no /nowhere; the experiment needs it"),
        ("hf:nobody/nothing", "hf:nobody/nothing is no folder here, and the hub does not give it"),
    ],
)
def test_a_checkpoint_that_is_not_there_is_said_in_one_line(init, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert run.main(["run", "smoke/sft", "--workdir", str(tmp_path / "run"), *settings(f"model.init={init}")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert message in said
    assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_is_said_in_one_line_before_anything_is_written(gpt2, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(gpt2, broken)
    (broken / "config.json").write_text("{}")
    assert run.main(["run", "smoke/sft", "--workdir", str(tmp_path / "run"), *settings(f"model.init={broken}")]) == 2
    assert "config.json: model_type None is not supported; these are: llama" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_tokenizer_beside_a_checkpoint_needs_a_checkpoint(tmp_path, capsys):
    asked = ["run", "smoke/sft", "--workdir", str(tmp_path / "run"), *settings("text.tokenizer=checkpoint")]
    assert run.main(asked) == 2
    assert "text.tokenizer='checkpoint' is the one beside the checkpoint" in capsys.readouterr().err


def test_a_reward_model_leaves_as_a_classifier_of_one_label(tmp_path, capsys):
    directory, out = tmp_path / "run", tmp_path / "out"
    short = ("reward.optim.steps=3", "reward.optim.rows=8", "reward.pairs=16", *SHORT[5:], "policy.width=16")
    assert run.main(["run", "smoke/reward", "--workdir", str(directory), *settings(*short)]) == 0
    assert run.main(["export", str(directory), "--model", "reward", "--out", str(out)]) == 0
    ours, theirs = load_pretrained(out), AutoModelForSequenceClassification.from_pretrained(out).eval()
    assert ours.config.head == "scalar"
    newest, _ = newest_intact(directory / "seed_0" / "checkpoints" / "reward")
    assert newest is not None
    trained = load_part(newest, "params")
    jax.tree.map(np.testing.assert_array_equal, ours.params, trained)
    assert (
        float(np.asarray(trained["score"]["bias"])) == 0 or "rlhf_jax_score_bias" in (out / "config.json").read_text()
    )
    batch = right_padded([12, 5, 9], 12, vocab=ours.config.vocab)
    with torch.no_grad():
        tokens = torch.where(tensor(batch.segments) != 0, 4 + tensor(batch.tokens) % 800, theirs.config.pad_token_id)
        logits = theirs(tokens, attention_mask=(tensor(batch.segments) != 0).long()).logits[:, 0].numpy()
    same = batch.replace(tokens=jax.numpy.asarray(tokens.numpy(), jax.numpy.int32))  # pyright: ignore[reportAttributeAccessIssue]
    scores = build_model(ours.config).scores(ours.params, same)
    np.testing.assert_allclose(scores - ours.params["score"]["bias"], logits, atol=2e-5)
    # It has no output layer, and is no policy.
    again = settings(f"model.init={out}", *SHORT)
    assert run.main(["run", "smoke/sft", "--workdir", str(tmp_path / "again"), *again]) == 2
    assert "a model with head 'scalar'; a run starts from one with an output layer" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def test_adapters_of_a_checkpoint_leave_alone_and_come_in_again(gpt2, tmp_path, capsys):
    directory = tmp_path / "run"
    lora = ("lora.rank=2", 'lora.targets=["attention/o","mlp/*"]', "sft.optim.lr=0.1")
    asked = settings(f"model.init={gpt2}", *SHORT, *lora)
    assert run.main(["run", "smoke/sft", "--workdir", str(directory), *asked]) == 0
    for form in ("peft", "transformers"):
        assert run.main(["export", str(directory), "--format", form, "--out", str(tmp_path / form)]) == 0
    assert f"adapters of {gpt2}" in capsys.readouterr().out
    whole = load_pretrained(tmp_path / "transformers")
    found = read_policy(tmp_path / "peft", whole.config, make_mesh(ONE_DEVICE))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), found, whole.params)
    moved = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), found, load_pretrained(gpt2).params)
    assert max(jax.tree.leaves(moved)) > 1e-3
    # A run can start from them, with the tokenizer of their checkpoint.
    again = settings(f"model.init={tmp_path / 'peft'}", *SHORT)
    assert run.main(["run", "smoke/sft", "--workdir", str(tmp_path / "again"), *again]) == 0


@pytest.mark.parametrize(
    ("init", "message"),
    [(False, "only the policy of an experiment with lora and a checkpoint has adapters"), (True, "stores attention/k")],
)
def test_adapters_that_mean_nothing_alone_are_refused_in_one_line(init, message, gpt2, tmp_path, capsys):
    asked = settings(*SHORT, "lora.rank=2", *([f"model.init={gpt2}"] if init else []))
    assert run.main(["run", "smoke/sft", "--workdir", str(tmp_path / "run"), *asked]) == 0
    capsys.readouterr()
    assert run.main(["export", str(tmp_path / "run"), "--format", "peft", "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ('lora.targets=["attn/q"]', "lora.targets: no kernel matches 'attn/q'; there are attention/k"),
        ("lora.targets=attention/q", r"""expected a list such as ["a", "b"]"""),
        ("policy.vocab=690", "has 700 pieces, policy.vocab is 690"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(setting, message, gpt2, tmp_path, capsys):
    asked = settings(f"model.init={gpt2}", *SHORT, setting)
    if "vocab" in setting:
        asked = settings("text.tokenizer=" + str(gpt2), *SHORT, setting)
    assert run.main(["run", "smoke/sft", "--workdir", str(tmp_path / "run"), *asked]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_weights_that_are_cut_short_are_said_before_anything_is_written(gpt2, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(gpt2, broken)
    content = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(content[: len(content) // 2])
    asked = settings(f"model.init={broken}", *SHORT)
    assert run.main(["run", "smoke/sft", "--workdir", str(tmp_path / "run"), *asked]) == 2
    assert "not a whole safetensors file" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
