"""A policy that leaves a run is the policy that the run ended with."""

from __future__ import annotations

import dataclasses
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from experiments import run
from experiments.registry import find
from rlhf_jax.checkpoint import Checkpoints, load_part
from rlhf_jax.data.tokens.encode import encode_prompt
from rlhf_jax.data.tokens.tokenizer import find_tokenizer
from rlhf_jax.doctor import __main__ as doctor
from rlhf_jax.doctor.subjects import right_padded
from rlhf_jax.loops import pipeline
from rlhf_jax.loops.evaluate import Judge
from rlhf_jax.loops.export import export_model, last_policy, read_experiment
from rlhf_jax.models import build_model
from rlhf_jax.models.convert import find_checkpoint
from rlhf_jax.rollout.replies import make_sampler

TINY = {
    "policy.width": 16,
    "policy.layers": 1,
    "evaluation.prompts": 8,
    "evaluation.rows": 8,
    "evaluation.new_tokens": 4,
    "world.demonstrations": 32,
    "world.prompts": 32,
    "checkpoint_every": 1,
}
SFT = {"sft.optim.steps": 3, "sft.optim.rows": 8}
STAGES: dict[str, dict[str, Any]] = {
    "sft": SFT,
    "preference": {**SFT, "preference.pairs": 16, "preference.optim.steps": 3, "preference.optim.rows": 8},
    "ppo": {"ppo.prompts": 8, "ppo.optim.rows": 8, "ppo.iterations": 3, "ppo.new_tokens": 4, "ppo.ema": 0.5},
}


EXPERIMENTS = {"lora": ("smoke/lora", "preference"), "encoder-decoder": ("smoke/preference", "preference")}
STAGES["lora"] = STAGES["preference"]
STAGES["encoder-decoder"] = {
    **STAGES["preference"],
    "policy.encoder_layers": 2,
    "sft.optim.lr": 0.03,
    "sft.optim.steps": 12,
    "policy.kv_heads": 4,
    "policy.position": "relative",
    "policy.query_scale": 1.0,
    "policy.activation": "relu",
    "policy.output_scale": 0.25,
}


class Finished(NamedTuple):
    directory: Path
    stage: str
    judge: Judge
    params: Any
    prompts: Any
    merged: bool


@pytest.fixture(scope="module", params=STAGES)
def finished(request, tmp_path_factory) -> Finished:
    """A tiny run whose last policy stage is this one, with what its evaluation saw of the policy."""
    name, stage = EXPERIMENTS.get(request.param, (f"smoke/{request.param}", request.param))
    seen = {}
    directory = tmp_path_factory.mktemp("runs") / request.param
    fields = {**TINY, **STAGES[request.param], "seed": 3}
    settings = [word for field, value in fields.items() for word in ("--set", f"{field}={value}")]

    def watched(experiment, policies, prompts):
        seen.update(judge=policies[stage][0], params=policies[stage][1], prompts=prompts)
        return evaluate(experiment, policies, prompts)

    evaluate = pipeline.evaluate
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pipeline, "evaluate", watched)
        assert run.main(["run", name, "--workdir", str(directory), *settings]) == 0
    return Finished(directory, stage, merged=request.param == "lora", **seen)


FORMS = {
    "llama2.c": {"model.bin", "tokenizer.model"},
    "transformers": {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
    },
}


def exported(finished: Finished, out: Path, form: str = "transformers", *options: str) -> Path:
    """The folder that the command line writes."""
    assert run.main(["export", str(finished.directory), "--out", str(out), "--format", form, *options]) == 0
    return out


