"""The comparison with other libraries counts and divides right, and says what is missing; none of it needs their environments."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers import compare, inputs, load, our_side, sides
from benchmarks.peers.protocol import Gate, Unavailable, repeat
from benchmarks.peers.ratios import ratio, spread
from benchmarks.workloads import SIZES
from benchmarks.workloads.common import SHAPE, lengths, random_texts
from benchmarks.workloads.training import TEXTS

TINY = dataclasses.replace(SIZES["S"], vocab=64, width=16, layers=1, heads=2, kv_heads=1, mlp=32)

# A side without a model: it sleeps `nap` seconds per update, and after `last` of them it is gone.
NAPS = """
import sys, time
from benchmarks.peers.protocol import repeat, run_side

def serve(task, gate):
    print("not for the driver")
    done = iter(range(task.get("last", 1000)))
    gate.describe(task["parameters"], {"naps": "1"})
    repeat(gate, lambda: (next(done), time.sleep(task["nap"])))

run_side(serve)
"""


@pytest.fixture
def naps(monkeypatch):
    """Sides called by what they are told in place of a task, all of them naps."""

    def begin(name, task, python):
        errors = (python.parent / f"{name}.txt").open("w+b")
        process = subprocess.Popen(
            [sys.executable, "-c", NAPS, json.dumps(task | told[name])],
            cwd=sides.ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        side = sides.Side(name, process, errors, {})
        side.ready = side.hear()
        return side

    told: dict[str, dict] = {}
    monkeypatch.setattr(compare, "start", begin)
    return told


def test_ratio_is_the_median_of_rounds_and_its_interval_lies_within_them():
    found = ratio([2.0, 9.0, 3.0], [1.0, 3.0, 2.0])  # 2, 3, 1.5
    assert found == {"median": 2.0, "low": 1.5, "high": 3.0}


def test_ratio_of_rounds_that_agree_is_certain():
    assert ratio([3.0] * 7, [2.0] * 7) == {"median": 1.5, "low": 1.5, "high": 1.5}


def test_interval_of_a_median_covers_it_about_as_often_as_it_says():
    draw = np.random.default_rng(0)
    found = [ratio(np.exp(0.1 * draw.standard_normal(15)).tolist(), [1.0] * 15, seed=run) for run in range(100)]
    assert 88 <= sum(one["low"] <= 1.0 <= one["high"] for one in found) <= 100


@pytest.mark.parametrize(("peer", "ours"), [([1.0], [1.0, 2.0]), ([], [])])
def test_rounds_of_one_side_alone_have_no_ratio(peer, ours):
    with pytest.raises(ValueError, match="rounds of the peer beside"):
        ratio(peer, ours)


def test_spread_of_nothing_is_nothing():
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}
    assert spread([]) == {}


def test_gate_counts_steps_of_several_updates_and_ends_with_its_input():
    told, asked, updates = io.StringIO(), io.StringIO("go 2\ngo\n"), []
    gate = Gate(1, told, asked)
    gate.describe(7, {"us": "1"}, updates=3)
    repeat(gate, lambda: updates.append(None))
    ready, first, second = map(json.loads, told.getvalue().splitlines())
    assert ready["ready"] and ready["parameters"] == 7 and ready["versions"] == {"us": "1"}
    assert ready["first_seconds"] >= 0 and first.keys() == second.keys() == {"seconds"}
    assert len(updates) == 3 * (1 + 2 + 1)


def test_steps_fill_a_round_of_the_fastest_side():
    assert sides.steps_for(2.0, [0.5, 3.0]) == 4
    assert sides.steps_for(2.0, [5.0]) == 1
    assert sides.steps_for(2.0, [1e-6]) == 100


def test_texts_of_the_peers_are_as_long_as_ours():
    task = sides.make_task("sft_padded", TINY)
    ours = random_texts(TINY, lengths(TEXTS, 100, SHAPE.length))
    assert [len(text) for text in inputs.texts(TINY.vocab, task["lengths"])] == [
        len(text.prompt) + len(text.reply) for text in ours
    ]


def test_reward_counts_different_words():
    assert inputs.different_words([inputs.words([3, 3, 12]), inputs.words([5])]) == [2.0, 1.0]


def test_our_side_does_a_workload_and_says_how_large_its_model_is():
    side = sides.start("our", sides.make_task("sft", TINY, warmup=1), Path(sys.executable))
    try:
        assert side.ready["parameters"] == 64 * 16 + (2 + 1 + 1 + 2) * 8 * 16 + 3 * 16 * 32 + 3 * 16
        assert 0 < side.round(2) < 10
    finally:
        side.close()
    assert side.process.returncode == 0


def test_a_side_that_cannot_start_tells_its_last_words():
    with pytest.raises(Unavailable, match=r"ended with 1: .*no_such_side"):
        sides.start("no_such", sides.make_task("sft", TINY), Path(sys.executable))


def test_a_workload_that_a_side_does_not_have_is_said():
    with pytest.raises(Unavailable, match="we have no workload chess"):
        our_side.serve(sides.make_task("chess", TINY), Gate(1, io.StringIO(), io.StringIO()))


def test_slower_peers_have_ratios_and_one_that_ends_is_left_out_with_its_reason(naps, tmp_path):
    naps |= {
        "our": {"parameters": 100, "nap": 0.01},
        "trl": {"parameters": 100, "nap": 0.04},
        "tunix": {"parameters": 100, "nap": 0.01, "last": 4},
    }
    pythons = {name: tmp_path / "python" for name in naps}
    found = compare.compare("sft", TINY, pythons, rounds=3, seconds=0.02)
    assert found["ratio"].keys() == {"trl"} and 2 < found["ratio"]["trl"]["median"] < 5
    assert found["seconds"].keys() == {"our", "trl"}
    assert "StopIteration" in found["unavailable"]["tunix"]


def test_a_peer_with_another_model_is_left_out(naps, tmp_path):
    naps |= {"our": {"parameters": 1000, "nap": 0.0}, "trl": {"parameters": 1011, "nap": 0.0}}
    pythons = {name: tmp_path / "python" for name in naps}
    found = compare.compare("sft", TINY, pythons, rounds=1, seconds=0.01)
    assert found["unavailable"] == {"trl": "its model has 1011 parameters, ours 1000"}
    assert found["seconds"].keys() == {"our"} and found["ratio"] == {}


def test_a_missing_environment_is_one_line_with_the_command_that_makes_it(tmp_path, capsys):
    assert compare.main(["--venv", str(tmp_path), "--peer", "trl"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1
    assert "pip install -r benchmarks/peers/trl.txt" in said.err
    assert (sides.ROOT / "benchmarks/peers/trl.txt").is_file()


def test_cores_of_others_are_all_less_the_sides(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "PROC", tmp_path)
    monkeypatch.setattr(load.os, "getpid", lambda: 2)
    monkeypatch.setattr(load.os, "sysconf", lambda _: 100)
    clock = iter([10.0, 20.0])
    monkeypatch.setattr(load.time, "perf_counter", lambda: next(clock))
    for process in (1, 2):
        (tmp_path / str(process)).mkdir()

    def write(user: int, idle: int, side: int) -> None:
        (tmp_path / "stat").write_text(f"cpu  {user} 0 0 {idle} 0 0 0 0 0 0\ncpu0 1 1\n")
        (tmp_path / "1/stat").write_text(f"1 (a) b) S {'0 ' * 10}{side} 0 0 0\n")
        (tmp_path / "2/stat").write_text(f"2 (c) S {'0 ' * 10}5 5 0 0\n")

    write(user=1000, idle=0, side=100)
    others = load.Others([1])
    write(user=2700, idle=300, side=1300)  # 17 seconds by all, 12 of them by the side, in 10
    assert others.busy() == 0.5
