"""Experiments for TPUs fit the slices that they are laid out for, by the TPU's own compiler.

Of the three smallest the SFT update is compiled whenever the tests run; every other program, which takes a minute or more each, where
RLHF_JAX_PLANS is set (`make plans`).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.registry import entries
from rlhf_jax.plan.chips import parse_topology

ROOT = Path(__file__).resolve().parents[2]
PLANNED = {name: entry.topology for name, entry in entries().items() if entry.topology is not None}
PROGRAMS = ("sft", "reward", "ppo", "ppo/responses", "ppo/reward", "ppo/scoring")


def size(name: str) -> tuple[int, int]:
    """Chips, and about how many weights the policy has."""
    policy = entries()[name].experiment("tpu").policy
    return parse_topology(PLANNED[name]).chips, policy.layers * policy.width**2


SMALLEST = sorted(PLANNED, key=size)[:3]
REST = [(name, program) for name in PLANNED for program in PROGRAMS if (program, name in SMALLEST) != ("sft", True)]


def fits(environment: dict[str, str], name: str, program: str, out: Path) -> None:
    command = [sys.executable, "-m", "rlhf_jax.plan", name, "--only", program, "--json", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    told = json.loads(out.read_text())
    (cost,) = told["programs"]
    assert told["fits"] and cost["traffic"] > 0, "it was compiled"
    assert (cost["program"], cost["topology"]) == (program, PLANNED[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_the_smallest_experiments_fit_the_slice_that_they_are_laid_out_for(with_compiler, tmp_path, name):
    fits(with_compiler, name, "sft", tmp_path / "plan.json")


@pytest.mark.slow
@pytest.mark.skipif("RLHF_JAX_PLANS" not in os.environ, reason="half an hour of compiling; `make plans` does it")
@pytest.mark.parametrize(("name", "program"), REST)
def test_every_program_fits_the_slice_that_its_experiment_is_laid_out_for(with_compiler, tmp_path, name, program):
    fits(with_compiler, name, program, tmp_path / "plan.json")
