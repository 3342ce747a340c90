"""Studies of the exact world at their smallest: whole programs, their figures, and what is written."""

from __future__ import annotations

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.algorithms import ALGORITHMS, algorithm
from experiments.exact.ensembles import explore_labels
from experiments.exact.ensembles import run as run_ensembles
from experiments.exact.entries import judge_algorithms, judge_frontier, judge_placement
from experiments.exact.estimators import run as run_estimators
from experiments.exact.frontier import run_best_of_n, run_frontier
from experiments.exact.on_policy import run as run_on_policy
from experiments.exact.pairs import better_wins, sample_pairs
from experiments.exact.preference import chance_to_win, run_determinism
from experiments.exact.preference import run as run_preference
from experiments.exact.setting import open_setting, over_seeds, seed_keys
from experiments.exact.training import train_on_policy
from experiments.execute import Plan, execute
from experiments.registry import entries, find
from rlhf_jax.config.study import (
    BestOfNStudy,
    EnsembleStudy,
    EstimatorStudy,
    ExactWorldConfig,
    FrontierStudy,
    OnPolicyStudy,
    PreferenceStudy,
)
from rlhf_jax.eval import exact
from rlhf_jax.losses.preference import make_objective
from rlhf_jax.report.runs import read_run
from rlhf_jax.report.study import Curve, StudyResult, write_study

SMALL = {
    "world": ExactWorldConfig(vocab=4, length=3, prompts=2),
    "width": 16,
    "reference_steps": 60,
    "reference_rows": 64,
    "reference_lr": 1e-2,
}
ON_POLICY = OnPolicyStudy(
    name="small",
    algorithms=("rloo", "ppo"),
    steps=40,
    rows=64,
    every=10,
    lr=1e-2,
    reuse_lr=5e-3,
    value_lr=1e-2,
    **SMALL,
)
STUDIES = [name for name, entry in entries().items() if entry.run_study is not None]


@pytest.fixture(scope="module")
def result() -> StudyResult:
    return run_on_policy(ON_POLICY, 2)


@pytest.fixture(scope="module")
def setting():
    return open_setting(ON_POLICY)


@pytest.fixture(scope="module")
def reference(setting):
    return jax.jit(setting.reference)(jax.random.key(0))


def test_the_reference_writes_every_string_with_probability_1_in_all_and_rarely_repeats(setting, reference):
    logp = jax.jit(setting.logprobs)(reference)
    np.testing.assert_allclose(exact.total(logp), 1.0, atol=1e-5)
    repeats = np.array([len(words := [w for w in s if w]) - len(set(words)) for s in setting.world.strings])
    probability = np.exp(np.asarray(logp)).mean(axis=0)
    assert probability[repeats > 0].sum() < 0.2  # of the strings they are two thirds
    assert probability[repeats == 0].min() > 1e-3


def test_learning_closes_most_of_the_gap_for_every_seed(result):
    figures = result.figures
    np.testing.assert_allclose(figures["reference/total_probability"], 1.0, atol=1e-5)
    start = np.subtract(
        figures["optimum/objective"], figures["reference/reward"]
    )  # the reference's own gap: its KL is 0
    for name in ("rloo", "ppo"):
        gap = np.asarray(figures[f"{name}/gap"])
        assert gap.shape == (2,)
        assert (gap > 0).all()
        assert (gap < start / 4).all()


def test_seeds_in_one_program_are_the_seeds_one_by_one(setting):
    config = algorithm("rloo", new_tokens=3, kl_coef=0.3)
    study = dataclasses.replace(ON_POLICY, steps=10)
    train = partial(train_on_policy, setting, study, config)
    keys = seed_keys(study, 2)
    references = over_seeds(setting.reference)(keys)
    beta, lr = jnp.full(2, 0.3), jnp.full(2, 1e-2)
    together = over_seeds(train)(keys, references, beta, lr)
    alone = jax.jit(train)(keys[1], jax.tree.map(lambda x: x[1], references), beta[1], lr[1])
    for name, values in alone.items():
        np.testing.assert_allclose(together[name][1], values, rtol=2e-3, atol=2e-4, err_msg=name)


