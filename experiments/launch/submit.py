"""Experiments as Slurm jobs from Python, by submitit (the extra `slurm`): what slurm.sh is for the shell.

python -m experiments.launch.submit --minutes 600 --nodes 2 --processes 8 -- smoke/sft --set mesh.fsdp=16 --workdir runs/first
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.loops.preemption import PREEMPTED
from rlhf_jax.processes import ADDRESS, COUNT, NUMBER

ROOT = Path(__file__).resolve().parents[2]
LOGS = Path("slurm")


class Task:
    """One process of a run, as submitit starts it: begun, or gone on with, by the same command."""

    command = "run"  # of tasks that were written before it could be another

    def __init__(self, arguments: Sequence[str], command: str = "run") -> None:
        self.arguments, self.command = tuple(arguments), command
        self._running: subprocess.Popen | None = None
        self._told = False

    def __call__(self) -> int:
        """The exit code: 0, or 75 where the run has saved and is queued again. Raises: RuntimeError for any other, and a process lost."""
        command = [sys.executable, "-m", "experiments.run", self.command, *self.arguments, "--resume", "auto"]
        # Slurm tells all processes of a job when its time is up, of which submitit's is meant.
        deaf = ["sh", "-c", "trap '' USR2; exec \"$@\"", "sh", *command]
        self._running = subprocess.Popen(deaf, cwd=ROOT, env=os.environ | told_by_submitit())
        ended(self._running)
        code = self._running.wait()
        if code == 0 or (code == PREEMPTED and self._asked()):
            return code
        raise RuntimeError(
            f"{' '.join(command)} ended with {code}; its last words are in the job's error file. Submitted again, it goes on"
        )

    def _asked(self) -> bool:
        """Whether the first task, which hears for all of them, was told to end."""
        return self._told or int(os.environ.get("SLURM_PROCID", os.environ.get("SUBMITIT_LOCAL_GLOBALID", "0"))) > 0

    def checkpoint(self) -> Any:
        """What is to be queued again when time is up or the machine is taken away. The processes save first, all after the same step."""
        from submitit.helpers import DelayedSubmission

        self._told = True
        if self._running is not None:
            self._running.terminate()
            ended(self._running)
        return DelayedSubmission(Task(self.arguments, self.command))


def ended(process: subprocess.Popen) -> None:
    """Returns when the process has ended. Unlike `Popen.wait` it may be interrupted by a signal whose handler asks the same."""
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def told_by_submitit() -> dict[str, str]:
    """Who is who, where Slurm, which JAX asks by itself, does not say."""
    import submitit

    job = submitit.JobEnvironment()
    if "SLURM_PROCID" in os.environ or job.num_tasks == 1:
        return {}
    port = 49152 + sum(job.job_id.encode()) % 16384
    return {ADDRESS: f"{job.hostnames[0]}:{port}", COUNT: str(job.num_tasks), NUMBER: str(job.global_rank)}


def submit(
    arguments: Sequence[str],
    *,
    minutes: int,
    nodes: int = 1,
    processes: int = 1,
    logs: Path = LOGS,
    cluster: str | None = None,
    command: str = "run",
    **options: Any,
) -> Any:
    """The submitit job of `experiments.run COMMAND ARGUMENTS`, with so many processes on each of the nodes; `cluster="local"` is this one.

    A group of a sweep is `command="sweep"`, in one process, with `--group K` among the arguments.

    Other options are submitit's, such as `slurm_partition` and `gpus_per_node`. Raises: ModuleNotFoundError without submitit,
    ValueError for a sweep on several processes.
    """
    if command == "sweep" and nodes * processes > 1:
        raise ValueError(
            f"a sweep runs on one process, and {nodes * processes} were asked for; submit each --group by itself"
        )
    import submitit

    executor = submitit.AutoExecutor(folder=logs, cluster=cluster)
    executor.update_parameters(
        name="rlhf_jax", timeout_min=minutes, nodes=nodes, tasks_per_node=processes, slurm_signal_delay_s=180, **options
    )
    return executor.submit(Task(arguments, command))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, required=True, help="after which it saves and queues again")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1, help="of each node: as many as it has GPUs; default 1")
    parser.add_argument("--gpus", type=int, metavar="N", help="of each node")
    parser.add_argument("--partition", metavar="NAME")
    parser.add_argument("--cluster", choices=("slurm", "local"), default="slurm", help="local: on this machine")
    parser.add_argument("--logs", type=Path, default=LOGS, metavar="DIR", help="default: slurm")
    parser.add_argument("--command", choices=("run", "sweep"), default="run", help="sweep: one --group of it")
    parser.add_argument(
        "arguments", nargs="+", metavar="ARGUMENT", help="behind --: those of `experiments.run COMMAND`"
    )
    given = parser.parse_args(arguments)
    if given.command == "sweep" and given.nodes * given.processes > 1:
        parser.error(
            "a sweep runs on one process: leave out --nodes and --processes, and submit each --group by itself"
        )
    options: dict[str, Any] = {} if given.gpus is None else {"gpus_per_node": given.gpus}
    if given.partition is not None:
        options["slurm_partition"] = given.partition
    job = submit(
        given.arguments,
        minutes=given.minutes,
        nodes=given.nodes,
        processes=given.processes,
        logs=given.logs,
        cluster=given.cluster,
        command=given.command,
        **options,
    )
    print(f"job {job.job_id}; what it says: {job.paths.stderr}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
