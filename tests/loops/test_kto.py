"""KTO as an objective of the preference stage: one z0 for the whole batch, however it is split, measured and read."""

from __future__ import annotations

import dataclasses
import json
from functools import partial

import jax
import numpy as np
import pytest
from builders import LLAMA, assert_trees_close, built, lively, nearby

from experiments.smoke import smoke_kto
from rlhf_jax.compiled import compile_function, compile_step
from rlhf_jax.config import MeshConfig, Mixture, Optim, Preference
from rlhf_jax.data.batching import batches
from rlhf_jax.data.batching.unpaired import pad_replies, reply_batches
from rlhf_jax.data.tokens.encode import Encoded, EncodedPair
from rlhf_jax.loops.pipeline import run_experiment
from rlhf_jax.loops.preference import completed, held_out_measure, make_preference_step
from rlhf_jax.loops.run import open_run
from rlhf_jax.losses.preference import kto_baseline
from rlhf_jax.mesh import make_mesh
from rlhf_jax.plan.programs import lower_updates
from rlhf_jax.report.metrics import read_metrics
from rlhf_jax.sharding import place, place_batch
from rlhf_jax.train import init_state
from rlhf_jax.train.optimizer import make_optimizer

ALONE, EIGHT = MeshConfig(), MeshConfig(data=2, fsdp=2, tensor=2)
MODEL, LENGTH, ROWS = built(LLAMA), 12, 16
OPTIM = Optim(lr=0.02, rows=ROWS, steps=10, eps=1e-2)
KTO = Preference(data=None, pairs=16, objective="kto", beta=0.5, optim=OPTIM)


def pairs(count: int) -> list[EncodedPair]:
    """Pairs of replies of one to seven tokens to prompts of two."""
    noise = np.random.default_rng(0)

    def some(tokens: int) -> tuple[int, ...]:
        return tuple(noise.integers(0, LLAMA.vocab, tokens).tolist())

    prompts, sizes = [some(2) for _ in range(count)], noise.integers(1, 8, (count, 2))
    return [
        EncodedPair(*(Encoded(prompt, some(int(size))) for size in both), weight=1 + n % 3)
        for n, (prompt, both) in enumerate(zip(prompts, sizes, strict=True))
    ]


def two_updates(mesh_config: MeshConfig, microbatches: int):
    """(state, metrics of the second, z0 of the second) after two updates away from a reference nearby."""
    mesh = make_mesh(mesh_config)
    optim = dataclasses.replace(OPTIM, microbatches=microbatches)
    _, update = make_preference_step(MODEL, dataclasses.replace(KTO, optim=optim))
    step, complete = compile_step(update, mesh), compile_function(partial(completed, model=MODEL), mesh)
    state, reference = place(init_state(nearby(), make_optimizer(optim)), mesh), place(lively(LLAMA), mesh)
    given = reply_batches(batches.Mixture(((pairs(12), 1.0),)), ROWS, LENGTH, 0, seed=0)
    for number in (0, 1):
        batch = complete(state.params, reference, place_batch(given[number], mesh))
        state, metrics = step(state, batch)
    return state, metrics, batch.baseline


@pytest.fixture(scope="module")
def whole():
    return two_updates(ALONE, 1)


@pytest.mark.parametrize(("mesh", "microbatches"), [(ALONE, 2), (ALONE, 4), (EIGHT, 1), (EIGHT, 4)])
def test_microbatches_and_devices_share_one_z0_and_give_the_update_of_the_whole_batch(whole, mesh, microbatches):
    found = two_updates(mesh, microbatches)
    assert_trees_close(found, whole, atol=1e-5, rtol=1e-5)
    assert float(whole[2]) > 0.1, "z0 is 0, which any split would give"


def test_the_baseline_is_that_of_all_rows_under_the_policy_of_the_step():
    replies = jax.tree.map(jax.numpy.asarray, pad_replies(pairs(8), LENGTH, 0, seed=0))
    found = completed(lively(LLAMA), nearby(), replies, model=MODEL)
    expected, _ = kto_baseline(lively(LLAMA), nearby(), replies, logprobs=MODEL.logprobs)
    np.testing.assert_allclose(found.baseline, expected, rtol=1e-6)
    start = completed(nearby(), nearby(), replies, model=MODEL)
    np.testing.assert_allclose(start.baseline, 0.0, atol=1e-6)


def test_the_held_out_loss_does_not_depend_on_the_rows_of_an_evaluation(tmp_path):
    config = dataclasses.replace(smoke_kto("cpu"), preference=KTO)
    found = []
    for rows in (4, 32, 24):  # a half-filled batch at the end of the last
        size = dataclasses.replace(config.evaluation, rows=rows)
        run = open_run(dataclasses.replace(config, evaluation=size), tmp_path)
        found.append(held_out_measure(run, MODEL, pairs(16), LENGTH, 0)((nearby(), lively(LLAMA))))
    assert found[0]["baseline"] > 0.1
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-4, abs=1e-5)


def tiny(preference: Preference, **changes):
    config = smoke_kto("cpu")
    return dataclasses.replace(
        config,
        sft=None,
        policy=dataclasses.replace(config.policy, width=16, layers=1),
        evaluation=dataclasses.replace(config.evaluation, prompts=8, rows=8, new_tokens=4),
        preference=preference,
        **changes,
    )


def test_labelled_replies_are_read_from_a_file(tmp_path):
    rows = [
        {"prompt": f"How was the {noun} {n}?", "completion": "good" if n % 3 else "bad", "label": bool(n % 3)}
        for noun in ("film", "book")
        for n in range(24)
    ]
    (tmp_path / "replies.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = Mixture((("unpaired:replies.jsonl", 1.0),), held_out=0.3)
    stage = dataclasses.replace(KTO, data=data, pairs=None, optim=dataclasses.replace(OPTIM, lr=1e-2, steps=6))
    run = open_run(tiny(stage, world=None, prompts=data), tmp_path / "run", data_root=tmp_path)
    outcome = run_experiment(run)
    metrics = read_metrics(run.directory)
    losses = metrics["preference/held_out"]["loss"].values
    assert losses[0] == pytest.approx(0.5, abs=1e-6) and losses[-1] < 0.45
    assert metrics["preference/held_out"]["accuracy"].values[-1] == 1.0
    assert outcome.figures["preference/rejected_rows"] == 0
    with pytest.raises(ValueError, match="records of kind LabelledReply; this stage reads Comparison"):
        other = dataclasses.replace(stage, objective="dpo")
        run_experiment(open_run(tiny(other, world=None), tmp_path / "dpo", data_root=tmp_path))


def test_the_update_lowers_from_shapes_alone():
    config = dataclasses.replace(smoke_kto("cpu"), mesh=EIGHT)
    lowered = lower_updates(config, make_mesh(EIGHT))
    assert set(lowered) == {"sft", "preference"}
    assert "mhlo.num_partitions = 8" in lowered["preference"].as_text()
