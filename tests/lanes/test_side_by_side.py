"""Every number of every stage may be a lane's own: runs side by side learn what each learns alone."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from experiments.registry import find
from experiments.sweep.cells import STAGES, shape_of
from rlhf_jax.config import Experiment
from rlhf_jax.lanes.together import run_lanes
from rlhf_jax.loops.pipeline import run_experiment
from rlhf_jax.loops.run import open_run
from rlhf_jax.mesh import make_mesh
from rlhf_jax.overrides import to_dict
from rlhf_jax.report.metrics import read_metrics

NAMES = ("smoke/ppo", "smoke/ppo_max", "smoke/dapo", "smoke/preference", "smoke/kto", "smoke/ilql", "smoke/reward")
ROUNDING = (
    "sampler_gap",
    "accuracy",
)  # the one is nothing else; of the other it decides where policy and reference are the same
DATA = ("data", "ptx_data")


def tiny(name: str) -> Experiment:
    made = find(name).experiment("cpu")
    changes: dict[str, Any] = {}
    for stage in STAGES:
        part = getattr(made, stage)
        if part is None:
            continue
        if stage == "ppo":
            part = dataclasses.replace(part, iterations=3, new_tokens=4)
            if part.overlong_cache is not None:
                part = dataclasses.replace(part, overlong_cache=2)
        else:
            steps = dataclasses.replace(part.optim, rows=8, steps=4, microbatches=1, warmup=1)
            if stage == "reward":
                # What all scores are shifted by, a comparison cannot see: of the rounding of its gradient Adam is not to make steps.
                steps = dataclasses.replace(steps, eps=1e-4)
            part = dataclasses.replace(part, optim=steps)
        changes[stage] = part
    return dataclasses.replace(
        made,
        policy=dataclasses.replace(made.policy, width=16, layers=1, mlp=32),
        evaluation=dataclasses.replace(made.evaluation, prompts=16, rows=16, new_tokens=4),
        world=dataclasses.replace(made.world, demonstrations=64, prompts=64),
        **changes,
    )


def nudged(config: Any, changed: list[str], path: str = "") -> Any:
    """The config with every number of its stages a tenth less, where that is allowed; `changed` gets their names."""
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{path}{field.name}"
        if (path == "" and field.name not in STAGES) or field.name in DATA:
            continue
        if dataclasses.is_dataclass(value):
            other = nudged(value, changed, f"{name}.")
        elif isinstance(value, float) and value:
            other = 0.9 * value
        else:
            continue
        try:
            config = dataclasses.replace(config, **{field.name: other})
        except ValueError:  # two that go together
            continue
        changed += [name] if isinstance(value, float) else []
    return config


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_runs_with_all_numbers_of_their_own_are_side_by_side_what_they_are_alone(name, tmp_path):
    one, changed = tiny(name), []
    other = dataclasses.replace(nudged(one, changed), seed=1)
    assert len(changed) >= 5 and shape_of(one) == shape_of(other)
    runs = {"one": one, "other": other}

    def work(label: str):
        return lambda programs: run_experiment(open_run(runs[label], tmp_path / "lanes" / label, programs))

    found = run_lanes([work(label) for label in runs], [make_mesh(one.mesh)])
    for label, outcome in zip(runs, found, strict=True):
        if isinstance(outcome, BaseException):
            raise outcome
        alone = run_experiment(open_run(runs[label], tmp_path / "alone" / label))
        assert outcome.figures.keys() == alone.figures.keys()
        both = [read_metrics(tmp_path / place / label) for place in ("lanes", "alone")]
        assert both[0].keys() == both[1].keys()
        for stage, metrics in both[1].items():
            for metric, series in metrics.items():
                if metric in ROUNDING:
                    continue
                mine = both[0][stage][metric].values
                np.testing.assert_allclose(mine, series.values, rtol=2e-4, atol=2e-5, err_msg=f"{stage} {metric}")
    first, second = (json.dumps(to_dict(outcome.figures)) for outcome in found)  # pyright: ignore[reportAttributeAccessIssue]
    assert first != second


@pytest.mark.slow
def test_fifty_iterations_of_ppo_as_a_lane_are_those_alone_to_the_fifth_digit(tmp_path):
    made = find("smoke/ppo").experiment("cpu")
    made = dataclasses.replace(
        tiny("smoke/ppo"),
        ppo=dataclasses.replace(made.ppo, iterations=50, prompts=8, new_tokens=8),
        policy=dataclasses.replace(made.policy, layers=1),
    )
    seeds = [dataclasses.replace(made, seed=seed) for seed in range(3)]

    def work(run: Experiment):
        return lambda programs: run_experiment(open_run(run, tmp_path / f"lanes_{run.seed}", programs))

    for outcome in run_lanes([work(run) for run in seeds], [make_mesh(made.mesh)]):
        if isinstance(outcome, BaseException):
            raise outcome
    run_experiment(open_run(seeds[1], tmp_path / "alone"))
    mine, alone = (read_metrics(tmp_path / place)["ppo"] for place in ("lanes_1", "alone"))
    assert len(alone["kl_sequence"].values) == 50 and max(alone["kl_sequence"].values) > 0.01
    for metric, series in alone.items():
        if metric not in ROUNDING:
            np.testing.assert_allclose(mine[metric].values, series.values, rtol=1e-5, atol=1e-5, err_msg=metric)


def test_numbers_of_anything_but_stages_and_all_else_make_other_shapes():
    made = find("smoke/ppo").experiment("cpu")
    same = dataclasses.replace(made, seed=3, ppo=dataclasses.replace(made.ppo, clip=0.3))
    assert shape_of(made) == shape_of(same)
    others = [
        dataclasses.replace(made, policy=dataclasses.replace(made.policy, norm_eps=1e-3)),
        dataclasses.replace(made, world=dataclasses.replace(made.world, flawed=0.1)),
        dataclasses.replace(made, ppo=dataclasses.replace(made.ppo, epochs=3)),
        dataclasses.replace(made, ppo=dataclasses.replace(made.ppo, kl_target=None)),
        dataclasses.replace(made, mesh=dataclasses.replace(made.mesh, data=2)),
    ]
    assert len({shape_of(config) for config in [made, *others]}) == 6
    split = [dataclasses.replace(c, mesh=dataclasses.replace(c.mesh, data=2)) for c in (made, same)]
    assert shape_of(split[0]) != shape_of(split[1]), "on several devices nothing is shared"
