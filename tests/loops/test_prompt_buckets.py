"""Prompts in batches of several lengths: less padding, and nothing else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from experiments.smoke import smoke_dapo, smoke_ppo
from rlhf_jax.loops import rlhf
from rlhf_jax.loops.pipeline import run_experiment
from rlhf_jax.loops.run import open_run
from rlhf_jax.report.metrics import read_metrics


def small(make):
    """Few prompts in a batch, which so differ in their longest."""
    made = make("cpu")
    optim = dataclasses.replace(made.ppo.optim, rows=2 * made.ppo.samples, microbatches=1)
    changes = {"prompts": 2, "iterations": 8, "optim": optim, "new_tokens": 8}
    if made.ppo.overlong_cache is not None:
        changes["overlong_cache"] = 4
    return dataclasses.replace(
        made,
        ppo=dataclasses.replace(made.ppo, **changes),
        policy=dataclasses.replace(made.policy, width=16, layers=1, mlp=32),
        world=dataclasses.replace(made.world, demonstrations=64, prompts=64),
        evaluation=dataclasses.replace(made.evaluation, prompts=8, rows=2, new_tokens=8),
    )


@pytest.mark.slow
@pytest.mark.parametrize("make", [smoke_ppo, smoke_dapo])
def test_a_run_in_buckets_learns_what_it_learns_without(tmp_path, monkeypatch, make):
    made, run_stage, columns = small(make), rlhf.run_stage, []

    def seen(run, stage, state, advance, steps, **how):
        def looking(state, iteration):
            found = advance(state, iteration)
            columns.append(found.batch.rollout.batch.tokens.shape[1] - made.ppo.new_tokens)
            return found

        return run_stage(run, stage, state, looking, steps, **how)

    monkeypatch.setattr(rlhf, "run_stage", seen)
    whole = dataclasses.replace(made, text=dataclasses.replace(made.text, prompt_buckets=()))
    longest = made.text.prompt_length
    cut = dataclasses.replace(made, text=dataclasses.replace(made.text, prompt_buckets=(12, 16, 20)))
    alone, bucketed = (run_experiment(open_run(e, tmp_path / name)) for name, e in (("whole", whole), ("cut", cut)))
    assert columns[:8] == [longest] * 8
    assert len(set(columns[8:])) > 1 and set(columns[8:]) <= {12, 16, 20, longest}
    without, within = (read_metrics(tmp_path / name)["ppo"] for name in ("whole", "cut"))
    assert without.keys() == within.keys()
    for metric, series in without.items():
        if metric != "sampler_gap":
            np.testing.assert_allclose(within[metric].values, series.values, rtol=1e-3, atol=1e-4, err_msg=metric)
    for name, figure in alone.figures.items():
        assert "second" in name or bucketed.figures[name] == pytest.approx(figure, rel=1e-3, abs=1e-4), name


def test_buckets_that_cannot_be_are_refused():
    made = smoke_ppo("cpu")
    for bucket in (0, made.text.prompt_length):
        with pytest.raises(ValueError, match=r"text.prompt_buckets=.* must lie between 0 and prompt_length=48"):
            dataclasses.replace(made.text, prompt_buckets=(bucket,))
    text = dataclasses.replace(made.text, prompt_buckets=(13,))
    with pytest.raises(ValueError, match=r"text.prompt_buckets=13 \+ ppo.new_tokens=21 does not split over mesh"):
        dataclasses.replace(made, text=text, mesh=dataclasses.replace(made.mesh, context=2))
