from __future__ import annotations

import json
import math

import numpy as np
import pytest

from rlhf_jax.report.figures import figure_tables, main_names, shown, side_by_side, with_error
from rlhf_jax.report.run_report import run_report, runs_report
from rlhf_jax.report.runs import POINTS, Damaged, Figure, combine, read_run, thin
from rlhf_jax.report.study import Curve, StudyResult, write_study

PPO = ("score", "gold", "kl_sequence", "rollout_entropy", "length", "kl_coef", "explained_variance", "clip_fraction")


def write_run(directory, *, seeds=2, name="made/up", kl_coef=0.1):
    """A run directory of all stages, as if it had run."""
    directory.mkdir(parents=True)
    config = {"name": name, "scale": "cpu", "ppo": {"kl_coef": kl_coef}}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "environment.json").write_text(json.dumps({"jax": {"devices": {"TPU v5": 4}}}))
    verdicts = [
        {"signature": "PPO helps", "statistic": "gain > 0", "value": 0.25, "interval": [0.1, 0.4], "seeds": 2, "verdict": "holds"},
        {"signature": "ink is red", "statistic": "red", "value": None, "interval": None, "seeds": 2, "verdict": "inconclusive"},
    ]  # fmt: skip
    (directory / "verdicts.json").write_text(json.dumps(verdicts))
    for seed in range(seeds):
        folder = directory / f"seed_{seed}"
        folder.mkdir()
        lines = [{"step": n, "stage": "sft", "nll": 3.0 - n + seed} for n in range(3)]
        lines += [{"step": n, "stage": "sft/held_out", "nll": 3.5 - n} for n in (0, 3)]
        lines += [{"step": n, "stage": "reward", "accuracy": 0.5, "loss": 0.7} for n in range(3)]
        lines += [{"step": n, "stage": "ppo"} | dict.fromkeys(PPO, 0.1 * n) for n in range(4)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        figures = {
            "policy/parameters": 100.0,
            "sft/gold": 0.5 + 0.1 * seed,
            "sft/gold_error": 0.01,
            "ppo/gold": 0.75,
            "ppo/gold_error": 0.02,
            "reward/accuracy": 0.7,
            "reward/accuracy_low": 0.6,
            "reward/accuracy_high": 0.8,
            "reward/bayes_accuracy": 0.9,
            "reward/longer_wins": 0.55,
            "seconds/sft": 65.0,
        }
        (folder / "summary.json").write_text(json.dumps(figures))
        samples = [{"prompt": "2+2?", "sft": "5", "sft gold": 0.0, "sft score": -1.5, "ppo": "vier", "ppo gold": 1.0}]
        (folder / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
        (folder / "calibration.json").write_text(json.dumps({"confidence": [0.6, 0.9, 0.5], "right": [0, 1, 0.5]}))
    return directory


def test_the_page_shows_verdicts_figures_curves_of_every_stage_samples_and_config(tmp_path):
    page = run_report(read_run(write_run(tmp_path / "run")))
    for words in ("made/up", "2 seeds", "4 x TPU v5", "1 min 05 s", "PPO helps", "holds", "[0.1, 0.4]", "inconclusive"):
        assert words in page
    for title in ("Supervised fine-tuning", "Reward model", "PPO", "Samples", "Bayes ceiling", "longer answer wins"):
        assert title in page
    for title in (
        "Score",
        "Gold reward",
        "KL to the reference",
        "Entropy",
        "Length",
        "KL coefficient",
        "Clip fraction",
    ):
        assert f">{title}</text>" in page
    for words in ("2+2?", "vier", "gold 0, score -1.5", "gold 1", "0.550 ± 0.050", "kl_coef"):
        assert words in page


def test_sections_without_data_do_not_appear(tmp_path):
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / "config.json").write_text('{"name": "just begun", "scale": "cpu"}')
    page = run_report(read_run(directory))
    assert "just begun" in page
    assert "0 seeds" in page
    for title in ("Verdicts", "Figures", "Supervised fine-tuning", "Reward model", "PPO", "Samples"):
        assert f"<h2>{title}</h2>" not in page


def test_a_seed_that_is_still_running_gives_its_curves_and_no_figures(tmp_path):
    directory = write_run(tmp_path / "run")
    (directory / "seed_1" / "summary.json").unlink()
    run = read_run(directory)
    assert run.figures["sft/gold"].values == (0.5,)
    assert "One seed: ±" in run_report(run)
    np.testing.assert_array_equal(run.curve("sft", "nll")[1], [[3, 2, 1], [4, 3, 2]])


def test_a_curve_has_the_steps_that_all_its_seeds_have(tmp_path):
    directory = write_run(tmp_path / "run")
    path = directory / "seed_1" / "metrics.jsonl"
    path.write_text('{"step": 1, "stage": "sft", "nll": 9.0}\n')
    run = read_run(directory)
    steps, values = run.curve("sft", "nll")
    np.testing.assert_array_equal(steps, [1])
    np.testing.assert_array_equal(values, [[2], [9]])
    assert run.curve("ppo", "score")[1].shape == (1, 4)
    assert run.curve("ppo", "nothing") is None


def test_seeds_are_in_the_order_of_their_numbers(tmp_path):
    run = read_run(write_run(tmp_path / "run", seeds=11))
    assert [seed.number for seed in run.seeds] == list(range(11))


def test_ties_between_scores_are_left_out_of_the_calibration(tmp_path):
    directory = write_run(tmp_path / "run", seeds=1)
    assert "Calibration" in run_report(read_run(directory))
    (directory / "seed_0" / "calibration.json").write_text('{"confidence": [0.5], "right": [0.5]}')
    assert "Calibration" not in run_report(read_run(directory))


def test_runs_side_by_side_have_a_column_and_a_curve_each_and_say_where_their_configs_differ(tmp_path):
    runs = [read_run(write_run(tmp_path / name, kl_coef=kl)) for name, kl in (("weak", 0.1), ("strong", 0.3))]
    page = runs_report(runs)
    head = page[page.index("<th>figure</th>") :]
    assert head.index("<th>weak</th>") < head.index("<th>strong</th>") < head.index("</tr>")
    assert "<td>ppo.kl_coef</td><td>0.1</td><td>0.3</td>" in page
    assert "<td>scale</td>" not in page
    plots = 2 + 2 + len(PPO)  # the loss of SFT, train and held out; accuracy and loss of the reward model, train only
    assert page.count(">weak</text>") == page.count(">strong</text>") == plots
    assert "Loss, held out, weak" not in page


def test_the_plots_of_studies_stand_beside_each_other_by_their_titles(tmp_path):
    for name, titles in (("one", ("Gap", "Entropy")), ("other", ("Gap",))):
        curves = [Curve(title, "steps", "nats", {"rloo": ([1, 2], [0.5, 0.25])}) for title in titles]
        write_study(write_run(tmp_path / name), 0, 2, StudyResult({"gap": [0.1, 0.2]}, curves))
    page = runs_report([read_run(tmp_path / name) for name in ("one", "other")])
    places = [page.find(f">{title}</text>") for title in ("Gap, one", "Gap, other", "Entropy, one")]
    assert -1 not in places and places == sorted(places)
    assert "Entropy, other" not in page


def test_runs_of_one_directory_name_are_told_apart_by_their_paths(tmp_path):
    runs = [read_run(write_run(tmp_path / parent / "ppo")) for parent in ("a", "b")]
    assert f"<th>{tmp_path / 'a' / 'ppo'}</th>" in runs_report(runs)


def test_a_line_that_only_one_run_has_says_whose_it_is(tmp_path):
    runs = [read_run(write_run(tmp_path / name)) for name in ("whole", "sft_only")]
    for folder in (tmp_path / "sft_only").glob("seed_*"):
        folder.joinpath("metrics.jsonl").write_text('{"step": 0, "stage": "sft", "nll": 1.0}\n')
    page = runs_report([runs[0], read_run(tmp_path / "sft_only")])
    assert "Loss, held out, whole" in page
    assert "Score, whole" in page


def test_a_directory_without_a_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} holds no run"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("verdicts.json", b"[{", r"verdicts\.json is not JSON"),
        ("config.json", b"[1]", r"config\.json holds \[1\], where an object should be"),
        ("environment.json", b"null", r"environment\.json holds null, where an object"),
        ("plots.json", b"[{}]", r"plots\.json holds no plots"),
        ("plots.json", b"[3]", r"plots\.json holds no plots"),
        ("seed_0/summary.json", b"\xff", r"seed_0/summary\.json is not JSON"),
        ("seed_0/summary.json", b"[]", r"summary\.json holds \[\], where an object"),
        ("seed_0/summary.json", b'{"a": "x"}', r"summary\.json: 'a' is 'x'; it must be a number"),
        ("seed_0/summary.json", b'{"a": true}', r"summary\.json: 'a' is True"),
        ("seed_0/metrics.jsonl", b"cheese\n", r"metrics\.jsonl:1: not JSON"),
        ("seed_0/samples.jsonl", b'{"prompt": ""}\n{', r"samples\.jsonl:2 is not JSON"),
        ("seed_0/samples.jsonl", b"\xff", r"samples\.jsonl:1 is not JSON"),
        ("seed_0/samples.jsonl", b"3", r"samples\.jsonl:1 holds 3, where an object should be"),
        ("seed_0/calibration.json", b"[]", r"calibration\.json holds \[\], where an object"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, file, text, said):
    directory = write_run(tmp_path / "run")
    (directory / file).write_bytes(text)
    with pytest.raises(Damaged, match=said):
        read_run(directory)


def test_figures_of_seeds_are_means_with_their_standard_error_by_hand():
    figures = combine([{"a": 1.0, "b": 5.0}, {"a": 3.0}, {"a": 5.0, "b": None}])
    # a: mean 3, sd 2, error 2 / sqrt 3
    assert figures["a"] == Figure(3.0, 2 / math.sqrt(3), (1.0, 3.0, 5.0))
    assert math.isnan(figures["b"].mean)
    assert math.isnan(combine([{"a": 1.0}])["a"].error)


def test_spreads_and_seconds_are_not_figures_of_their_own_and_a_lone_error_is():
    names = ("gold", "gold_error", "accuracy", "accuracy_low", "accuracy_high", "calibration_error", "seconds/sft")
    assert main_names(combine([dict.fromkeys(names, 1.0)])) == ["gold", "accuracy", "calibration_error"]


def test_with_one_seed_the_spread_over_prompts_or_pairs_is_shown():
    figures = combine(
        [{"gold": 0.5, "gold_error": 0.012, "right": 0.7, "right_low": 0.6, "right_high": 0.8, "plain": 2.0}]
    )
    assert [shown(figures, name) for name in ("gold", "right", "plain")] == ["0.500 ± 0.012", "0.7 [0.6, 0.8]", "2"]


@pytest.mark.parametrize(
    ("mean", "error", "text"),
    [(0.51234, 0.0139, "0.512 ± 0.014"), (3677.4, 2345.6, "3,677 ± 2,346"), (0.5, 0.0, "0.5"), (0.5, math.nan, "0.5")],
)
def test_a_mean_is_rounded_where_its_error_begins(mean, error, text):
    assert with_error(mean, error) == text


def test_policies_stand_side_by_side_and_what_one_alone_has_stands_below():
    figures = combine([{"sft/gold": 0.5, "ppo/gold": 0.75, "untrained/kl": 1.0, "sft/kl": 0.0, "sft/speed": 7.0}])
    policies, others = figure_tables(figures)
    assert policies.columns == ("figure", "untrained", "sft", "ppo")
    assert policies.rows == (("gold", "–", "0.5", "0.75"), ("kl", "1", "0", "–"))
    assert others.rows == (("sft/speed", "7"),)


def test_a_figure_that_a_run_lacks_is_a_dash_in_its_column():
    one, two = combine([{"a": 1.0, "b": 2.0}]), combine([{"b": 3.0, "c": 4.0}])
    table = side_by_side({"one": one, "two": two})
    assert table.rows == (("a", "1", "–"), ("b", "2", "3"), ("c", "–", "4"))


def test_a_long_curve_becomes_means_over_neighbours_with_the_same_total():
    n = 5 * POINTS - 3
    steps, values = thin(np.arange(n), np.stack([np.arange(n, dtype=float), np.ones(n)]))
    assert len(steps) == POINTS
    assert values.shape == (2, POINTS)
    np.testing.assert_allclose(steps[:2], [2, 7])
    np.testing.assert_allclose(values[0], steps)
    np.testing.assert_array_equal(values[1], 1)
    short = np.arange(POINTS), np.ones((1, POINTS))
    assert thin(*short) == short
