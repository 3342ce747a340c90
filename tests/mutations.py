"""Do the tests notice mistakes? Makes one mistake at a time in a copy of the package and runs the tests of what it is in.

    python tests/mutations.py [--only TEXT] [--jobs N] [--list]

Each mistake is one that this kind of code really contains: a sign, a mask, a shift, a temperature, a divisor, a missing stop_gradient.
Every line of the report says what was changed and which test caught it first. Exits with 1 where more than one mistake survives, and
with 2 where `mutation_table.py` no longer fits the code: a text that does not stand exactly once in its file, tests that fail without
any mistake, or a mistake after which the code does not run at all.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from mutation_table import MUTATIONS

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("rlhf_jax", "experiments", "tests", "pyproject.toml")
SECONDS = 300  # after which a test that hangs has noticed too


class Mutation(NamedTuple):
    path: str  # from the root
    before: str
    after: str
    tests: tuple[str, ...]


class Outcome(NamedTuple):
    caught_by: str  # the test and the kind of error; empty where it survives
    broken: str  # why this says nothing, where it does
    seconds: float


def mutations() -> Iterator[Mutation]:
    for (path, tests), changes in MUTATIONS.items():
        files = tuple(f"tests/{name}" for name in tests.split())
        yield from (Mutation(f"rlhf_jax/{path}", before, after, files) for before, after in changes)


def mutated(text: str, mutation: Mutation) -> str:
    """The file's text with the mistake. Raises: ValueError where what to change does not stand exactly once."""
    count = text.count(mutation.before)
    if count != 1:
        raise ValueError(f"{mutation.path}: {mutation.before!r} stands there {count} times, not once")
    return text.replace(mutation.before, mutation.after)


def run_tests(folder: Path, tests: tuple[str, ...]) -> Outcome:
    """The first test that fails in this copy, if any."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "--tb=short", "-p", "no:cacheprovider", *tests]
    start = time.perf_counter()
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**environment, "PYTHONPATH": str(folder), "COLUMNS": "1000"},  # or the reason is cut off
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        return Outcome(f"no end after {SECONDS} s", "", time.perf_counter() - start)
    seconds = time.perf_counter() - start
    if done.returncode == 0:
        return Outcome("", "", seconds)
    failed = re.search(r"^FAILED (\S+::.+?)(?: - (.*))?$", done.stdout, re.MULTILINE)
    if done.returncode != 1 or failed is None or re.match(r"(Name|Import|Syntax)Error", failed[2] or ""):
        return Outcome("", (done.stdout + done.stderr)[-2000:], seconds)
    kind = re.match(r"\w*", failed[2] or "")
    return Outcome(f"{failed[1]} ({kind[0] if kind else ''})", "", seconds)


def try_one(mutation: Mutation, base: Path) -> Outcome:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "copy"
        shutil.copytree(base, folder)
        path = folder / mutation.path
        path.write_text(mutated(path.read_text(encoding="utf-8"), mutation), encoding="utf-8")
        return run_tests(folder, mutation.tests)


def copy_package(to: Path) -> None:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, to / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, to / name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="those with this text in their file or change")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="how many at a time")
    parser.add_argument("--list", action="store_true", help="say what would be changed, and run nothing")
    args = parser.parse_args()
    chosen = [m for m in mutations() if args.only in f"{m.path} {m.before} -> {m.after}"]
    if not chosen:
        parser.error(f"no mutation has {args.only!r} in its file or change; see --list")
    try:
        for mutation in chosen:
            mutated((ROOT / mutation.path).read_text(encoding="utf-8"), mutation)
    except ValueError as error:
        print(error)
        return 2
    if args.list:
        print(*(f"{m.path}: {m.before} -> {m.after}" for m in chosen), f"{len(chosen)} mutations", sep="\n")
        return 0

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(args.jobs) as pool:
        base = Path(name)
        copy_package(base)
        groups = sorted({m.tests for m in chosen})
        for tests, outcome in zip(groups, pool.map(lambda tests: run_tests(base, tests), groups), strict=True):
            if outcome.caught_by or outcome.broken:
                pool.shutdown(cancel_futures=True)
                print(f"{' '.join(tests)} fails without any mistake: {outcome.caught_by or outcome.broken}")
                return 2
        outcomes = []
        for mutation, outcome in zip(chosen, pool.map(lambda m: try_one(m, base), chosen), strict=True):
            outcomes.append(outcome)
            if outcome.broken:
                print(f"the next one breaks the code, which shows nothing about its tests:\n{outcome.broken}")
            print(f"{mutation.path.removeprefix('rlhf_jax/')}: {mutation.before} -> {mutation.after}")
            print(
                f"    {outcome.caught_by or ('BROKEN' if outcome.broken else 'SURVIVED')}  {outcome.seconds:.0f} s",
                flush=True,
            )
    caught = sum(bool(outcome.caught_by) for outcome in outcomes)
    print(f"{caught} of {len(chosen)} caught in {(time.perf_counter() - start) / 60:.1f} minutes")
    if any(outcome.broken for outcome in outcomes):
        return 2
    return int(caught < len(chosen) - 1)


if __name__ == "__main__":
    sys.exit(main())
