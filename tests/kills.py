"""Ends runs at random moments, starts them again, and compares what they leave with a run that was left alone, bit for bit.

python tests/kills.py --kills 50 --terms 20 --flips 40       # 2 at a time; kill -9, SIGTERM, flipped bits
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rlhf_jax.checkpoint import Checkpoints, load_part, newest_intact
from rlhf_jax.loops.preemption import PREEMPTED

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("smoke/sft", "smoke/reward", "smoke/ppo")
OFTEN = ("--set", "checkpoint_every=3")  # so that the moment is often one of writing
QUIET = {"JAX_PLATFORMS": "cpu", "RLHF_JAX_PROGRESS": "quiet", "PYTHONWARNINGS": "ignore"}


class Ended(NamedTuple):
    """How a run went that was ended at a moment."""

    name: str
    seconds: float  # after its start
    code: int
    differences: list[str]


def start(name: str, directory: Path) -> subprocess.Popen:
    """A process that runs an experiment, or goes on with it."""
    command = [
        sys.executable,
        "-m",
        "experiments.run",
        "run",
        name,
        "--workdir",
        str(directory),
        "--resume",
        "auto",
        *OFTEN,
    ]
    with (directory.parent / f"{directory.name}.err").open("ab") as errors:
        return subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **QUIET}, stdout=subprocess.DEVNULL, stderr=errors
        )


def finish(name: str, directory: Path) -> float:
    """Runs an experiment to its end, from whatever is there; the seconds that it takes. Raises: RuntimeError with its last words."""
    began = time.monotonic()
    code = start(name, directory).wait()
    if code:
        said = (directory.parent / f"{directory.name}.err").read_text()[-2000:]
        raise RuntimeError(f"{name} in {directory} ended with {code}: {said}")
    return time.monotonic() - began


def arrays(seed: Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint of every stage."""
    import jax

    found: dict[str, np.ndarray] = {}
    for stage in sorted((seed / "checkpoints").iterdir()):
        if stage.suffix == ".damaged":
            continue
        newest, damaged = newest_intact(stage)
        if newest is None or damaged:
            raise RuntimeError(f"{stage}: {newest} is the newest intact one, {damaged} are damaged")
        for path, leaf in jax.tree_util.tree_leaves_with_path(load_part(newest)):
            found[f"{stage.name}/{newest.name}{jax.tree_util.keystr(path)}"] = np.asarray(leaf)
    return found


def differences(one: Path, other: Path) -> list[str]:
    """What two finished runs of one experiment differ in, but for times."""
    wrong = []
    for file in ("metrics.jsonl", "samples.jsonl", "calibration.json"):
        if (one / "seed_0" / file).read_bytes() != (other / "seed_0" / file).read_bytes():
            wrong.append(file)
    summaries = [json.loads((run / "seed_0" / "summary.json").read_text()) for run in (one, other)]
    plain = [{name: value for name, value in summary.items() if "second" not in name} for summary in summaries]
    if plain[0] != plain[1]:
        wrong.append("summary.json")
    mine, theirs = arrays(one / "seed_0"), arrays(other / "seed_0")
    if mine.keys() != theirs.keys():
        return [*wrong, f"arrays {sorted(mine.keys() ^ theirs.keys())}"]
    return [*wrong, *(name for name, array in mine.items() if array.tobytes() != theirs[name].tobytes())]


def ended_at(moment: float, number: int, name: str, whole: Path, directory: Path, *, training: bool = False) -> Ended:
    """A run that gets a signal after so many seconds, is started again, and is compared with one that was left alone.

    The seconds are those since its start, or since it has written its first checkpoint.
    """
    running = start(name, directory)
    while training and running.poll() is None and not list(directory.glob("seed_0/checkpoints/*/*")):
        time.sleep(0.01)
    time.sleep(moment)
    running.send_signal(number)
    code = running.wait()
    finish(name, directory)
    found = Ended(name, moment, code, differences(whole, directory))
    if not found.differences:
        shutil.rmtree(directory)
    return found


