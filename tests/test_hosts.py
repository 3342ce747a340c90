"""Several processes as one run: what it computes, what it leaves, and how it ends when one of them does."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import hosts
import kills
import numpy as np
import pytest

from rlhf_jax.loops.preemption import PREEMPTED
from rlhf_jax.report.metrics import read_metrics

pytestmark = pytest.mark.slow

STEPS = 24  # so many that a signal comes before the last of them
SMALL = {
    "mesh.data": 2,
    "mesh.fsdp": 4,
    "policy.layers": 1,
    "evaluation.prompts": 8,
    "evaluation.rows": 8,
    "checkpoint_every": 3,
}
# Adam divides by what it has seen so far, and makes as much of a gradient that is rounding alone as of any other; eps keeps it from that.
STAGE = {
    "smoke/sft": {"sft.optim.steps": STEPS, "sft.eval_every": 8},
    "smoke/reward": {"reward.optim.steps": 6, "reward.pairs": 32, "reward.optim.eps": 1e-4, "waiting": "host"},
    "smoke/ppo": {"ppo.optim.eps": 1e-4},
    "smoke/dapo": {"ppo.optim.eps": 1e-4},
}


def settings(name: str, **other) -> list[str]:
    """Overrides for a run that is small, on eight devices."""
    return [
        part for field, value in {**SMALL, **STAGE[name], **other}.items() for part in ("--set", f"{field}={value}")
    ]


def finished(count: int, name: str, directory: Path) -> Path:
    """The run, taken to its end by so many processes."""
    ended = hosts.run(count, name, directory, *settings(name)).wait()
    assert [process.code for process in ended] == [0] * count, [process.said[-2000:] for process in ended]
    assert ["report:" in process.told for process in ended] == [True] + [False] * (count - 1)
    return directory


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture(scope="module")
def sft_of_two(folder) -> Path:
    return finished(2, "smoke/sft", folder / "sft-2")


def assert_close(one: Path, other: Path) -> None:
    """Two runs are the same but for rounding: sums over devices are in another order where these are on several hosts."""
    mine, theirs = (read_metrics(run / "seed_0") for run in (one, other))
    assert mine.keys() == theirs.keys()
    for stage, metrics in mine.items():
        assert metrics.keys() == theirs[stage].keys()
        for name, series in metrics.items():
            np.testing.assert_array_equal(series.steps, theirs[stage][name].steps)
            np.testing.assert_allclose(series.values, theirs[stage][name].values, rtol=1e-4, atol=1e-5, err_msg=name)
    left, right = (kills.arrays(run / "seed_0") for run in (one, other))
    assert left.keys() == right.keys()
    for name, array in left.items():
        np.testing.assert_allclose(array, right[name], rtol=1e-3, atol=1e-5, err_msg=name)
    samples = [(run / "seed_0" / "samples.jsonl").read_text() for run in (one, other)]
    assert samples[0] == samples[1]


def test_sft_of_two_processes_is_that_of_one(folder, sft_of_two):
    alone = finished(1, "smoke/sft", folder / "sft-1")
    assert_close(alone, sft_of_two)
    tokens = [read_metrics(run / "seed_0")["sft"]["real_tokens"].values for run in (alone, sft_of_two)]
    np.testing.assert_array_equal(tokens[0], tokens[1])
    files = [sorted(path.relative_to(run).as_posix() for path in run.rglob("*.json*")) for run in (alone, sft_of_two)]
    assert files[0] == files[1]
    assert json.loads((sft_of_two / "environment.json").read_text())["jax"]["processes"] == 2


@pytest.mark.parametrize("name", ["smoke/reward", "smoke/ppo", "smoke/dapo"])
def test_reward_model_and_ppo_of_two_processes_are_those_of_one(folder, name):
    stage = name.partition("/")[2]
    assert_close(finished(1, name, folder / f"{stage}-1"), finished(2, name, folder / f"{stage}-2"))


def steps_saved(directory: Path) -> set[int]:
    return {int(path.parent.name) for path in directory.glob("seed_0/checkpoints/sft/*/checksums.json")}


def ended_while_it_trains(count: int, directory: Path, which: int, number: int) -> list[hosts.Ended]:
    """How the processes end of which one gets a signal, once they have saved a step."""
    before = steps_saved(directory)
    several = hosts.run(count, "smoke/sft", directory, *settings("smoke/sft"))
    while not steps_saved(directory) - before:
        assert all(process.poll() is None for process in several.running), several.wait()
        time.sleep(0.01)
    several.running[which].send_signal(number)
    began = time.monotonic()
    ended = several.wait()
    assert time.monotonic() - began < hosts.HEARTBEAT + 15  # in which the others end, and Python with them
    return ended


def test_a_process_that_is_killed_ends_the_other_and_both_go_on_to_the_bit(folder, sft_of_two):
    directory = folder / "killed"
    ended = ended_while_it_trains(2, directory, 1, signal.SIGKILL)
    assert ended[1].code == -signal.SIGKILL
    assert "a process that is lost ends them all within 10 s, and the run goes on with --resume" in ended[0].said
    # By ourselves, where the operation of both fails at once; by JAX, which hears no heartbeat; on CPUs also by Gloo, out of step.
    words = {
        PREEMPTED: ("another process has ended",),
        -signal.SIGABRT: ("another task died", "gloo::EnforceNotMet"),
    }
    assert any(part in ended[0].said for part in words[ended[0].code]), ended[0]
    assert kills.differences(sft_of_two, finished(2, "smoke/sft", directory)) == []


def test_a_run_goes_on_with_other_numbers_of_processes(folder, sft_of_two):
    directory = folder / "moved"
    for count in (2, 1):
        ended = ended_while_it_trains(count, directory, count - 1, signal.SIGTERM)
        assert [process.code for process in ended] == [PREEMPTED] * count
        (said,) = {line for process in ended for line in process.said.splitlines() if ": saved at step" in line}
        step = int(said.split("step ")[1].split(" of")[0])
        assert max(steps_saved(directory)) == step < STEPS
    finished(4, "smoke/sft", directory)
    assert_close(directory, sft_of_two)
    tokens = [read_metrics(run / "seed_0")["sft"]["real_tokens"].values for run in (directory, sft_of_two)]
    np.testing.assert_array_equal(tokens[0], tokens[1])


def refused(folder: Path, *commands: list[str]) -> list[str]:
    """What processes say that are refused."""
    ended = hosts.Several(commands, folder).wait()
    assert [process.code for process in ended] == [2] * len(commands), [process.said for process in ended]
    assert not list(folder.rglob("checkpoints"))
    return [process.said for process in ended]


def test_processes_that_do_not_fit_together_are_refused(tmp_path):
    fits, directory = settings("smoke/sft"), tmp_path / "run"
    part = settings("smoke/sft", **{"mesh.data": 1, "mesh.fsdp": 1})
    first, _ = refused(tmp_path, *[hosts.command("smoke/sft", directory, *part)] * 2)
    assert "the mesh has 1 devices, and 2 processes have 2: all must take part" in first
    assert not directory.exists()
    one, other = (hosts.command("smoke/sft", directory, *fits, "--set", f"seed={seed}") for seed in (1, 2))
    first, second = refused(tmp_path, one, other)
    assert "process 1 was started with another config than process 0: seed: 1 -> 2" in second
    assert "process 1: ValueError: process 1 was started with another config" in first
    one, other = (hosts.command("smoke/sft", tmp_path / "some", *fits, "--seeds", number) for number in ("1", "2"))
    first, second = refused(tmp_path, one, other)
    assert "which seeds are to run is not the same for all processes: [0] on process 0, [0, 1] on process 1" in first
    one, other = (hosts.command("smoke/sft", tmp_path / name, *fits) for name in ("here", "there"))
    first, second = refused(tmp_path, one, other)
    assert "there/config.json, which process 0 has written, is not there for process 1" in second


ALIKE = """
import sys
from pathlib import Path
from rlhf_jax import processes
from rlhf_jax.processes import agreed, check_same, count, exchanged, joined, number, on_host

