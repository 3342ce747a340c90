"""The benchmarks measure what they say: every workload runs, and its operations are counted right."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.dense import as_written, in_rows, parts
from benchmarks.gpu import KINDS
from benchmarks.run import measure, shares
from benchmarks.workloads import SIZES, WORKLOADS
from benchmarks.workloads.common import decode_bytes, forward_flops, lengths, token_batch, weights
from rlhf_jax.models import build_model
from rlhf_jax.plan.flops import matmul_flops

ROOT = Path(__file__).resolve().parents[1]
TINY = dataclasses.replace(SIZES["S"], vocab=64, width=16, layers=1, heads=2, kv_heads=1, mlp=32)


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKLOADS)
def test_every_workload_does_a_step_and_can_do_another(name):
    workload = WORKLOADS[name](TINY)
    values = workload.values
    for _ in range(2):
        for run in workload.phases.values():
            values = run(values)
    assert all(
        np.isfinite(leaf).all() for leaf in jax.tree.leaves(values["state"] if "state" in values else values["params"])
    )
    assert workload.amount > 0 < workload.flops


@pytest.mark.parametrize("size", SIZES)
def test_operations_of_a_forward_pass_are_those_of_its_program_with_half_of_attention(size):
    config = SIZES[size]
    model = build_model(config)
    params = jax.eval_shape(model.init, jax.random.key(0))
    traced = jax.make_jaxpr(model.logits)(params, jax.eval_shape(lambda: token_batch(config, 2, 32)))
    attention = 4 * config.layers * config.heads * config.head_size * 2 * 32**2
    assert forward_flops(config, [32, 32]) == matmul_flops(traced) - attention / 2
    hidden = jax.make_jaxpr(model.hidden)(params, jax.eval_shape(lambda: token_batch(config, 2, 32)))
    output = matmul_flops(traced) - matmul_flops(hidden)
    assert forward_flops(config, [32, 32], [8, 24]) == matmul_flops(traced) - attention / 2 - output / 2


def test_decoding_reads_all_weights_at_each_turn_and_of_the_cache_what_is_there():
    column = 2 * 4 * (TINY.head_size * TINY.kv_heads) * 3  # keys and values, float32, of three rows
    assert decode_bytes(TINY, 3, 5, 2) == 2 * 4 * weights(TINY) + column * (5 + 6)
    assert decode_bytes(TINY, 3, 5, 2, 3) == 2 * 4 * weights(TINY) + column * (5 / 3 + 5 / 3 + 1)


def test_the_parts_of_a_product_are_its_gradients_in_either_form():
    draw = np.random.default_rng(0)
    x, w, dy = (draw.normal(size=shape).astype(np.float32) for shape in ((2, 3, 4), (4, 5), (2, 3, 5)))
    expected = {"forward": x @ w, "inputs": dy @ w.T, "weights": np.einsum("bti,bto->io", x, dy)}
    for form in (in_rows, as_written):
        for name, part in parts(form).items():
            np.testing.assert_allclose(part(x, w, dy), expected[name], atol=1e-5)


def test_lengths_have_the_mean_and_the_cap_asked_for():
    drawn = lengths(20_000, 40, 128)
    assert drawn.min() >= 1 and drawn.max() == 128
    assert 36 < drawn.mean() < 40  # what lies beyond the cap is cut


def test_shares_are_of_what_the_machine_can_do():
    measured = {"step_seconds": {"median": 2.0}, "flops": 3e9, "bytes": 0}
    limits = {"float32_flops": 6e9, "read_bytes": 4e9}
    assert shares(measured, limits) == {"of_matmul_rate": 0.25}
    assert shares(measured, limits | {"bfloat16_flops": 12e9}) == {"of_matmul_rate": 0.125}
    # Decoding is a part of the step, and what is read before it a part of that.
    measured |= {"bytes": 1e9, "phases": {"rollout": {"median": 1.5}}, "before_decoding": {"median": 1.0}}
    assert shares(measured, limits) == {"of_matmul_rate": 0.25, "of_read_rate": 0.5, "of_both": 0.375}
    measured["before_decoding"] = {"median": 1.5}  # nothing that can be measured is left
    assert "of_read_rate" not in shares(measured, limits)


@pytest.mark.slow
def test_what_is_for_gpus_runs_small_anywhere(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--small", "--steps", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    limits, *measured = map(json.loads, done.stdout.splitlines())
    assert limits["limits"]["float32_flops"] > 0
    assert [line["workload"] for line in measured] == list(KINDS)
    assert all(line["rate"] > 0 and 0 < line["of_matmul_rate"] < 1 for line in measured)


@pytest.mark.slow
def test_a_profile_tells_the_operations_of_a_step(tmp_path):
    found = measure(lambda: WORKLOADS["sft"](TINY), {"workload": "sft", "size": "tiny"}, 1, time.time(), tmp_path)
    assert found["workload"] == "sft"
    for counted in (found["top_operations"], found["top_kinds"]):
        assert counted and min(counted.values()) >= 0
    assert not any(name[-1].isdigit() for name in found["top_kinds"])
    assert list((tmp_path / "sft-tiny").rglob("*.xplane.pb"))
