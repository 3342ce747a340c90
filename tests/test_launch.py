"""The scripts of experiments/launch, with stand-ins for the clouds; what they start is real."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import hosts
import pytest
from test_hosts import STEPS, settings, steps_saved

from experiments.launch.submit import main as submit_main
from experiments.launch.submit import submit
from rlhf_jax.loops.preemption import PREEMPTED

LAUNCH = hosts.ROOT / "experiments" / "launch"
# Two workers of a slice: each runs the command that it is given, as ssh would.
GCLOUD = """#!/bin/bash
echo "$@" > "$HERE/asked"
command=${@: -1:1}
for worker in 0 1; do
    (
        JAX_PROCESS_ID=$worker bash -c "${command#--command=}" 2> "$HERE/$worker.err" > /dev/null
        echo $? > "$HERE/$worker.code"
    ) &
done
wait
"""
XPK = """#!/bin/bash
printf '%s\\n' "$@" > "$HERE/asked"
"""
# Two tasks of a job of Slurm, of whose codes srun tells the highest; and what becomes of the job.
SRUN = """#!/bin/bash
shift 2
worst=0
for code in $CODES; do
    CODE=$code "$@"
    code=$?
    worst=$((code > worst ? code : worst))
done
exit $worst
"""
PYTHON = """#!/bin/bash
printf '%s\\n' "$@" > "$HERE/asked"
exit "$CODE"
"""
SCONTROL = """#!/bin/bash
echo "$@" > "$HERE/queued"
"""


def stand_in(folder: Path, name: str, script: str) -> None:
    """A command of this name, before all others."""
    (folder / name).write_text(script)
    (folder / name).chmod(0o755)


def environment(folder: Path, **told: str) -> dict[str, str]:
    there = {"PATH": f"{folder}:{os.environ['PATH']}", "HERE": str(folder), "PAUSE": "1"}
    return hosts.environment(there | told)


def test_every_script_says_what_it_needs():
    scripts = sorted(LAUNCH.glob("*.sh"))
    assert [path.name for path in scripts] == ["again.sh", "gke.sh", "slurm.sh", "tpu_vm.sh"]
    for path in scripts:
        assert path.stat().st_mode & stat.S_IXUSR
        subprocess.run(["bash", "-n", str(path)], check=True)
    bare = {"PATH": os.environ["PATH"]}
    for name, missing in (("tpu_vm.sh", "TPU"), ("gke.sh", "CLUSTER")):
        done = subprocess.run(["bash", str(LAUNCH / name), "smoke/sft"], env=bare, capture_output=True, text=True)
        assert done.returncode and missing in done.stderr


def test_a_tpu_vm_runs_a_group_of_a_sweep(tmp_path):
    stand_in(tmp_path, "gcloud", """#!/bin/bash\nprintf '%s\\n' "$@" > "$HERE/asked"\n""")
    told = environment(tmp_path, TPU="my-tpu", ZONE="us-east5-a", COMMAND="sweep")
    command = ["bash", str(LAUNCH / "tpu_vm.sh"), "smoke/sft", "--over", "policy.width=16,32", "--group", "1"]
    assert subprocess.run(command, env=told, cwd=tmp_path).returncode == 0
    asked = (tmp_path / "asked").read_text().splitlines()[-1]
    assert asked.endswith(r"experiments.run sweep smoke/sft --over policy.width=16\,32 --group 1 --resume auto")


@pytest.mark.slow
def test_workers_of_a_tpu_vm_start_again_until_the_run_is_done(tmp_path):
    stand_in(tmp_path, "gcloud", GCLOUD)
    several = hosts.by_hand(0, 2, hosts.free_port())
    told = environment(
        tmp_path, TPU="my-tpu", ZONE="us-east5-a", FOLDER=str(hosts.ROOT), PYTHON=sys.executable, **several
    )
    directory = tmp_path / "run of two"
    command = ["bash", str(LAUNCH / "tpu_vm.sh"), "smoke/sft", *settings("smoke/sft"), "--workdir", str(directory)]
    with subprocess.Popen(command, env=told, cwd=tmp_path) as running:
        while not steps_saved(directory):
            assert running.poll() is None
            time.sleep(0.01)
        running_now = numbers("-f", f"^{sys.executable} -m experiments.run run .*{directory.name}")
        one = next(number for number in running_now if b"JAX_PROCESS_ID=1" in variables_of(number))
        os.kill(one, signal.SIGKILL)
        assert running.wait(hosts.PATIENCE) == 0
    assert (tmp_path / "asked").read_text().startswith("compute tpus tpu-vm ssh my-tpu --zone=us-east5-a --worker=all")
    assert [(tmp_path / f"{worker}.code").read_text() for worker in (0, 1)] == ["0\n", "0\n"]
    assert "again.sh: ended with 137, start 2" in (tmp_path / "1.err").read_text()
    assert "again.sh: ended with " in (tmp_path / "0.err").read_text()
    assert steps_saved(directory) == {STEPS - 3, STEPS}


def numbers(*asked: str) -> list[int]:
    """The processes that pgrep finds."""
    return [int(line) for line in subprocess.run(["pgrep", *asked], capture_output=True, text=True).stdout.split()]


def variables_of(number: int) -> bytes:
    return Path(f"/proc/{number}/environ").read_bytes()


