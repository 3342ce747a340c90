"""The doctor finds nothing wrong here, and finds what is broken on purpose."""

from __future__ import annotations

import dataclasses
import functools
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from rlhf_jax.doctor import __main__ as doctor
from rlhf_jax.doctor import formulas, gradients, report, rollouts, texts, updates
from rlhf_jax.doctor.report import Check, at_most
from rlhf_jax.losses import ppo as ppo_losses
from rlhf_jax.models import output
from rlhf_jax.rollout import generate, score
from rlhf_jax.train import step

ROOT = Path(__file__).resolve().parents[2]


def test_nothing_is_wrong_here_as_users_have_it_compiled():
    variables = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", "rlhf_jax.doctor"]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " hold, 0 fail, " in done.stdout


def test_no_module_of_checks_is_forgotten():
    folder = Path(doctor.__file__).parent
    modules = {
        path.stem for path in folder.glob("*.py") if "EXAMINATIONS" in path.read_text() and path.stem != "__main__"
    }
    assert modules == {module.__name__.rpartition(".")[2] for module in (formulas, gradients, rollouts, texts, updates)}


def fresh(monkeypatch):
    """Compiled samplers and models of other tests do not hide a fault."""
    monkeypatch.setattr(rollouts, "sampler", functools.cache(rollouts.sampler.__wrapped__))
    monkeypatch.setattr(rollouts, "built", functools.cache(rollouts.built.__wrapped__))
    monkeypatch.setattr(gradients, "measure", functools.partial(gradients.measure))


def temperature_dropped_from_the_recomputation(monkeypatch):
    right = score.compare_policies

    def cold(one, other, rollout, **how):
        return right(one, other, dataclasses.replace(rollout, temperature=jnp.float32(1.0)), **how)

    monkeypatch.setattr(score, "compare_policies", cold)


def temperature_dropped_from_the_output_layer(monkeypatch):
    right = output.token_stats
    monkeypatch.setattr(rollouts, "token_stats", lambda u, h, b, temperature, **how: right(u, h, b, 1.0, **how))


def rewards_of_whole_numbers(monkeypatch):
    right = ppo_losses.token_rewards
    monkeypatch.setattr(score, "token_rewards", lambda scores, *rest, **how: right(jnp.trunc(scores), *rest, **how))


def noise_that_never_changes(monkeypatch):
    right = rollouts.row_keys
    monkeypatch.setattr(rollouts, "row_keys", lambda key, step, prompt, sample: right(key, 0 * step, prompt, sample))


def masks_from_the_pad_id(monkeypatch):
    right = generate.join

    def join(prompts, tokens, logprobs, written, *rest):
        return right(prompts, tokens, logprobs, written & (tokens != 0), *rest)

    monkeypatch.setattr(generate, "join", join)


def means_of_means(monkeypatch):
    right = step.gradients

    def gradients(loss, params, batch, microbatches=1):
        def alike(params, piece):
            value, aux = loss(params, piece)
            return value, dataclasses.replace(aux, weight=jnp.float32(1.0))

        return right(alike, params, batch, microbatches)

    monkeypatch.setattr(step, "gradients", gradients)


def reference_left_out_of_k2(monkeypatch):
    from rlhf_jax.losses import policy

    right = policy.kl_loss
    monkeypatch.setattr(policy, "kl_loss", lambda logp, ref, mask, **how: right(logp, 0 * ref, mask, **how))


def bos_twice(monkeypatch):
    from rlhf_jax.data.tokens import encode

    right = encode.encode_prompt

    def encode_prompt(*args):
        example, tokenizer = right(*args), args[1]
        return dataclasses.replace(example, prompt=(tokenizer.bos, *example.prompt))

    monkeypatch.setattr(encode, "encode_prompt", encode_prompt)


def keys_of_another_prompt(monkeypatch):
    from rlhf_jax.models.groups import Group

    right = Group.own_keys
    monkeypatch.setattr(Group, "own_keys", lambda self, x: jnp.roll(right(self, x), 1, axis=0))