def fails_on_1():
    if number() == 1:
        raise ValueError("what 1 found")
    return number()

with joined():
    said = exchanged(f"from {number()}")
    assert said == [f"from {n}" for n in range(count())], said
    assert agreed(lambda: number()) == number()
    try:
        agreed(fails_on_1)
    except ValueError as error:
        assert number() == 1
    except processes.Elsewhere as error:
        assert number() != 1 and str(error) == "process 1: ValueError: what 1 found"
    check_same("the seed", "7")
    try:
        check_same("the seed", str(number()))
    except ValueError as error:
        assert "the seed is not the same for all processes: 0 on process 0, 1 on process 1" in str(error)
    else:
        raise AssertionError
    print(f"process {number()} of {count()}")
"""


def by_slurm(number: int, count: int, port: int) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(count),
        "SLURM_PROCID": str(number),
        "SLURM_LOCALID": str(number),
        "JAX_COORDINATOR_PORT": str(port),
    }


def by_open_mpi(number: int, count: int, port: int) -> dict[str, str]:
    return {
        "OMPI_MCA_orte_hnp_uri": f"1531576320.0;tcp://127.0.0.1:{port}",
        "OMPI_COMM_WORLD_SIZE": str(count),
        "OMPI_COMM_WORLD_RANK": str(number),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(number),
        "JAX_COORDINATOR_PORT": str(port),
    }


@pytest.mark.parametrize("variables", [hosts.by_hand, by_slurm, by_open_mpi])
def test_processes_find_each_other_and_agree(tmp_path, variables):
    ended = hosts.Several([[sys.executable, "-c", ALIKE]] * 2, tmp_path, variables).wait()
    assert [process.code for process in ended] == [0, 0], [process.said for process in ended]
    assert [f"process {number} of 2" in process.told for number, process in enumerate(ended)] == [True, True]


REWARDS = """
from types import SimpleNamespace
import jax.numpy as jnp
import numpy as np
from rlhf_jax.config import MeshConfig
from rlhf_jax.loops.rlhf import RewardError, text_scorer
from rlhf_jax.processes import Elsewhere, joined, number, on_host
from rlhf_jax.mesh import make_mesh

