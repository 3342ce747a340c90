"""Learning from fixed texts in the exact world, at its smallest: the whole program, its texts and values, and what is refused."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.exact.offline_entries import judge_offline
from experiments.exact.offline_q import (
    behaviour,
    draw_evenly,
    greedy_measures,
    run,
    sample_texts,
    values_of_texts,
)
from experiments.exact.setting import open_setting
from rlhf_jax.config.study import ExactWorldConfig, OfflineStudy
from rlhf_jax.report.study import StudyResult
from rlhf_jax.types import TokenBatch

OFFLINE = OfflineStudy(
    name="small",
    texts=200,
    fractions=(0.1,),
    taus=(0.5, 0.9),
    decode_betas=(0.0, 4.0),
    polyak=0.1,
    steps=400,
    lr=5e-3,
    world=ExactWorldConfig(vocab=4, length=3, prompts=2),
    width=16,
    reference_steps=60,
    reference_rows=64,
    reference_lr=1e-2,
)


@pytest.fixture(scope="module")
def setting():
    return open_setting(OFFLINE)


@pytest.fixture(scope="module")
def reference(setting):
    return jax.jit(setting.reference)(jax.random.key(0))


@pytest.fixture(scope="module")
def offline() -> StudyResult:
    return run(OFFLINE, 2)


def test_decoding_at_beta_0_is_the_clone_and_every_policy_sums_to_1(offline):
    figures = offline.figures
    runs = {name.partition("/")[0] for name in figures if name.endswith("/total_probability")}
    assert runs == {"bc", "bc_best0.1", "ilql_t0.5_b0", "ilql_t0.5_b4", "ilql_t0.9_b0", "ilql_t0.9_b4", "q", "q_all"}
    for name in runs:
        np.testing.assert_allclose(figures[f"{name}/total_probability"], 1.0, atol=1e-5, err_msg=name)
    for tau in (0.5, 0.9):
        np.testing.assert_allclose(figures[f"ilql_t{tau}_b0/kl"], 0.0, atol=1e-6)
        np.testing.assert_allclose(figures[f"ilql_t{tau}_b0/reward"], figures["bc/reward"], atol=1e-5)
    assert [len(curve.series) for curve in offline.curves] == [2, 2, 2]


def test_values_follow_those_of_the_texts_and_decoding_with_them_earns_more(offline):
    figures = offline.figures
    # At higher tau the model shows: to a decoder without a first token, a prompt and the prompt with its own word again are one state.
    np.testing.assert_allclose(figures["ilql_t0.5/value"], figures["ilql_t0.5/true_value"], atol=0.1)
    for value in ("value", "true_value"):
        assert (figures[f"ilql_t0.9/{value}"] > figures[f"ilql_t0.5/{value}"] + 0.2).all(), value
    for tau in (0.5, 0.9):
        assert (figures[f"ilql_t{tau}_b4/reward"] > figures["bc/reward"] + 0.1).all(), tau
    assert (figures["ilql_t0.9/true_value"] < figures["texts/highest_value"]).all()
    assert (figures["bc_best0.1/reward"] > figures["bc/reward"]).all()


def test_q_learning_makes_up_what_the_texts_do_not_show_and_learns_the_truth_where_all_is_shown(offline):
    figures = offline.figures
    assert (figures["q/value"] > figures["q/true_value"] + 1.0).all()
    assert (figures["q/value"] > figures["world/highest_value"] + 0.5).all()
    np.testing.assert_allclose(figures["q_all/value"], figures["world/highest_value"], atol=0.2)
    assert (figures["q_all/true_value"] > figures["q/true_value"] + 0.5).all()


def test_the_greedy_policy_writes_the_token_of_highest_q_alone(setting, reference):
    clone = setting.logprobs(reference)
    found = greedy_measures(setting, OFFLINE, reference, clone)  # any parameters will do for a Q
    world, policy = setting.world, setting.policy

    def logits_behind(tokens):
        row = jnp.array([tokens], jnp.int32)
        places = jnp.arange(row.shape[1], dtype=jnp.int32)[None]
        return policy.logits(reference, TokenBatch(row, places, jnp.ones_like(row), jnp.ones_like(row, bool)))[0, -1]

    found_by_hand = []
    for x in range(2):
        string = ()
        while len(string) < world.length and 0 not in string:
            string = (*string, int(jnp.argmax(logits_behind((*world.prompt(x), *string)))))
        number, promised = world.strings.index(string), float(jnp.max(logits_behind(world.prompt(x))))
        found_by_hand.append((promised, world.gold[x, number], 0.99 ** (len(string) - 1), -float(clone[x, number])))
    value, reward, discount, kl = np.array(found_by_hand).T
    expected = {"value": value, "reward": reward, "true_value": reward * discount, "kl": kl, "entropy": 0 * kl}
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], np.mean(values), rtol=1e-4, atol=1e-5, err_msg=name)


def test_strings_drawn_evenly_have_every_token_equally_often_at_every_place(setting):
    study = dataclasses.replace(OFFLINE, rows=40_000)
    prompt, strings = draw_evenly(setting, study, jax.random.key(0))
    np.testing.assert_allclose(jnp.mean(prompt), 0.5, atol=0.02)
    drawn = [setting.world.strings[n] for n in np.asarray(strings)]
    for place in range(setting.world.length):
        tokens = [string[place] for string in drawn if len(string) > place]
        np.testing.assert_allclose(np.bincount(tokens, minlength=4) / len(tokens), 0.25, atol=0.02)


def test_texts_start_or_end_well_and_lie_best_first(setting, reference):
    logref = jax.jit(setting.logprobs)(reference)
    worth = setting.world.word_values
    starts, ends = (np.exp(np.asarray(p)) for p in behaviour(setting, OFFLINE, logref))
    opening = np.array([[worth[x, s[0]] for s in setting.world.strings] for x in range(2)])
    gained = [np.sum(p * opening, axis=1) for p in (starts, np.exp(np.asarray(logref)), ends)]
    assert (np.diff(gained, axis=0) < 0).all()
    texts = sample_texts(setting, OFFLINE, jax.random.key(0), reference)
    assert texts.shape == (2, 100)
    rewards = np.take_along_axis(np.asarray(setting.gold), np.asarray(texts), axis=1)
    assert (rewards[:, 1:] <= rewards[:, :-1]).all()


def test_values_at_the_lowest_tau_are_the_mean_of_the_discounted_rewards(setting):
    texts = jnp.array([[1, 4, 4, 20], [0, 0, 39, 7]])
    tokens = np.array([len(string) for string in setting.world.strings])[texts]
    discounted = np.take_along_axis(np.asarray(setting.gold), np.asarray(texts), axis=1) * 0.99 ** (tokens - 1)
    found = values_of_texts(setting, OFFLINE, texts, taus=jnp.array([0.5, 0.9999]))
    highest = discounted.max(axis=1).mean()
    np.testing.assert_allclose(found["value"], [discounted.mean(), highest], atol=2e-3)
    np.testing.assert_allclose(found["highest_value"], highest, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts": 201}, "texts=201 do not split into prompts=2"),
        ({"fractions": (0.001,)}, r"must keep a text of each prompt or more \(0.01\)"),
        ({"fractions": (1.0,)}, "and not all"),
        ({"taus": (0.9, 0.5)}, "expectiles between 0 and 1 that rise"),
        ({"taus": (0.5, 1.0)}, "expectiles between 0 and 1 that rise"),
        ({"decode_betas": ()}, "must be one weight or more"),
        ({"decode_betas": (-1.0,)}, "none below 0"),
        ({"mixture": 1.5}, "mixture is 1.5"),
        ({"gamma": 1.01}, "gamma is 1.01"),
    ],
)
def test_studies_refuse_what_makes_no_sense(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(OFFLINE, **change)


def test_the_judge_of_offline_learning_wants_every_order_that_it_names():
    rewards = {"bc": -0.4, "bc_best0.3": 0.1, "bc_best0.1": 0.5}
    rewards |= {f"ilql_t0.7_b{beta}": reward for beta, reward in ((0, -0.4), (1, 0.0), (4, 0.5), (16, 0.9))}
    rewards |= {"ilql_t0.5_b16": 0.8, "ilql_t0.9_b16": 0.7, "q": -1.5}
    values = {"ilql_t0.5/value": -0.4, "ilql_t0.7/value": 0.0, "ilql_t0.9/value": 0.3, "texts/highest_value": 1.0}
    values |= {"q/value": 5.0, "q/true_value": -1.4, "q_all/value": 1.15, "q_all/true_value": 1.12}
    values |= {"world/highest_value": 1.2}
    named = values | {f"{name}/reward": reward for name, reward in rewards.items()}
    figures = {name: [value] * 3 for name, value in named.items()}
    assert all(claim.holds for claim in judge_offline(figures))
    for name in ("bc/reward", "bc_best0.1/reward", "ilql_t0.7_b1/reward", "ilql_t0.7/value", "q/reward", "q_all/value"):
        assert not all(claim.holds for claim in judge_offline(figures | {name: [2.0] * 3})), name
    for name in ("q/value", "q_all/value", "q_all/true_value"):
        assert not all(claim.holds for claim in judge_offline(figures | {name: [0.9] * 3})), name
    for tau in (0.5, 0.9):
        name = f"ilql_t{tau}_b16/reward"
        assert not all(claim.holds for claim in judge_offline(figures | {name: [0.4] * 3})), name
