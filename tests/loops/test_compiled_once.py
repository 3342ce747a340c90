"""What is compiled in a run of PPO, and when."""

from __future__ import annotations

import dataclasses
import logging

import jax
import numpy as np
import pytest

from experiments.smoke import smoke_dapo, smoke_ppo
from rlhf_jax.loops import rlhf
from rlhf_jax.loops.pipeline import run_experiment
from rlhf_jax.loops.run import open_run

ITERATIONS = 5


@pytest.mark.slow
@pytest.mark.parametrize("make", [smoke_ppo, smoke_dapo])
def test_prompts_and_replies_of_any_length_are_served_by_what_the_first_iterations_have_compiled(
    tmp_path, monkeypatch, caplog, make
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
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        run_experiment(open_run(experiment, tmp_path))
    assert len(before) == ITERATIONS and before[0] < before[1]
    assert len({tuple(prompts) for prompts, _ in lengths}) == len({tuple(whole) for _, whole in lengths}) == ITERATIONS
    assert min(len(set(prompts)) for prompts, _ in lengths) > 2
    assert before[2:] == [before[2]] * (ITERATIONS - 2), compiled()[before[2] : before[-1]]