asked = []

def score(prompt, reply):
    asked.append(prompt)
    if prompt == failing:
        raise OSError("no answer")
    return float(len(reply))

with joined():
    run = SimpleNamespace(mesh=make_mesh(MeshConfig(data=2)))
    texts = SimpleNamespace(
        tokenizer=SimpleNamespace(eos=0, decode=lambda ids: "x" * len(ids)), template=SimpleNamespace(reply_text=str)
    )
    mask = np.tri(4, dtype=bool)
    rollout = SimpleNamespace(batch=SimpleNamespace(tokens=np.ones((4, 4), np.int32), loss_mask=mask))
    scorer, failing = text_scorer(run, texts, score), None
    assert on_host(scorer(rollout, np.arange(4))).tolist() == [1.0, 2.0, 3.0, 4.0]
    assert asked == [number(), number() + 2], asked  # each reply is scored by one of them
    failing = 3
    try:
        scorer(rollout, np.arange(4))
    except RewardError as error:
        assert number() == 1 and "failed on prompt 3" in str(error)
    except Elsewhere as error:
        assert number() == 0 and "process 1: RewardError: the reward function failed on prompt 3" in str(error)
    else:
        raise AssertionError
"""


def test_replies_are_scored_once_and_a_reward_that_fails_on_one_process_fails_on_all(tmp_path):
    ended = hosts.Several([[sys.executable, "-c", REWARDS]] * 2, tmp_path).wait()
    assert [process.code for process in ended] == [0, 0], [process.said for process in ended]


FAILS_ALONE = """
import time
from rlhf_jax.processes import joined, number, exchanged
with joined():
    exchanged("here")
    if number() == 1:
        raise ZeroDivisionError("of 1 alone")
    while True:
        exchanged("still here")
"""


def test_a_process_that_fails_alone_says_so_and_takes_the_others_with_it(tmp_path):
    ended = hosts.Several([[sys.executable, "-c", FAILS_ALONE]] * 2, tmp_path).wait()
    assert ended[1].code == 1 and "ZeroDivisionError: of 1 alone" in ended[1].said
    assert "process 1 of 2 has failed alone, and ends; the others will follow" in ended[1].said
    assert ended[0].code in (-signal.SIGABRT, PREEMPTED)


@pytest.mark.parametrize("told", [{"JAX_NUM_PROCESSES": "1"}, {**by_slurm(0, 1, 7)}, {**by_open_mpi(0, 1, 7)}])
def test_one_process_runs_alone_whatever_started_it(told):
    script = "import jax\nfrom rlhf_jax.processes import joined\nwith joined(): print(jax.distributed.is_initialized())"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=hosts.environment(told), cwd=hosts.ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_variables_that_do_not_go_together_are_told():
    told = {"JAX_NUM_PROCESSES": "2", "JAX_COORDINATOR_ADDRESS": "", "JAX_PROCESS_ID": ""}
    script = "from rlhf_jax.processes import joined\nwith joined(): pass"
    ended = subprocess.run(
        [sys.executable, "-c", script], env=hosts.environment(told), cwd=hosts.ROOT, capture_output=True, text=True
    )
    assert "ValueError: JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID: missing" in ended.stderr