def end_often(folder: Path, count: int, number: int, dice: random.Random, tell: Callable[[str], None]) -> list[Ended]:
    """`count` runs that are ended, over all the experiments, two at a time."""
    seconds = {}
    for name in NAMES:
        whole = folder / name.replace("/", "-")
        if not whole.exists():
            finish(name, whole)  # which fills the cache of programs
            shutil.rmtree(whole)
            (folder / f"{whole.name}.seconds").write_text(str(finish(name, whole)))
        seconds[name] = float((folder / f"{whole.name}.seconds").read_text())
        tell(f"{name}: {seconds[name]:.1f} s when left alone")
    cases = []
    for case in range(count):
        name = NAMES[case % len(NAMES)]
        whole = folder / name.replace("/", "-")
        cases.append((dice.uniform(0, seconds[name]), number, name, whole, folder / f"{whole.name}-{number}-{case}"))
    done: list[Ended] = []
    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(lambda case: ended_at(*case), cases):
            done.append(found)
            same = "the same" if not found.differences else f"DIFFERENT: {found.differences[:3]}"
            tell(f"{len(done)} of {count}: {found.name} after {found.seconds:.2f} s, code {found.code}: {same}")
    return done


def flip_often(folder: Path, count: int, dice: random.Random, tell: Callable[[str], None]) -> list[str]:
    """One bit at a random place of the newest checkpoint, so often; what was not found, or did not lead to the step before."""
    stage = folder / "smoke-ppo" / "seed_0" / "checkpoints" / "ppo"
    kept = sorted((path for path in stage.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name))
    files = sorted(path for path in kept[-1].rglob("*") if path.is_file())
    sizes, wrong = [path.stat().st_size for path in files], []
    for case in range(count):
        place = folder / f"flipped-{case}" / "ppo"
        shutil.copytree(stage, place)
        (chosen,) = dice.choices(files, sizes)
        flipped = place / chosen.relative_to(stage)
        content = bytearray(flipped.read_bytes())
        bit = dice.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        flipped.write_bytes(content)
        with warnings.catch_warnings(record=True) as said, Checkpoints(place) as checkpoints:
            found = checkpoints.latest
        name = f"bit {bit} of {chosen.relative_to(kept[-1])}"
        if not said or found != int(kept[-2].name) or not (place.parent / "ppo.damaged" / kept[-1].name).is_dir():
            wrong.append(f"{name}: {found}")
        tell(f"flip {case + 1} of {count}: {name}: goes on from step {found}")
        shutil.rmtree(place.parent)
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, count in (("kills", 50), ("terms", 20), ("flips", 40), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=count)
    options = parser.parse_args()
    dice = random.Random(options.seed)

    def tell(said: str) -> None:
        print(said, flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        killed = end_often(folder, options.kills, signal.SIGKILL, dice, tell)
        asked = end_often(folder, options.terms, signal.SIGTERM, dice, tell)
        missed = flip_often(folder, options.flips, dice, tell)
    same = sum(not found.differences for found in killed)
    # A run that was asked before it could hear, while Python starts, ends as the system does it.
    heard = [found for found in asked if found.code in (PREEMPTED, 0, -signal.SIGTERM)]
    saved = sum(not found.differences for found in heard)
    codes = {code: sum(found.code == code for found in asked) for code in sorted({found.code for found in asked})}
    tell(f"kill -9: {same} of {len(killed)} ended like the run that was left alone")
    tell(f"SIGTERM: {saved} of {len(asked)}, codes {codes}")
    tell(f"flipped bits: {options.flips - len(missed)} of {options.flips} found, the step before used; {missed}")
    return 0 if same == len(killed) and saved == len(asked) and not missed else 1


if __name__ == "__main__":
    sys.exit(main())