def test_a_workload_of_gke_is_what_xpk_is_asked_for(tmp_path):
    stand_in(tmp_path, "xpk", XPK)
    told = environment(
        tmp_path, CLUSTER="c", IMAGE="gcr.io/p/i", STORAGE="runs", TPU_TYPE="v5p-32", XPK_FLAGS="--zone=a --spot"
    )
    command = ["bash", str(LAUNCH / "gke.sh"), "first", "smoke/sft", "--set", "seed=1", "--workdir", "/runs/my run"]
    subprocess.run(command, env=told, check=True)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[:2] == ["workload", "create"]
    assert {
        "--cluster=c",
        "--workload=first",
        "--num-slices=1",
        f"--restart-on-exit-codes={PREEMPTED}",
        "--spot",
    } <= set(asked)
    said = "--command=exec python -m experiments.run run smoke/sft --set seed=1 --workdir /runs/my\\ run --resume auto"
    assert asked[-1] == said


JOBS = {
    "all have saved": ("75 75", 0, True),
    "one was lost": ("137 134", 3, True),
    "too often": ("134 134", 100, False),
    "one has failed, and took the other along": ("1 134", 0, False),
    "both had a mistake": ("2 2", 0, False),
    "done": ("0 0", 0, False),
}


@pytest.mark.parametrize(("codes", "restarts", "queued"), JOBS.values(), ids=JOBS)
def test_a_job_of_slurm_queues_again_where_it_can_go_on(tmp_path, codes, restarts, queued):
    stand_in(tmp_path, "srun", SRUN)
    stand_in(tmp_path, "scontrol", SCONTROL)
    stand_in(tmp_path, "task-python", PYTHON)
    job = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts), "PYTHON": "task-python"}
    command = ["bash", str(LAUNCH / "slurm.sh"), "smoke/sft", "--workdir", "my run"]
    done = subprocess.run(command, env=environment(tmp_path, CODES=codes, **job), cwd=tmp_path)
    assert done.returncode == max(map(int, codes.split()))
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[-6:] == ["run", "smoke/sft", "--workdir", "my run", "--resume", "auto"]
    assert (tmp_path / "queued").exists() == queued
    assert not queued or (tmp_path / "queued").read_text() == "requeue 7\n"


def test_a_job_of_an_array_runs_its_group_of_a_sweep(tmp_path):
    stand_in(tmp_path, "srun", SRUN)
    stand_in(tmp_path, "task-python", PYTHON)
    job = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3", "COMMAND": "sweep", "PYTHON": "task-python", "CODES": "0"}
    command = ["bash", str(LAUNCH / "slurm.sh"), "smoke/sft", "--over", "policy.width=16,32", "--workdir", "sweep"]
    assert subprocess.run(command, env=environment(tmp_path, **job), cwd=tmp_path).returncode == 0
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[asked.index("sweep") :] == ["sweep", *command[2:], "--resume", "auto", "--group", "3"]


def test_a_command_is_started_again_only_where_it_can_go_on(tmp_path):
    counted = tmp_path / "count"
    script = f"echo x >> {counted}; [ $(wc -l < {counted}) -lt 3 ] && exit 75; exit 4"
    done = subprocess.run([str(LAUNCH / "again.sh"), "bash", "-c", script], env=environment(tmp_path, PAUSE="0"))
    assert done.returncode == 4
    assert counted.read_text() == "x\n" * 3


def test_sigterm_reaches_the_command_and_is_the_last(tmp_path):
    heard = tmp_path / "heard"
    script = f"trap 'echo yes > {heard}; exit 75' TERM; touch {heard}; while true; do sleep 0.05; done"
    running = subprocess.Popen([str(LAUNCH / "again.sh"), "bash", "-c", script], env=environment(tmp_path, PAUSE="0"))
    while not heard.exists():
        time.sleep(0.01)
    running.terminate()
    assert running.wait(30) == 75
    assert heard.read_text() == "yes\n"


def test_a_sweep_on_several_processes_is_refused_before_it_is_queued(tmp_path, capsys):
    with pytest.raises(ValueError, match="a sweep runs on one process, and 8 were asked for"):
        submit(["smoke/sft"], minutes=1, nodes=2, processes=4, logs=tmp_path, command="sweep")
    with pytest.raises(SystemExit) as ended:
        submit_main(["--minutes", "1", "--processes", "2", "--command", "sweep", "--", "smoke/sft"])
    assert ended.value.code == 2 and "a sweep runs on one process" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_job_of_submitit_is_of_a_group_of_a_sweep(tmp_path):
    arguments = ["smoke/sft", "--over", "policy.width=16,32", "--group", "0", "--set", "sft.optim.steps=3"]
    job = submit(
        [*arguments, "--workdir", str(tmp_path / "sweep")],
        minutes=60,
        logs=tmp_path / "logs",
        cluster="local",
        command="sweep",
    )
    assert job.results() == [0], job.stderr()
    assert [path.name for path in (tmp_path / "sweep").glob("*=*")] == ["policy.width=16"]


@pytest.mark.slow
def test_a_job_of_submitit_saves_when_its_time_is_up_and_goes_on(tmp_path, monkeypatch):
    for name, value in hosts.QUIET.items():
        monkeypatch.setenv(name, value)
    for name in hosts.OURS:
        monkeypatch.delenv(name, raising=False)
    directory = tmp_path / "run"
    arguments = ["smoke/sft", *settings("smoke/sft"), "--workdir", str(directory)]
    job = submit(arguments, minutes=60, processes=2, logs=tmp_path / "logs", cluster="local")
    while not steps_saved(directory):
        assert not job.done(), job.stderr()
        time.sleep(0.01)
    # As Slurm does it three minutes before the time is up: to the tasks, and to what they have started.
    tasks = numbers("-P", job.job_id)
    for process in [*tasks, *(child for task in tasks for child in numbers("-P", str(task)))]:
        os.kill(process, signal.SIGUSR2)
    assert job.results() == [0, 0], job.stderr()
    assert "saved at step" in job.stderr()
    assert STEPS in steps_saved(directory)
