from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from experiments import execute, run
from experiments.registry import Claim, Entry, find
from rlhf_jax.files import exclusive
from rlhf_jax.report.runs import Figure, combine

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "policy.width": 16,
    "policy.layers": 1,
    "sft.optim.steps": 4,
    "sft.optim.rows": 8,
    "evaluation.prompts": 8,
    "evaluation.rows": 8,
    "world.demonstrations": 32,
    "checkpoint_every": 2,
}


def command(workdir, *more, name="smoke/sft", **changes):
    """Arguments of a tiny run; keyword arguments are overrides with __ for a dot."""
    fields = (TINY if name == "smoke/sft" else {}) | {key.replace("__", "."): value for key, value in changes.items()}
    settings = [word for field, value in fields.items() for word in ("--set", f"{field}={value}")]
    return ["run", name, "--workdir", str(workdir), *settings, *more]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The directory of a run of two seeds."""
    directory = tmp_path_factory.mktemp("runs") / "tiny"
    assert run.main(command(directory, "--seeds", "2", seed=5)) == 0
    return directory


def error_of(capsys, arguments) -> str:
    """The error that a command ends with, when it is one that the caller can mend."""
    assert run.main(arguments) == 2
    before, error, said = capsys.readouterr().err.partition("error: ")
    assert error
    assert "Traceback" not in before + said
    return said


# --- what a run leaves ---------------------------------------------------------------------------------------------


def test_a_run_leaves_its_files_and_a_folder_per_seed(finished):
    assert {path.name for path in finished.iterdir()} == {
        "config.json", "environment.json", "experiment.json", "summary.json", "verdicts.json", "report.html",
        "seed_5", "seed_6",
    }  # fmt: skip
    for seed in ("seed_5", "seed_6"):
        names = {path.name for path in (finished / seed).iterdir()}
        assert {"metrics.jsonl", "tensorboard", "checkpoints", "summary.json", "samples.jsonl"} <= names
    config = json.loads((finished / "config.json").read_text())
    assert config["seed"] == 5
    assert config["sft"]["optim"]["steps"] == 4
    assert "packages" in json.loads((finished / "environment.json").read_text())


def test_the_summary_has_mean_error_and_a_value_per_seed(finished):
    summary = json.loads((finished / "summary.json").read_text())
    values = [json.loads((finished / seed / "summary.json").read_text())["sft/gold"] for seed in ("seed_5", "seed_6")]
    figure = summary["sft/held_out_nll_after"]
    assert summary["sft/gold"]["values"] == values
    assert figure["mean"] == pytest.approx(sum(figure["values"]) / 2)
    assert figure["error"] == pytest.approx(abs(figure["values"][0] - figure["values"][1]) / 2)
    assert figure["error"] > 0, "two seeds gave the same loss"


def test_the_report_is_one_page_with_the_curves_of_both_seeds(finished):
    page = (finished / "report.html").read_text()
    assert "smoke/sft" in page
    assert "2 seeds" in page
    assert "Supervised fine-tuning" in page


def test_resuming_a_finished_run_runs_no_seed_again_and_prints_the_figures(finished, capsys, monkeypatch):
    monkeypatch.setattr(execute, "run_seed", lambda *_: pytest.fail("a finished seed ran again"))
    assert run.main(command(finished, "--resume", seed=5)) == 0
    printed = capsys.readouterr().out
    assert "sft/held_out_nll_after" in printed
    assert "Means over 2 seeds" in printed
    assert f"report: {finished / 'report.html'}" in printed
    assert len(json.loads((finished / "environment.json").read_text())["resumed"]) >= 1


def test_more_seeds_can_be_asked_for_when_resuming(finished, monkeypatch):
    asked = []
    monkeypatch.setattr(
        execute, "run_seed", lambda experiment, directory, *rest: asked.append((experiment.seed, directory))
    )
    assert run.main(command(finished, "--resume", "--seeds", "3", seed=5)) == 0
    assert asked == [(7, finished / "seed_7")]


def test_resume_starts_where_there_is_nothing_yet(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(execute, "run_seed", lambda experiment, directory, *rest: asked.append(experiment.seed))
    assert run.main(command(tmp_path / "new", "--resume")) == 0
    assert asked == [0]


# --- what the caller can mend --------------------------------------------------------------------------------------


def test_an_existing_run_of_the_same_config_suggests_to_resume(finished, capsys):
    said = error_of(capsys, command(finished, seed=5))
    assert "holds this run already; continue it with --resume, or choose another --workdir" in said


@pytest.mark.parametrize("more", [(), ("--resume",)])
def test_an_existing_run_of_another_config_is_never_touched_and_the_difference_is_shown(finished, capsys, more):
    before = (finished / "config.json").read_bytes()
    said = error_of(capsys, command(finished, *more, seed=5, sft__optim__lr=0.5))
    assert "sft.optim.lr: 0.003 -> 0.5" in said
    assert "seed" not in said.partition("difference")[2]
    assert (finished / "config.json").read_bytes() == before


def test_a_directory_with_other_things_in_it_is_refused(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("...")
    assert "is not empty and holds no run" in error_of(capsys, command(tmp_path))
    assert "is a file" in error_of(capsys, command(tmp_path / "thesis.tex"))
    assert "/proc/runs" in error_of(capsys, command(Path("/proc/runs")))  # where not even root can write


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sft__optim__lrr": 1}, "no field 'sft.optim.lrr'; did you mean lr"),
        ({"sft__optim__steps": "many"}, "sft.optim.steps=many: expected a whole number"),
        ({"sft__optim__steps": 1.5}, "sft.optim.steps is 1.5; expected a whole number"),
        ({"sft__optim__lr": -1}, "Optim.lr is -1.0; it must be above 0"),
        ({"sft__optim__schedule": "sine"}, "expected 'constant' or 'linear' or 'cosine'"),
        ({"ppo__clip": 0.1}, "this experiment has no 'ppo'"),
        ({"mesh__tensor": 3}, "policy.heads=4 is not a multiple of mesh.tensor=3"),
        ({"mesh__data": 3}, "does not split over mesh data x fsdp = 3 devices"),
        (
            {"mesh__data": 4, "mesh__tensor": 4},
            "mesh data=4, fsdp=1, tensor=4, context=1 needs 16 devices; there are 8",
        ),
        ({"text__tokenizer": "train:lots"}, "text.tokenizer='train:lots' must be train:VOCAB"),
        ({"text__tokenizer": "nowhere.model"}, "nowhere.model; the experiment needs it"),
        ({"checkpoint": "nowhere.bin"}, "nowhere.bin; the experiment needs it"),
        ({"sft__data__sources": '[["alpaka:x.json", 1.0]]'}, "no source 'alpaka'; did you mean alpaca"),
        ({"sft__data__sources": '[["alpaca:x.json", 1.0]]'}, "no file matches 'x.json'"),
    ],
)
def test_a_wrong_setting_is_said_in_one_line_before_anything_is_written(tmp_path, capsys, changes, message):
    jax.devices()  # have started: as many as are asked for could be had before
    said = error_of(capsys, command(tmp_path / "run", "--data-root", str(tmp_path), **changes))
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_name_or_scale_that_does_not_exist_is_answered_with_those_that_do(tmp_path, capsys):
    assert "no experiment 'smoke/stf'; did you mean smoke/sft" in error_of(capsys, ["run", "smoke/stf"])
    assert "has no scale 'tpu'; it has cpu" in error_of(capsys, ["show", "smoke/sft", "--scale", "tpu"])
    assert "'lr' is not of the form a.b=c" in error_of(capsys, ["show", "smoke/sft", "--set", "lr"])
    assert "holds no run" in error_of(capsys, ["report", str(tmp_path)])


def test_a_missing_data_root_is_named_before_anything_is_written(tmp_path, capsys):
    arguments = command(
        tmp_path / "run", "--data-root", str(tmp_path / "no"), sft__data__sources='[["hh:*.jsonl", 1.0]]'
    )
    assert f"no data folder: looked for {tmp_path / 'no'}" in error_of(capsys, arguments)
    assert not (tmp_path / "run").exists()


def test_a_malformed_data_line_is_named_with_file_and_line(tmp_path, capsys):
    (tmp_path / "rows.json").write_text('{"instruction": "a", "input": "", "output": "b"}\n{"instruction": "a"}\n')
    arguments = command(tmp_path / "run", "--data-root", str(tmp_path), sft__data__sources='[["alpaca:*.json", 1.0]]')
    assert "rows.json:2: no field 'output'; the row has 'instruction'" in error_of(capsys, arguments)


def test_a_scale_for_accelerators_is_refused_on_a_machine_without_one(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(execute, "cpu_is_asked_for", lambda: False)
    said = error_of(capsys, command(tmp_path / "run", scale="gpu"))
    assert "scale 'gpu' needs an accelerator" in said
    assert not (tmp_path / "run").exists()


def test_argparse_refuses_a_number_of_seeds_that_is_none(capsys):
    for count in ("0", "-1", "two"):
        with pytest.raises(SystemExit, match="2"):
            run.main(["run", "smoke/sft", "--seeds", count])
        assert f"{count!r} is not a whole number above 0" in capsys.readouterr().err


# --- what the caller cannot mend, and interruptions -----------------------------------------------------------------


def test_the_traceback_of_a_user_error_is_shown_on_demand(monkeypatch):
    monkeypatch.setenv(run.DEBUG, "1")
    with pytest.raises(KeyError, match="did you mean"):
        run.main(["show", "smoke/stf"])


@pytest.mark.parametrize("mistake", [lambda: {}["gold"], lambda: int("x"), lambda: json.loads("{")])
def test_a_mistake_in_the_code_keeps_its_traceback(tmp_path, monkeypatch, mistake):
    monkeypatch.setattr(execute, "run_seed", lambda *_: mistake())
    with pytest.raises((KeyError, ValueError)):
        run.main(command(tmp_path / "run"))


def test_an_interrupted_run_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(execute, "run_seed", interrupt)
    arguments = ["run", "smoke/sft", "--workdir", str(tmp_path / "a run"), "--seeds", "2"]
    assert run.main(arguments) == 130
    said = capsys.readouterr().err
    assert f"run smoke/sft --workdir '{tmp_path / 'a run'}' --seeds 2 --resume" in said
    assert not (tmp_path / "a run" / "summary.json").exists()


# --- verdicts ------------------------------------------------------------------------------------------------------


def test_a_verdict_has_the_interval_of_1_96_errors_and_none_without_an_error():
    holds = execute.verdict(Claim("s", "t", 0.5, 0.1, True), 3)
    assert holds["verdict"] == "holds"
    assert holds["interval"] == pytest.approx([0.304, 0.696])
    assert execute.verdict(Claim("s", "t", 0.5, 0.1, False), 3)["verdict"] == "does not hold"
    one_seed = execute.verdict(Claim("s", "t", 0.5, float("nan"), True), 1)
    assert (one_seed["verdict"], one_seed["interval"], one_seed["value"]) == ("inconclusive", None, 0.5)


def test_a_judge_gets_a_value_per_seed_and_a_figure_that_is_missing_leaves_its_claim_open():
    def judge(figures):
        return [Claim("rises", "rise > 0", sum(figures["rise"]), 0.1, figures["rise"] == [1.0, 2.0])]

    entry = Entry("made/up", "-", "it rises", {"cpu": "-"}, find("smoke/sft").make, judge)
    (verdict,) = execute.verdicts(entry, combine([{"rise": 1.0}, {"rise": 2.0}]))
    assert (verdict["value"], verdict["seeds"], verdict["verdict"]) == (3.0, 2, "holds")
    (verdict,) = execute.verdicts(entry, {"fall": Figure(0.0, 0.0, (0.0, 0.0))})
    assert verdict["verdict"] == "inconclusive"
    assert "needs the figure 'rise'" in verdict["statistic"]


# --- the other commands --------------------------------------------------------------------------------------------


def test_list_names_every_experiment_with_its_claim(capsys):
    assert run.main(["list"]) == 0
    printed = capsys.readouterr().out
    assert "smoke/ppo" in printed
    assert "the SFT loop runs: the loss falls" in printed


def test_show_prints_what_it_is_and_the_whole_config_with_overrides(capsys):
    assert run.main(["show", "smoke/ppo", "--set", "ppo.kl_coef=0.25"]) == 0
    printed = capsys.readouterr().out
    config = json.loads(printed[printed.index("{") :])
    assert config["ppo"]["kl_coef"] == 0.25
    assert "A few iterations of PPO" in printed


def test_show_says_what_slice_an_experiment_is_laid_out_for(capsys):
    assert run.main(["show", "touvron2023/chat"]) == 0
    printed = capsys.readouterr().out
    assert "\nplanned tpu: v5p:4x4x4\n" in printed
    assert '"fsdp": 64' in printed


def test_list_and_show_answer_without_loading_jax():
    script = "import sys; from experiments.run import main; main(['show', 'smoke/sft']); sys.exit('jax' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.DEVNULL, timeout=60).returncode == 0
    )


def test_report_writes_one_page_of_several_runs(finished, tmp_path, capsys):
    out = tmp_path / "both.html"
    assert run.main(["report", str(finished), str(finished), "--out", str(out)]) == 0
    assert "Runs side by side" in out.read_text()


def test_a_mesh_of_the_cpu_gets_as_many_devices_as_it_asks_for_and_programs_are_kept(tmp_path):
    script = (
        "import dataclasses, jax\n"
        "from experiments.execute import check_devices, start_jax\n"
        "from experiments.registry import find\n"
        "from rlhf_jax.config import MeshConfig\n"
        "experiment = dataclasses.replace(find('smoke/sft').experiment('cpu'), mesh=MeshConfig(data=2, fsdp=2))\n"
        "start_jax(experiment)\n"
        "check_devices(experiment)\n"
        "print(len(jax.devices()), jax.config.jax_compilation_cache_dir)\n"
    )
    unset = ("JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS", "JAX_NUM_CPU_DEVICES")
    variables = {key: value for key, value in os.environ.items() if key not in unset}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=variables | {"JAX_PLATFORMS": "cpu", "RLHF_JAX_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split() == ["4", str(tmp_path / "xla")], done.stderr
    assert len(jax.devices()) == 8


@pytest.mark.parametrize("name", ["smoke/mesh", "smoke/context"])
def test_a_sharded_smoke_run_finishes_in_a_process_of_its_own(tmp_path, name):
    # Eight virtual devices on few threads: collectives that may run in any order wait for each other until XLA ends the process.
    arguments = [sys.executable, "-m", "experiments.run", "run", name, "--workdir", str(tmp_path / "mesh")]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "mesh" / "report.html").is_file()


@pytest.mark.parametrize(
    ("names", "said"),
    [('["rloo","rlo"]', "no algorithm 'rlo'; did you mean rloo"), ('["rloo","rloo"]', "names rloo more than once")],
)
def test_algorithms_that_cannot_be_run_are_told_before_anything_is_written(tmp_path, capsys, names, said):
    assert said in error_of(capsys, command(tmp_path / "study", name="exact/on_policy", algorithms=names))
    assert not (tmp_path / "study").exists()


def test_a_run_that_another_process_is_at_work_in_is_left_to_it(tmp_path, capsys):
    with exclusive(tmp_path / "run"):
        assert "another process is at work in" in error_of(capsys, command(tmp_path / "run"))
    assert not list((tmp_path / "run").iterdir())