def checksums_not_compared(monkeypatch):
    from rlhf_jax import checkpoint

    monkeypatch.setattr(checkpoint, "faults", lambda *_: [])


@pytest.mark.parametrize(
    ("fault", "examination", "named"),
    [
        (temperature_dropped_from_the_recomputation, rollouts.equal_policies, "sampler's log-probs - trainer's"),
        (temperature_dropped_from_the_output_layer, rollouts.temperatures, "trainer: log p"),
        (rewards_of_whole_numbers, rollouts.equal_policies, "score of 0.7"),
        (noise_that_never_changes, rollouts.noise, "different noise"),
        (masks_from_the_pad_id, rollouts.padding_is_no_token, "their eos"),
        (keys_of_another_prompt, rollouts.shared_prompts, "one reading of the prompt"),
        (means_of_means, updates.however_it_is_split, "SFT, update: 2 microbatches"),
        (reference_left_out_of_k2, gradients.in_the_exact_world, "by k2 in the loss"),
        (bos_twice, texts.of_ours, "one bos and one eos"),
        (checksums_not_compared, updates.damaged_on_disk, "a bit flipped"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_injected_fault_is_named(monkeypatch, fault, examination, named):
    fresh(monkeypatch)
    fault(monkeypatch)
    if examination is updates.however_it_is_split:
        monkeypatch.setattr(updates, "ppo", updates.sft)  # one of the two is enough, and quicker
        monkeypatch.setattr(updates, "meshes", list)
    failed = [check.name for check in report.run(examination) if check.verdict == "fails"]
    assert any(named in name for name in failed), failed


def holds():
    """Something that holds."""
    yield at_most("one", 0.5, 1.0)


def breaks():
    """Something that breaks off."""
    yield at_most("two", 0.5, 1.0)
    raise RuntimeError("no such device\nand more")


def test_an_examination_that_breaks_off_fails_with_what_it_said():
    first, second = report.run(breaks)
    assert (first.name, first.verdict) == ("two", "holds")
    assert second == Check("Something that breaks off", "RuntimeError: no such device", "runs", "fails")


def test_an_examination_without_checks_fails():
    (only,) = report.run(lambda: iter(()))
    assert (only.measured, only.verdict) == ("no checks", "fails")


def test_not_a_number_fails():
    assert at_most("x", float("nan"), 1.0).verdict == "fails"


@pytest.mark.parametrize(("examinations", "code"), [((holds,), 0), ((holds, breaks), 1)])
def test_the_exit_code_says_whether_all_hold(monkeypatch, capsys, examinations, code):
    monkeypatch.setattr(doctor, "of_the_library", lambda: examinations)
    assert doctor.main([]) == code
    out, err = capsys.readouterr()
    assert "one" in out
    assert "jax 0." in out
    assert ("fails: Something that breaks off: RuntimeError: no such device" in err) == bool(code)


def test_a_folder_that_is_not_there_or_holds_no_checkpoint_is_a_mistake_of_the_caller(tmp_path, capsys):
    assert doctor.main(["--model", str(tmp_path / "nothing")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert doctor.main(["--model", str(tmp_path)]) == 2
    assert "has no checkpoint" in capsys.readouterr().err
    (tmp_path / "x.bin").write_bytes(b"12")
    assert doctor.main(["--model", str(tmp_path)]) == 2
    assert "x.bin: not a llama2.c checkpoint" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        doctor.main(["--virtual-devices", "0"])
    assert stopped.value.code == 2


def test_a_real_checkpoint_and_its_tokenizer(data_root, capsys):
    assert doctor.main(["--model", str(data_root / "checkpoints" / "stories260K")]) == 0
    out = capsys.readouterr().out
    assert "stories260K.bin: sampler's log-probs (cached) - trainer's, bfloat16" in out
    assert "tokenizer: of 50 dialogues" in out
