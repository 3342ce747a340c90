"""What a run compiles, and when, and in which order it calls it."""

from __future__ import annotations

import collections
import dataclasses
import logging
import re

import jax
import numpy as np
import pytest

from experiments.smoke import smoke_context, smoke_dapo, smoke_lora, smoke_ppo, smoke_preference, smoke_reward
from rlhf_jax.compiled import Programs, Traced, name_of
from rlhf_jax.config import MeshConfig
from rlhf_jax.loops import rlhf
from rlhf_jax.loops.pipeline import run_experiment
from rlhf_jax.loops.run import open_run
from rlhf_jax.mesh import make_mesh

ITERATIONS = 5
PPO_PROGRAMS = {"laid_out": 1, "read_rollout": 1, "judge_rollout": 1, "generate": 3, "describe_rows": 1}


@pytest.fixture
def told_of_compilations():
    """JAX says what it compiles, in all threads."""
    jax.config.update("jax_log_compiles", True)
    yield
    jax.config.update("jax_log_compiles", False)


@pytest.mark.slow
@pytest.mark.parametrize("make", [smoke_ppo, smoke_dapo])
def test_prompts_and_replies_of_any_length_are_served_by_what_was_compiled_before_the_first_step(
    tmp_path, monkeypatch, caplog, told_of_compilations, make
):
    experiment = make("cpu")
    assert experiment.ppo is not None and experiment.world is not None
    ppo = dataclasses.replace(experiment.ppo, iterations=ITERATIONS, refills=0)
    world = dataclasses.replace(experiment.world, demonstrations=64, prompts=64)
    experiment = dataclasses.replace(experiment, ppo=ppo, world=world, checkpoint_every=1)
    before, lengths, run_stage = [], [], rlhf.run_stage

    def compiled() -> list[str]:
        return [record.getMessage() for record in caplog.records if "Finished XLA compilation" in record.getMessage()]

    def counted(run, stage, state, advance, steps, **how):
        def counting(state, iteration):
            before.append(len(compiled()))
            found = advance(state, iteration)
            segments = np.asarray(found.batch.rollout.batch.segments) != 0
            lengths.append((segments[:, : -ppo.new_tokens].sum(1).tolist(), segments.sum(1).tolist()))
            return found

        return run_stage(run, stage, state, counting, steps, **how)

    monkeypatch.setattr(rlhf, "run_stage", counted)
    with caplog.at_level(logging.WARNING):
        run_experiment(open_run(experiment, tmp_path))
    assert len(before) == ITERATIONS and before[0] > 0
    assert len({tuple(prompts) for prompts, _ in lengths}) == len({tuple(whole) for _, whole in lengths}) == ITERATIONS
    assert min(len(set(prompts)) for prompts, _ in lengths) > 2
    assert before == [before[0]] * ITERATIONS, compiled()[before[0] : before[-1]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "mesh", "names"),
    [
        (smoke_ppo, MeshConfig(), PPO_PROGRAMS),
        (smoke_ppo, MeshConfig(data=2, fsdp=2, tensor=2), PPO_PROGRAMS),
        (smoke_dapo, MeshConfig(data=2), PPO_PROGRAMS | {"laid_out": 2, "generate": 4}),
        (smoke_context, MeshConfig(fsdp=2, tensor=2, context=2), PPO_PROGRAMS | {"laid_out": 3, "generate": 4}),
        (smoke_reward, MeshConfig(data=2, fsdp=2), {"laid_out": 1, "measured": 1}),
        (smoke_lora, MeshConfig(fsdp=2), {"laid_out": 2, "measured": 2, "generate": 3}),
        (smoke_preference, MeshConfig(), {"laid_out": 3, "measured": 2, "completed": 2}),
    ],
    ids=["ppo", "ppo on 8 devices", "dapo", "context", "reward", "lora", "preference"],
)
def test_programs_are_compiled_once_side_by_side_before_the_first_step(
    tmp_path, capsys, caplog, monkeypatch, told_of_compilations, make, mesh, names
):
    experiment = make("cpu")
    world = dataclasses.replace(experiment.world, demonstrations=64, prompts=64)
    monkeypatch.setenv("RLHF_JAX_PROGRESS", "lines")
    with caplog.at_level(logging.WARNING):
        run_experiment(open_run(dataclasses.replace(experiment, world=world, mesh=mesh), tmp_path))
    messages = (
        re.search(r"Finished XLA compilation of jit\((\w+)\)", record.getMessage()) for record in caplog.records
    )
    compiled = collections.Counter(found[1] for found in messages if found)
    assert {name: compiled[name] for name in names} == names
    told = capsys.readouterr().err
    stages = [stage for stage in ("sft", "reward", "preference", "ppo") if getattr(experiment, stage) is not None]
    for stage in stages:
        assert re.search(rf"{stage}: compile  (\d+)/\1  100%", told), told


def test_the_devices_read_a_rollout_while_a_reward_in_python_is_computed(tmp_path, monkeypatch):
    experiment = smoke_ppo("cpu")
    experiment = dataclasses.replace(experiment, ppo=dataclasses.replace(experiment.ppo, iterations=2))
    called, texts = [], rlhf.response_texts

    class Recording(Programs):
        def function(self, make, *configs, **how):
            program = super().function(make, *configs, **how)
            call = type(program).__call__

            class Called(type(program)):
                def __call__(self, *args):
                    called.append(name_of(make(*configs)).rpartition(".")[2])
                    return call(self, *args)

            program.__class__ = Called
            return program

    monkeypatch.setattr(rlhf, "response_texts", lambda *args: called.append("reward") or texts(*args))
    run_experiment(open_run(experiment, tmp_path, Recording(make_mesh(experiment.mesh))))
    iteration = ["generate", "read_rollout", "reward", "judge_rollout"]
    assert called[:8] == iteration * 2


def test_what_cannot_be_compiled_says_so_before_the_first_step(tmp_path, monkeypatch):
    def fails(self):
        raise RuntimeError("no memory for this program")

    monkeypatch.setattr(Traced, "lower", fails)
    with pytest.raises(RuntimeError, match="no memory for this program"):
        run_experiment(open_run(smoke_ppo("cpu"), tmp_path))
    assert not (tmp_path / "metrics.jsonl").exists()
