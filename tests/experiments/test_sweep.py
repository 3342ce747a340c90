"""Sweeps: what is asked for is what runs, nothing of it is lost by what fails, and a cell is a run like any other."""

from __future__ import annotations

import csv
import json
import types
import weakref

import jax
import jaxtyping
import numpy as np
import pytest

from experiments.execute import Plan
from experiments.registry import find
from experiments.run import main
from experiments.sweep import command as commands
from experiments.sweep import groups
from experiments.sweep.axes import parse_axes, seeds_of
from experiments.sweep.cells import Cell
from rlhf_jax.lanes import together
from rlhf_jax.lanes.together import TooLarge
from rlhf_jax.loops.preemption import Notice
from rlhf_jax.report.metrics import read_metrics

TINY = [
    *("policy.width=16", "policy.layers=1", "policy.mlp=32", "evaluation.prompts=8", "evaluation.rows=8"),
    *("evaluation.new_tokens=4", "world.demonstrations=64", "world.prompts=32"),
]
SFT = [*TINY, "sft.optim.steps=3", "sft.optim.rows=8", "sft.optim.microbatches=1"]
PPO = [*TINY, "ppo.iterations=3", "ppo.new_tokens=4"]


@pytest.fixture(autouse=True)
def unchecked_annotations():
    """As in tests/lanes."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def command(name, settings, *more):
    return [name, *(part for setting in settings for part in ("--set", setting)), *map(str, more)]


def rows_of(directory):
    return list(csv.DictReader((directory / "sweep.csv").read_text().splitlines()))


@pytest.mark.parametrize(
    ("texts", "axes"),
    [
        (["a.b=1,2.5, x"], {"a.b": ("1", "2.5", "x")}),
        (["seed=3..5"], {"seed": ("3", "4", "5")}),
        (["a=none", 'b=["x", "y"],[[3,4],5]'], {"a": ("none",), "b": ('["x", "y"]', "[[3,4],5]")}),
        (['text.template="a,b",c'], {"text.template": ("a,b", "c")}),
        (['a="\\n","The ","none","x"'], {"a": ('"\\n"', '"The "', '"none"', "x")}),
        (["a.b = 1e-3 , 1e-4"], {"a.b": ("1e-3", "1e-4")}),
    ],
)
def test_axes_are_lists_of_values_or_ranges(texts, axes):
    assert parse_axes(texts) == axes


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["a.b"], "is not of the form"),
        (["=1"], "is not of the form"),
        (["a="], "is not of the form"),
        (["a=1,2,1"], "a value stands there twice"),
        (["a=1", "a=2"], "names a twice"),
        (["a=5..3"], "there is no value"),
        (["a=[1,2"], "brackets do not pair"),
        (["a=1],2"], "brackets do not pair"),
        (['a=x"y,z'], "quotes do not pair"),
    ],
)
def test_axes_that_make_no_sense_are_refused(texts, said):
    with pytest.raises(ValueError, match=said):
        parse_axes(texts)


def test_seeds_follow_each_other():
    assert seeds_of(("2", "3")) == range(2, 4)
    for values in (("1", "3"), ("0.5",), ("a", "b")):
        with pytest.raises(ValueError, match="seeds"):
            seeds_of(values)


@pytest.mark.slow
def test_a_sweep_is_the_runs_that_it_stands_for(tmp_path, capsys):
    over = ["--over", "ppo.optim.lr=1e-3,1e-2", "--over", "seed=4..5", "--over", "ppo.entropy_coef=0.0,0.01"]
    assert main(["sweep", *command("smoke/ppo", PPO, *over, "--workdir", tmp_path / "sweep")]) == 0
    said = capsys.readouterr()
    # The coefficient of a term that is left out at 0 decides what is compiled: two programs of four lanes.
    assert "8 runs side by side" in said.err and said.err.count("4 runs side by side") == 2
    assert "entropy_coef decides what is compiled" in said.err
    place = tmp_path / "sweep" / "ppo.optim.lr=1e-2,ppo.entropy_coef=0.01"
    settings = [*PPO, "ppo.optim.lr=1e-2", "ppo.entropy_coef=0.01", "seed=4"]
    assert main(["run", *command("smoke/ppo", settings, "--seeds", 2, "--workdir", tmp_path / "run")]) == 0
    for seed in (4, 5):
        mine, alone = (read_metrics(where / f"seed_{seed}")["ppo"] for where in (place, tmp_path / "run"))
        for metric in alone.keys() - {"sampler_gap"}:
            np.testing.assert_allclose(mine[metric].values, alone[metric].values, rtol=1e-4, atol=1e-5)
    assert json.loads((place / "config.json").read_text()) == json.loads((tmp_path / "run/config.json").read_text())
    rows = rows_of(tmp_path / "sweep")
    assert len(rows) == 8 and {row["seed"] for row in rows} == {"4", "5"}
    summary = json.loads((place / "seed_5" / "summary.json").read_text())
    row = next(r for r in rows if (r["ppo.optim.lr"], r["ppo.entropy_coef"], r["seed"]) == ("1e-2", "0.01", "5"))
    assert float(row["ppo/gold"]) == summary["ppo/gold"]
    assert "ppo.optim.lr" in (tmp_path / "sweep" / "report.html").read_text()


@pytest.mark.slow
def test_what_fails_is_told_and_tried_again_and_the_rest_is_there(tmp_path, capsys, monkeypatch):
    run_one, directory = groups.run_one, tmp_path / "sweep"

    def fails(cell, seed, programs=None):
        if seed == 1 and cell.values == ("1e-2",):
            raise RuntimeError("the disk is made of cheese")
        run_one(cell, seed, programs)

    asked = command("smoke/sft", SFT, "--over", "sft.optim.lr=1e-3,1e-2", "--over", "seed=0..1", "--workdir", directory)
    monkeypatch.setattr(groups, "run_one", fails)
    assert main(["sweep", *asked]) == 1
    said = capsys.readouterr()
    assert "made of cheese" in said.err and "1 runs failed" in said.out
    assert len(rows_of(directory)) == 3 and "made of cheese" in (directory / "report.html").read_text()
    assert "cheese" in (directory / "sft.optim.lr=1e-2" / "seed_1" / "error.txt").read_text()
    kept = (directory / "sft.optim.lr=1e-2" / "seed_0" / "summary.json").stat().st_mtime_ns

    monkeypatch.setattr(groups, "run_one", run_one)
    assert main(["sweep", *asked]) == 2 and "go on with --resume" in capsys.readouterr().err
    assert main(["sweep", *asked, "--resume"]) == 0
    assert len(rows_of(directory)) == 4 and not list(directory.rglob("error.txt"))
    assert (directory / "sft.optim.lr=1e-2" / "seed_0" / "summary.json").stat().st_mtime_ns == kept
    # More values may be asked for later, but of nothing else.
    elsewhere = [*asked, "--over", "sft.optim.b2=0.9", "--resume"]
    assert main(["sweep", *elsewhere]) == 2
    assert "holds a sweep over sft.optim.lr, not over sft.optim.lr, sft.optim.b2" in capsys.readouterr().err
    asked[asked.index("sft.optim.lr=1e-3,1e-2")] = "sft.optim.lr=1e-3,1e-2,3e-3"
    assert main(["sweep", *asked, "--resume", "--show", "sft/held_out_nll_after"]) == 0
    assert len(rows_of(directory)) == 6 and "sft/held_out_nll_after" in capsys.readouterr().out
    # A table is of one config, and loses nothing that it had.
    mixed = [*asked, "--set", "sft.optim.b2=0.9", "--over", "sft.optim.lr=1e-3,1e-2,3e-3,1e-4", "--resume"]
    mixed.remove("--over")
    mixed.remove("sft.optim.lr=1e-3,1e-2,3e-3")
    assert main(["sweep", *mixed]) == 2
    assert "holds a run of another config" in capsys.readouterr().err
    fewer = ["sft.optim.lr=3e-3,1e-4" if word == "sft.optim.lr=1e-3,1e-2,3e-3" else word for word in asked]
    assert main(["sweep", *fewer, "--resume"]) == 2
    lost = "holds finished runs of sft.optim.lr=1e-3, sft.optim.lr=1e-2 too, which its table would lose"
    assert lost in capsys.readouterr().err
    assert len(rows_of(directory)) == 6 and not (directory / "sft.optim.lr=1e-4").exists()
    # A file that something else has damaged is named, and keeps nobody from the table of the rest.
    damaged = directory / "sft.optim.lr=1e-3" / "seed_1" / "metrics.jsonl"
    damaged.write_text("cheese\n")
    assert main(["sweep", *asked, "--resume"]) == 1
    said = capsys.readouterr()
    assert f"{damaged}:1: not JSON" in said.err and "0, 2 failed" in said.out
    page = (directory / "report.html").read_text()
    assert len(rows_of(directory)) == 4 and "not JSON" in page and "4 of 6 runs finished" in page


@pytest.mark.slow
def test_as_many_go_side_by_side_as_the_memory_holds(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(together, "memory_of", lambda device, devices: 2**20)
    # Policies that are still to be evaluated wait in the memory of the host, each on the device of its lane.
    asked = command("smoke/sft", [*SFT, "waiting=host"], "--over", "seed=0..3", "--workdir", tmp_path / "sweep")
    assert main(["sweep", *asked]) == 0
    said = capsys.readouterr().err
    assert "a program needs" in said and "4 runs side by side" in said and len(rows_of(tmp_path / "sweep")) == 4


@pytest.mark.slow
def test_other_shapes_and_meshes_have_processes_of_their_own(tmp_path, capfd):
    over = ["--over", "mesh.data=1,2", "--over", "sft.optim.lr=1e-3,1e-2", "--workdir", tmp_path / "sweep"]
    asked = command("smoke/sft", SFT, *over)
    assert main(["sweep", *asked, "--list"]) == 0
    assert capfd.readouterr().out.splitlines() == [
        "group 0: mesh.data=1,sft.optim.lr=1e-3, mesh.data=1,sft.optim.lr=1e-2",
        "group 1: mesh.data=2,sft.optim.lr=1e-3",
        "group 2: mesh.data=2,sft.optim.lr=1e-2",
    ]
    assert main(["sweep", *asked, "--group", "2"]) == 0  # as a job of its own
    assert main(["sweep", *asked, "--resume", "--show", "sft/held_out_nll_afterr"]) == 2
    said = capfd.readouterr()
    assert "group 2 of 2: 1 runs of 1 cells" in said.err, "the third has been run"
    assert "no figure 'sft/held_out_nll_afterr'" in said.err
    rows = rows_of(tmp_path / "sweep")
    assert len(rows) == 4 and (tmp_path / "sweep" / "report.html").is_file(), "all is there but the figure"
    losses = {(row["mesh.data"], row["sft.optim.lr"]): float(row["sft/held_out_nll_after"]) for row in rows}
    for lr in ("1e-3", "1e-2"):
        assert losses["1", lr] == pytest.approx(losses["2", lr], abs=1e-4)
    assert losses["1", "1e-3"] != pytest.approx(losses["1", "1e-2"], abs=1e-3)


def test_a_process_that_ends_before_it_has_written_anything_is_told_and_the_rest_is_there(
    tmp_path, capsys, monkeypatch
):
    settings = ["steps=25", "reference_steps=5", "rows=32", "algorithms=" + '["rloo"]']
    asked = command("exact/on_policy", settings, "--over", "width=8,16", "--workdir", tmp_path / "sweep")

    class Killed:
        def __init__(self, command):
            self.group = command[-1]
            self.real = None if self.group == "1" else real(command)

        def wait(self):
            return -9 if self.real is None else self.real.wait()

    told, update = [], jax.config.update
    monkeypatch.setattr(jax.config, "update", lambda name, value: told.append((name, value)) or update(name, value))
    real = commands.subprocess.Popen
    monkeypatch.setattr(commands, "subprocess", types.SimpleNamespace(Popen=Killed))
    assert main(["sweep", *asked]) == 1
    assert "the process of its group ended with -9" in capsys.readouterr().err
    assert ("jax_platforms", "cpu") in told, "an accelerator is for the processes of the groups"
    assert [row["width"] for row in rows_of(tmp_path / "sweep")] == ["8"]


def test_a_study_is_swept_too(tmp_path):
    asked = command("exact/bon_kl", ["reference_steps=5"], "--over", "beta=0.2,0.3", "--over", "seed=0..1")
    assert main(["sweep", *asked, "--workdir", str(tmp_path / "sweep")]) == 0
    assert {(row["beta"], row["seed"]) for row in rows_of(tmp_path / "sweep")} == {
        (beta, seed) for beta in ("0.2", "0.3") for seed in ("0", "1")
    }


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--over", "ppo.klcoef=0.1"], "ppo.klcoef=0.1: no field 'ppo.klcoef'; did you mean kl_coef"),
        (["--over", "ppo.gamma=0.9,1.5"], "ppo.gamma=1.5: PPO.gamma is 1.5; it must lie in [0, 1]"),
        (["--over", "seed=1,3"], "seeds follow each other"),
        (["--over", "ppo.gamma=0.9", "--group", "3"], "there are groups 0 to 0"),
        (["--over", "text.template=a/b,a:b"], "two cells would be written to"),
        (["--over", "ppo.kl_coef=0.1,1e-1"], "ppo.kl_coef=0.1 and ppo.kl_coef=1e-1 are the same run"),
        (["--over", "ppo.kl_coef=0.1,inf"], "ppo.kl_coef=inf: ppo.kl_coef is inf; expected a finite number"),
    ],
)
def test_mistakes_of_the_caller_are_told_before_anything_is_written(asked, said, tmp_path, capsys):
    assert main(["sweep", "smoke/ppo", *asked, "--workdir", str(tmp_path / "sweep")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()


def test_a_directory_of_something_else_is_not_written_to(tmp_path, capsys):
    (tmp_path / "letter.txt").write_text("Dear")
    assert main(["sweep", "smoke/ppo", "--over", "seed=0..1", "--workdir", str(tmp_path)]) == 2
    assert "holds no sweep" in capsys.readouterr().err


def test_what_the_experiment_is_without_the_axes_need_not_be_valid(tmp_path, capsys):
    settings = ["ppo.baseline=leave_one_out"]  # which one sample to a prompt does not do for
    asked = command("smoke/ppo", [*settings, "ppo.samples=1"], "--over", "ppo.samples=2,4", "--over", "seed=0..1")
    assert main(["run", *command("smoke/ppo", [*settings, "ppo.samples=1"]), "--workdir", str(tmp_path / "run")]) == 2
    assert main(["sweep", *asked, "--workdir", str(tmp_path / "sweep"), "--list"]) == 0
    assert "ppo.samples=2" in capsys.readouterr().out


def cells_of(tmp_path, count):
    entry = find("smoke/sft")
    experiment = entry.experiment("cpu")
    plan = Plan(entry, experiment, tmp_path / "cell", count, True, None, Notice())
    cell = Cell((), plan)
    return [(cell, seed) for seed in range(count)]


def test_a_chunk_leaves_nothing_in_the_way_of_the_next_and_the_rest_follows(tmp_path, monkeypatch):
    chunks, held = [], []

    class Array:
        """What a lane has on its device."""

    def too_large():
        array = Array()
        held.append(weakref.ref(array))
        try:
            raise TooLarge("a program needs more", 1)
        except TooLarge as error:
            return error

    def lanes(works, meshes, before):
        assert not any(array() is not None for array in held), "the chunk before still has its arrays"
        chunks.append(len(works))
        if len(works) < 3:
            return [None] * len(works)
        return [too_large() for _ in works]

    monkeypatch.setattr(together, "run_lanes", lanes)
    monkeypatch.setattr(groups, "MOST", 5)
    monkeypatch.setattr("rlhf_jax.report.environment.cores", lambda: 2)
    groups.side_by_side(cells_of(tmp_path, 7))
    assert chunks == [5, 2, 2, 1, 2] and sum(chunks[1:]) == 7


def test_a_lane_that_runs_out_of_memory_by_itself_goes_again_among_fewer(tmp_path, monkeypatch, capsys):
    sizes = []

    def lanes(works, meshes, before):
        sizes.append(len(works))
        outcomes = []
        for work in works:
            try:
                outcomes.append(work(None))
            except TooLarge as error:
                outcomes.append(error)
        return outcomes

    def run_one(cell, seed, programs):
        if sizes[-1] > 1:
            raise RuntimeError("RESOURCE_EXHAUSTED: out of memory while weights are read")

    monkeypatch.setattr(together, "run_lanes", lanes)
    monkeypatch.setattr(groups, "run_one", run_one)
    groups.side_by_side(cells_of(tmp_path, 3))
    assert sizes[0] == 3 and sizes[-1] == 1 and sizes.count(1) == 3
    assert "failed" not in capsys.readouterr().err
