"""The command line: `python -m rlhf_jax.doctor [--model DIR]`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rlhf_jax.doctor.report import Check, Examination, run, table, title

FAILED, USER_ERROR = 1, 2
WIDTH = 130
DESCRIPTION = """Measures on this machine what the library promises: KL(policy, policy) = 0, sampler = trainer log-probs, updates that do
not depend on microbatches, devices or padding, losses equal to numbers computed by hand, resume to the bit, damaged checkpoints found.
Meant to be pasted into reports of bugs. Ends with 0 when every check holds, 1 when one fails, 2 for arguments that make no sense."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rlhf_jax.doctor", description=DESCRIPTION)
    parser.add_argument(
        "--model", type=Path, metavar="DIR", help="check the checkpoint and tokenizer in this folder instead"
    )
    parser.add_argument(
        "--virtual-devices", type=int, default=8, metavar="N", help="as many devices a CPU is split into (default 8)"
    )
    options = parser.parse_args(arguments)
    if options.virtual_devices < 1:
        parser.error(f"--virtual-devices {options.virtual_devices}: at least 1")
    from rlhf_jax.mesh import split_cpu

    split_cpu(options.virtual_devices)
    try:
        examinations = of_a_model(options.model) if options.model is not None else of_the_library()
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    checks = examine(examinations)
    failed = [check for check in checks if check.verdict == "fails"]
    for check in failed:
        print(f"fails: {check.name}: {check.measured}, expected {check.bound}", file=sys.stderr)
    return FAILED if failed else 0


def of_the_library() -> tuple[Examination, ...]:
    """Every examination of the library itself."""
    from rlhf_jax.doctor import formulas, gradients, rollouts, texts, updates

    return tuple(one for module in (rollouts, updates, gradients, formulas, texts) for one in module.EXAMINATIONS)


def of_a_model(folder: Path) -> tuple[Examination, ...]:
    """The examinations of a checkpoint and its tokenizer."""
    from rlhf_jax.doctor.model import examinations

    if not folder.is_dir():
        raise FileNotFoundError(f"--model {folder}: there is no such folder")
    return examinations(folder)


def examine(examinations: Sequence[Examination]) -> list[Check]:
    """Runs them, showing which one is at work, and prints the environment and the table."""
    from rich.console import Console

    from rlhf_jax.report.progress import progress

    started = time.perf_counter()
    checks: list[Check] = []
    with progress(len(examinations), "doctor") as bar:
        for examination in examinations:
            checks += run(examination)
            bar.advance(title(examination))
    console = Console()
    console.width = max(console.width, WIDTH)  # a narrow table in a report of a bug is hard to read
    print(surroundings())
    console.print(table(checks))
    count = {verdict: sum(check.verdict == verdict for check in checks) for verdict in ("holds", "fails", "reported")}
    print(
        f"{count['holds']} hold, {count['fails']} fail, {count['reported']} reported, in {time.perf_counter() - started:.0f} s"
    )
    return checks


def surroundings() -> str:
    """Versions and devices, in two lines."""
    from rlhf_jax.report.environment import environment

    here = environment()
    packages = ", ".join(f"{name} {version}" for name, version in here["packages"].items() if version)
    devices = ", ".join(f"{count} x {kind}" for kind, count in here["jax"]["devices"].items())
    commit = (
        here["git"]["commit"][:12] + (" (changed)" if here["git"]["dirty"] else "") if here["git"] else "no repository"
    )
    return f"{packages}, Python {here['python']}\n{here['platform']}, {here['cpus']} cpus, {devices}, commit {commit}"


if __name__ == "__main__":
    sys.exit(main())