def test_the_gap_is_beta_times_the_kl_to_the_optimum(setting, reference):
    logref = jax.jit(setting.logprobs)(reference)
    other = jax.jit(setting.logprobs)(jax.tree.map(lambda x: 1.1 * x, reference))
    best, objective = exact.optimum(logref, setting.gold, 0.3)
    gap = objective - exact.objective(other, logref, setting.gold, 0.3)
    np.testing.assert_allclose(gap, 0.3 * exact.kl(other, best), atol=1e-4)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_is_a_valid_combination(name):
    assert algorithm(name, new_tokens=5, kl_coef=0.3).kl_coef == 0.3


def test_an_unknown_algorithm_lists_the_closest():
    with pytest.raises(KeyError, match="no algorithm 'rlo'; did you mean rloo"):
        run_on_policy(dataclasses.replace(ON_POLICY, algorithms=("rlo",)), 1)


def test_rows_that_do_not_split_into_samples_are_refused_by_name():
    with pytest.raises(ValueError, match="rows=10 do not split into the 4 samples per prompt of rloo"):
        run_on_policy(dataclasses.replace(ON_POLICY, rows=10), 1)


def test_estimators_are_those_of_theory_in_a_small_world():
    figures = run_estimators(EstimatorStudy(name="small", batches=60, parts=2, rows=64, **SMALL), 1).figures
    for name, scale, slack in (
        ("rloo", 1.0, 0.1),
        ("reinforce", 1.0, 0.2),
        ("dr_grpo", 0.75, 0.1),
        ("exact", 1.0, 0.1),
    ):
        assert abs(figures[f"{name}/scale"][0] - scale) < slack, name
    assert figures["exact/cosine"][0] > 0.98
    assert abs(figures["k1/scale"][0]) < 0.3
    for name in ("rloo", "exact", "k2", "k3", "k3_sequence"):  # what is left of the error is noise
        assert figures[f"{name}/error"][0] < 3 * figures[f"{name}/noise"][0] + 0.02, name


def test_the_frontier_in_a_small_world():
    betas = (30.0, 3.0, 1.0, 0.3, 0.1)
    result = run_frontier(FrontierStudy(name="small", betas=betas, policies=8, **SMALL), 2)
    figures = result.figures
    assert max(figures["identity/error"]) < 1e-5
    assert max(figures["frontier/above"]) < 1e-4
    assert max(figures["frontier/steepening"]) < 0
    np.testing.assert_allclose(figures["frontier/start_over_law"], 1.0, atol=0.02)
    assert (np.asarray(figures["best_of_n/below"]) >= -1e-5).all()
    assert all(claim.holds for claim in judge_frontier({k: np.asarray(v, float).tolist() for k, v in figures.items()}))
    assert len(result.curves) == 2


def test_the_kl_of_best_of_n_in_a_small_world():
    result = run_best_of_n(BestOfNStudy(name="small", counts=(1, 2, 4, 4096), **SMALL), 2)
    figures = result.figures
    np.testing.assert_allclose(figures["n1/kl"], 0.0, atol=1e-5)
    assert (np.asarray(figures["n2/kl"]) < np.log(2) - 0.5).all()
    assert max(figures["above_formula"]) < 1e-5
    assert max(figures["above_saturation"]) < 1e-4
    assert figures["n4096/kl"][0] == pytest.approx(result.curves[0].hlines["most, by gold"], rel=0.1)


PREFERENCE = PreferenceStudy(
    name="small",
    objectives=("dpo", "kto", "simpo"),
    betas=(0.3,),
    pairs=(100, 2000),
    steps=60,
    rows=64,
    lr=5e-3,
    **SMALL,
)