def error_of(capsys, *arguments: object) -> str:
    """The one line that a command of ours ends with, for a mistake of the caller's."""
    assert run.main(["export", *map(str, arguments)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    return said


@pytest.mark.parametrize("form", FORMS)
def test_the_exported_policy_is_the_one_that_was_evaluated(finished, form, tmp_path, capsys):
    if form == "llama2.c" and finished.judge.run.experiment.policy.kind != "decoder":
        said = error_of(capsys, finished.directory, "--out", tmp_path / "policy", "--format", form)
        assert "encoder_layers=2 (only None)" in said
        return
    out = exported(finished, tmp_path / "policy", form)
    said = capsys.readouterr().out
    assert f"{out}: the policy of {finished.directory / 'seed_3'} after 3 of 3 steps of {finished.stage}" in said
    assert "template 'plain'" in said
    assert {path.name for path in out.iterdir()} == FORMS[form]

    _, config, params = find_checkpoint(out)
    asked = finished.judge.run.experiment.policy
    assert config == dataclasses.replace(asked, logit_chunk=config.logit_chunk)
    # Adapters are merged by another program than in the run.
    close = partial(np.testing.assert_allclose, atol=1e-7 if finished.merged else 0)
    jax.tree.map(close, params, finished.params)

    model, batch = build_model(config), right_padded([9, 4], 9, vocab=config.vocab)
    logits = build_model(asked).logits(finished.params, batch)
    np.testing.assert_allclose(model.logits(params, batch), logits, atol=1e-5 if finished.merged else 0)
    tokenizer, size = find_tokenizer(out), finished.judge.run.experiment.evaluation
    greedy = make_sampler(
        model,
        tokenizer,
        finished.judge.run.programs,
        rows=8,
        prompt_lengths=[48],
        new_tokens=size.new_tokens,
        greedy=True,
    )
    encoded = [encode_prompt(prompt, tokenizer, finished.judge.texts.template) for prompt in finished.prompts]
    replies = greedy.replies(jax.tree.map(jax.numpy.asarray, params), encoded, jax.random.key(0))
    theirs = finished.judge.texts.encode(finished.prompts)
    assert replies == finished.judge.greedy.replies(finished.params, theirs, jax.random.key(1))
    assert len(set(replies)) > 1


def test_transformers_computes_the_exported_policy_and_writes_its_prompts(finished, tmp_path):
    import torch
    from families import their_logits
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    asked, judge = finished.judge.run.experiment.policy, finished.judge
    of_decoder = asked.kind == "decoder"
    out = exported(finished, tmp_path / "policy")
    auto = AutoModelForCausalLM if of_decoder else AutoModelForSeq2SeqLM
    theirs, tokenizer = auto.from_pretrained(out).eval(), AutoTokenizer.from_pretrained(out)
    model, batch = build_model(asked), right_padded([12, 12], 12, prompt=7, vocab=asked.vocab)
    seen = np.asarray(model.decoded(batch).segments) != 0
    ours = np.asarray(model.logits(finished.params, batch))
    np.testing.assert_allclose(ours[seen], their_logits(theirs, batch)[seen], atol=2e-5)
    for prompt, encoded in zip(finished.prompts, judge.texts.encode(finished.prompts), strict=True):
        messages = [{"role": turn.role, "content": turn.text} for turn in prompt.turns]
        chat = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        assert tuple(chat["input_ids"]) == encoded.prompt
    prompt = torch.tensor([judge.texts.encode(finished.prompts[:1])[0].prompt])
    count = judge.run.experiment.evaluation.new_tokens
    before = prompt.shape[1] if of_decoder else 1
    written = theirs.generate(prompt, do_sample=False, max_new_tokens=count)[0, before:]
    greedy = judge.greedy.replies(finished.params, judge.texts.encode(finished.prompts[:1]), jax.random.key(0))
    assert tokenizer.decode(written, skip_special_tokens=True) == greedy[0]


def test_weights_in_bfloat16_are_those_rounded(finished, tmp_path):
    _, _, params = find_checkpoint(exported(finished, tmp_path / "policy", "transformers", "--dtype", "bfloat16"))
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(x, np.asarray(y).astype(jax.numpy.bfloat16).astype(np.float32)),
        params,
        finished.params,
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("finished", ["sft"], indirect=True)
def test_the_doctor_reads_the_exported_folder(finished, form, tmp_path):
    assert doctor.main(["--model", str(exported(finished, tmp_path / "policy", form))]) == 0


def test_a_damaged_checkpoint_is_passed_over_and_left_where_it_is(finished, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(finished.directory, copy)
    (step,) = copy.glob(f"seed_3/checkpoints/{finished.stage}/3")
    (step / "commit_success.txt").unlink()
    before = sorted(copy.rglob("*"))
    experiment, directory = finished.judge.run.experiment, copy / "seed_3"
    with pytest.warns(UserWarning, match=r"3 is not intact: commit_success\.txt missing\. It was left where it is"):
        assert export_model(experiment, directory, tmp_path / "policy").step == 2
    assert sorted(copy.rglob("*")) == before
    shutil.rmtree(step.parent)
    with pytest.raises(FileNotFoundError, match=r"has no intact checkpoint: stage .* of this run has not come to one"):
        export_model(experiment, directory, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("finished", ["sft"], indirect=True)
def test_what_cannot_be_exported_is_said_in_one_line(finished, tmp_path, capsys):
    directory = finished.directory
    assert "there is no config.json in it" in error_of(capsys, tmp_path)
    assert f"{directory} has no seed 7; there are: 3" in error_of(capsys, directory, "--seed", 7)
    (tmp_path / "thesis.tex").touch()
    assert f"{tmp_path} is there already; choose another --out" in error_of(capsys, directory, "--out", tmp_path)

    copy = tmp_path / "run"
    shutil.copytree(directory, copy)
    config = json.loads((copy / "config.json").read_text())

    def configured(*options: str, **changes: Any) -> str:
        (copy / "config.json").write_text(json.dumps({**config, **changes}))
        return error_of(capsys, copy, "--out", tmp_path / "policy", *options)

    layered, larger = ({**config["policy"], **change} for change in ({"norm": "layer"}, {"vocab": 897}))
    llama2c = ("--format", "llama2.c")
    assert "cannot express a model with norm='layer' (only 'rms')" in configured(*llama2c, policy=layered)
    assert "the nearest is llama, which is not norm='layer'" in configured(policy=layered)
    assert "params['tokens']['embedding'] is float32[896, 16]" in configured(*llama2c, policy=larger)
    assert "parameter tokens/embedding is [896, 16]; expected [897, 16]" in configured(policy=larger)
    assert "smoke/sft trains no reward model: it has no stage reward" in configured("--model", "reward")
    assert "smoke/sft trains no policy" in configured(sft=None)
    assert "no field polish" in configured(polish=1)
    (copy / "config.json").write_text(json.dumps({"name": "exact/frontier"}))
    assert "holds a study of algorithms, which trains no model" in error_of(capsys, copy)
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "seed_3" / "tokenizer.model").write_bytes(b"other")
    assert "tokenizer.model is damaged" in error_of(capsys, copy, "--out", tmp_path / "policy")
    shutil.rmtree(copy / "seed_3")
    assert "has no seed at all" in error_of(capsys, copy)
    assert not (tmp_path / "policy").exists()


@pytest.mark.parametrize("finished", ["sft"], indirect=True)
def test_critics_that_stay_behind_are_named(finished, tmp_path):
    experiment = dataclasses.replace(
        read_experiment(finished.directory), ilql=find("smoke/ilql").experiment("cpu").ilql
    )
    with pytest.warns(UserWarning, match="critics of the ilql stage are left out"):
        found = export_model(experiment, finished.directory / "seed_3", tmp_path / "out")
    assert found.stage == "sft" and (tmp_path / "out" / "model.safetensors").is_file()


def test_the_last_stage_that_trains_the_policy_is_the_one():
    sft, preference, ppo = (find(f"smoke/{name}").experiment("cpu") for name in ("sft", "preference", "ppo"))
    assert last_policy(sft) == ("sft", 30, ("params",))
    assert last_policy(preference) == ("preference", 20, ("params",))
    assert last_policy(ppo) == ("ppo", 4, ("policy", "params"))
    assert last_policy(dataclasses.replace(ppo, sft=sft.sft, ppo=dataclasses.replace(ppo.ppo, ema=0.9))) == (
        "ppo",
        4,
        ("policy", "ema"),
    )
    with pytest.raises(ValueError, match="smoke/reward trains no policy: it has no stage sft, preference or ppo"):
        last_policy(find("smoke/reward").experiment("cpu"))


@pytest.mark.parametrize("finished", ["lora"], indirect=True)
def test_adapters_are_not_put_on_an_older_checkpoint_of_the_stage_before(finished, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(finished.directory, copy)
    (step,) = copy.glob("seed_3/checkpoints/sft/3")
    (step / "commit_success.txt").unlink()
    with (
        pytest.warns(UserWarning, match="not intact"),
        pytest.raises(ValueError, match="of step 2, but preference began"),
    ):
        export_model(finished.judge.run.experiment, copy / "seed_3", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("finished", ["sft"], indirect=True)
def test_a_type_that_the_format_has_not_is_refused(finished, tmp_path, capsys):
    for form in ("llama2.c", "peft"):
        asked = (finished.directory, "--format", form, "--dtype", "bfloat16", "--out", tmp_path / "out")
        assert f"the format {form} is written in float32, not bfloat16" in error_of(capsys, *asked)


@pytest.mark.parametrize("finished", ["sft"], indirect=True)
def test_the_best_checkpoint_is_the_one_of_the_lowest_held_out_loss(finished, tmp_path, capsys):
    broken = tmp_path / "run"
    shutil.copytree(finished.directory, broken)
    folder = broken / "seed_3" / "checkpoints" / "sft"
    assert "no checkpoint has a held-out loss" in error_of(
        capsys, remade(folder, [None, None]), "--take", "best", "--out", tmp_path / "none"
    )
    remade(folder, [1.0, 2.0, 3.0])
    best, newest = (
        exported(Finished(broken, *finished[1:]), tmp_path / take, "llama2.c", "--take", take)
        for take in ("best", "newest")
    )
    said = capsys.readouterr().out
    assert "after 1 of 3 steps" in said and "after 3 of 3 steps" in said
    assert (best / "model.bin").read_bytes() != (newest / "model.bin").read_bytes()
    file = max((path for path in (folder / "1").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1])
    assert "sft/1 is not intact" in error_of(capsys, broken, "--take", "best", "--out", tmp_path / "damaged")


def remade(folder: Path, losses: list[float | None]) -> Path:
    """The run whose checkpoints of a stage are the newest one, moved on by a step each, with these held-out losses."""
    state = load_part(folder / max(path.name for path in folder.iterdir()))
    shutil.rmtree(folder)
    with Checkpoints(folder) as checkpoints:
        for step, loss in enumerate(losses, start=1):
            checkpoints.save(
                step, jax.tree.map(lambda x, step=step: np.asarray(x + x.dtype.type(step)), state), held_out=loss
            )
    return folder.parents[2]