def test_objectives_on_pairs_learn_and_stay_below_the_frontier():
    result = run_preference(PREFERENCE, 2)
    figures = result.figures
    runs = ("dpo_b0.3", "dpo_b0.3_n100", "kto_b0.3", "simpo_b0.3")
    assert {name.partition("/")[0] for name in figures} == {*runs, "dpo"}
    for name in runs:
        assert (figures[f"{name}/chosen"] > figures[f"{name}/rejected"]).all(), name
        assert (figures[f"{name}/above"] < 1e-4).all(), name
        assert (figures[f"{name}/kl"] > 0.01).all(), name
    assert (figures["dpo_b0.3/gap"] < figures["dpo_b0.3_n100/gap"]).all()
    assert (figures["dpo/exponent"] < 0).all()
    assert [len(curve.series) for curve in result.curves] == [4, 1]


def test_labels_that_are_always_right_move_both_objectives_further_and_ipo_to_its_optimum():
    study = dataclasses.replace(PREFERENCE, objectives=("dpo", "ipo"), pairs=(2000,), steps=150)
    figures = run_determinism(study, 1).figures
    for name in ("dpo", "ipo", "ipo_optimum"):
        assert figures[f"{name}_always_right/kl"] > figures[f"{name}_noisy/kl"], name
    for kind in ("noisy", "always_right"):
        assert abs(figures[f"ipo_{kind}/kl"] - figures[f"ipo_optimum_{kind}/kl"]) < 0.1, kind


@pytest.mark.parametrize("deterministic", [False, True])
def test_labels_of_pairs_follow_the_gold_reward(setting, reference, deterministic):
    study = dataclasses.replace(PREFERENCE, deterministic=deterministic)
    logref = jax.jit(setting.logprobs)(reference)
    pairs = sample_pairs(logref, setting.gold, jax.random.key(0), 4000, partial(chance_to_win, study))
    gap = np.asarray(setting.gold[pairs.prompt, pairs.chosen] - setting.gold[pairs.prompt, pairs.rejected])
    if deterministic:
        assert (gap >= 0).all()
    else:
        wide = np.abs(gap) > 0.2  # of a pair whose gap is d the better one wins with sigmoid(d)
        expected = 1 / (1 + np.exp(-np.abs(gap[wide])))
        np.testing.assert_allclose(np.mean(gap[wide] > 0), expected.mean(), atol=0.03)
    # Both strings are samples of the reference.
    share = np.bincount(np.concatenate([pairs.chosen, pairs.rejected]), minlength=logref.shape[1]) / 8000
    np.testing.assert_allclose(share, np.exp(np.asarray(logref)).mean(axis=0), atol=0.02)


def test_a_share_of_labels_is_flipped_and_equal_strings_toss_a_coin(setting, reference):
    np.testing.assert_allclose(better_wins(jnp.array([2.0, -2.0, 0.0]), 0.25), [0.75, 0.25, 0.5])
    logref = jax.jit(setting.logprobs)(reference)
    clean, noisy = (
        sample_pairs(logref, setting.gold, jax.random.key(0), 4000, partial(better_wins, flip=flip))
        for flip in (0.0, 0.25)
    )
    gap = np.asarray(setting.gold[noisy.prompt, noisy.chosen] - setting.gold[noisy.prompt, noisy.rejected])
    assert np.mean(gap[gap != 0] < 0) == pytest.approx(0.25, abs=0.03)
    flipped = (clean.chosen != noisy.chosen) | (clean.rejected != noisy.rejected)  # of the same pairs
    np.testing.assert_array_equal(gap < 0, flipped & (gap != 0))


ENSEMBLE = EnsembleStudy(
    name="small", counts=(1.0, 4.0, 64.0, 1e3, 6e4), members=3, pairs=400, held_out=1000, steps=60, lr=5e-3, **SMALL
)


def test_ensembles_in_a_small_world():
    result = run_ensembles(ENSEMBLE, 2)
    figures = result.figures
    scorers = [f"{kind}_{name}" for kind in ("clean", "noisy") for name in ("single", "mean", "wco", "uwo")]
    assert {name.partition("/")[0] for name in figures} == {*scorers, "clean_proxy_fall", "noisy_proxy_fall"}
    for name in scorers:
        assert (figures[f"{name}/accuracy"] > 0.7).all(), name
        assert (figures[f"{name}/peak"] >= figures[f"{name}/end"]).all(), name
        assert (figures[f"{name}/peak_kl"] <= figures[f"{name}/end_kl"] + 1e-5).all(), name
        assert (figures[f"{name}/peak"] > 0.5).all(), name  # the reference has 0
    for name in ("single", "mean", "wco", "uwo"):
        assert (figures[f"clean_{name}/accuracy"] > figures[f"noisy_{name}/accuracy"]).all(), name
    # The best of n by any score has the more of that score, the larger n is: exactly, whatever was learned.
    assert max(np.concatenate([figures["clean_proxy_fall"], figures["noisy_proxy_fall"]])) < 1e-5
    assert [len(curve.series) for curve in result.curves] == [4] * 4
    for curve in result.curves[::2]:  # gold, which starts where the reference is
        for kl, reward in curve.series.values():
            np.testing.assert_allclose(kl[0], 0.0, atol=1e-5)
            np.testing.assert_allclose(reward[:, 0], 0.0, atol=1e-4)


def test_members_of_ensembles_differ_and_all_are_in_the_unit_of_the_reference(setting, reference):
    found = jax.jit(partial(explore_labels, setting, ENSEMBLE))(jax.random.key(1), reference, jnp.float32(0.25))
    proxy = np.asarray(found["proxy"])
    np.testing.assert_allclose(proxy[:4, 0], 0.0, atol=1e-5)  # the members and their mean, best of 1
    assert (proxy[4:, 0] < 0).all()  # WCO, and UWO by the variance
    assert len(np.unique(proxy[:3, -1])) == 3
    assert found["gold"].max() <= found["best"]


@pytest.mark.parametrize(("field", "value", "message"), [
    ("members", 1, "members=1: an ensemble has 2 or more"),
    ("flip", 0.5, "flip=0.5; noisy labels are wrong less than half of the time"),
    ("flip", 0.0, "flip=0.0; noisy labels are wrong"),
    ("counts", (2.0, 4.0, 8.0), "must be three or more numbers of samples that rise from 1"),
    ("counts", (1.0, 8.0, 4.0), "must be three or more numbers of samples that rise from 1"),
    ("counts", (1.0, 8.0), "must be three or more numbers of samples that rise from 1"),
    ("pairs", 0, "EnsembleStudy.pairs is 0"),
])  # fmt: skip
def test_ensembles_that_cannot_be_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(ENSEMBLE, **{field: value})


def test_an_unknown_objective_lists_the_closest():
    with pytest.raises(KeyError, match="no objective 'dpp'; did you mean"):
        make_objective("dpp", 0.1)
    with pytest.raises(ValueError, match=r"objectives: there is no 'dpp'; they are dpo, cdpo, .* kto"):
        dataclasses.replace(PREFERENCE, objectives=("dpo", "dpp"))


@pytest.fixture
def registered(monkeypatch):
    """exact/on_policy, small."""
    entry = dataclasses.replace(find("exact/on_policy"), make=lambda scale: ON_POLICY, judge=None)
    return entry


def test_a_study_leaves_a_run_directory_like_any_other_and_is_not_run_twice(registered, tmp_path, result, monkeypatch):
    runs = []

    def run(study, seeds):
        runs.append(seeds)
        return result

    monkeypatch.setattr("experiments.exact.on_policy.run", run)
    plan = Plan(registered, ON_POLICY, tmp_path / "run", seeds=2, resume=False, data_root=None)
    execute(plan)
    files = read_run(plan.directory)
    assert files.finished == 2
    assert files.config["algorithms"] == ["rloo", "ppo"]
    assert [plot["title"] for plot in files.plots][:1] == ["Distance to the optimum"]
    page = (plan.directory / "report.html").read_text()
    assert page.count("<svg") == len(files.plots) == 4
    execute(dataclasses.replace(plan, resume=True))
    assert runs == [2]
    with pytest.raises(FileExistsError, match="holds this run already"):
        execute(plan)


def test_figures_need_a_value_per_seed(tmp_path):
    with pytest.raises(ValueError, match="without one value for each of 3 seeds: b"):
        write_study(tmp_path, 0, 3, StudyResult({"a": [1, 2, 3], "b": [1, 2]}, []))
    assert not list(tmp_path.iterdir())


def test_curves_survive_being_written(tmp_path):
    curve = Curve("t", "x", "y", {"a": (np.arange(3), np.ones((2, 3)))}, {"level": 0.5}, logy=True)
    write_study(tmp_path, 4, 2, StudyResult({"f": np.array([1.0, 2.0])}, [curve]))
    (plot,) = json.loads((tmp_path / "plots.json").read_text())
    assert plot["series"] == {"a": [[0, 1, 2], [[1.0] * 3] * 2]}
    assert plot["hlines"] == {"level": 0.5}
    assert json.loads((tmp_path / "seed_5" / "summary.json").read_text()) == {"f": 2.0}


def figures_of(**gaps):
    return {f"{name}/gap": [gap] * 5 for name, gap in gaps.items()}


def test_the_judges_want_what_the_docstrings_promise():
    good = figures_of(rloo=0.02, dr_grpo=0.02, ppo=0.02, reinforce=0.05, grpo=0.2, dr_grpo_k3=0.12)
    assert all(claim.holds for claim in judge_algorithms(good))
    for worse in ({"rloo": 0.04}, {"ppo": 0.031}, {"reinforce": 0.035}, {"grpo": 0.09}, {"dr_grpo_k3": 0.01}):
        changed = good | figures_of(**worse)
        assert not all(claim.holds for claim in judge_algorithms(changed)), worse
    placed = {
        "rloo/gap": [0.02] * 3,
        "rloo_k2/gap": [0.04, 0.03, 0.05],
        "rloo_exact/gap": [0.04, 0.03, 0.04],
        "rloo_k3/gap": [0.08, 0.09, 0.085],
        "dr_grpo_k3/gap": [0.12] * 3,
        "rloo_k2/kl": [1.3, 1.31, 1.32],
        "dr_grpo_k2/kl": [1.1, 1.0, 1.05],
    }
    assert all(claim.holds for claim in judge_placement(placed))
    for name in ("rloo_k2/gap", "rloo_exact/gap", "dr_grpo_k2/kl"):
        changed = placed | {name: [2.0, 2.1, 2.0]}
        assert not all(claim.holds for claim in judge_placement(changed)), name


@pytest.mark.parametrize("name", STUDIES)
def test_studies_refuse_sizes_that_do_not_divide(name):
    study = find(name).experiment("cpu")
    with pytest.raises(ValueError, match="does not divide into heads"):
        dataclasses.replace(study, width=30, heads=4)


@pytest.mark.parametrize("seeds", [2, 11])
def test_seeds_that_do_not_divide_over_the_devices_come_out_in_order(seeds):
    keys = seed_keys(PREFERENCE, seeds)

    def draw(key, size):
        return {"draw": size * jax.random.normal(key, (3,)), "size": size}

    sizes = jnp.arange(1.0, seeds + 1)
    found = over_seeds(draw)(keys, sizes)
    expected = jax.vmap(draw)(keys, sizes)
    np.testing.assert_allclose(found["draw"], expected["draw"], rtol=1e-6)
    np.testing.assert_array_equal(found["size"], sizes)
