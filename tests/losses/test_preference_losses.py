from __future__ import annotations

import dataclasses
from functools import partial
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from rlhf_jax.config.stages import Objective
from rlhf_jax.losses.preference import (
    OBJECTIVES,
    PairLogprobs,
    dpo,
    ipo,
    kto,
    kto_baseline,
    kto_loss,
    length_normalised_dpo,
    log_odds,
    make_objective,
    orpo,
    preference_loss,
    reference_free_dpo,
    reply_logprobs,
    robust_dpo,
    rso_hinge,
    simpo,
    slic,
    with_baseline,
    with_reference,
)
from rlhf_jax.types import LabelBatch, LabelledReplies, PreferenceBatch, ReferencedLabels, ReferencedPairs, TokenBatch

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def pair(chosen=0.0, rejected=0.0, ref_chosen=0.0, ref_rejected=0.0, chosen_length=1.0, rejected_length=1.0):
    values = (chosen, rejected, ref_chosen, ref_rejected, chosen_length, rejected_length)
    return PairLogprobs(*(jnp.array([value], jnp.float32) for value in values))


# h = 3 = (-4 + 6) - (-10 + 9); the replies have 4 and 5 tokens.
H3 = pair(-4.0, -10.0, -6.0, -9.0, 4.0, 5.0)

BY_HAND = [
    (partial(dpo, beta=0.1), H3, 0.55436),
    (partial(dpo, beta=0.1), pair(), 0.69315),
    (partial(dpo, beta=0.1, label_smoothing=0.1), H3, 0.58436),
    # -log sigmoid(.1 * 6)
    (partial(reference_free_dpo, beta=0.1), H3, 0.43749),
    # (.9 * .55436 - .1 * .85436) / .8
    (partial(robust_dpo, beta=0.1, flip=0.1), H3, 0.51686),
    (partial(robust_dpo, beta=0.1, flip=0.0), H3, 0.55436),
    # 2 / 4 - (-1) / 5 = .7
    (partial(length_normalised_dpo, beta=1.0), H3, 0.40319),
    (partial(ipo, tau=0.1), H3, 4.0),
    (partial(ipo, tau=1 / 6), H3, 0.0),
    (partial(slic, margin=1.0), pair(-1.0, -1.3), 0.7),
    (partial(slic, margin=1.0), pair(-1.0, -2.5), 0.0),
    (partial(slic, margin=1.0, nll_coef=0.5), pair(-1.0, -1.3), 1.2),
    (partial(rso_hinge, gamma=0.1), H3, 0.7),
    (partial(rso_hinge, gamma=1.0), H3, 0.0),
    (partial(simpo, beta=2.0, margin=1.0), H3, 0.31326),
    # mean log-probs -1 and -2: log odds -.54132 and -1.85459, their difference 1.31326; 1 + .1 * softplus(-1.31326)
    (partial(orpo, odds_coef=0.1), H3, 1.02381),
    (partial(orpo, odds_coef=0.0), H3, 1.0),
]


@pytest.mark.parametrize(("objective", "logprobs", "expected"), BY_HAND)
def test_objectives_by_hand(objective, logprobs, expected):
    np.testing.assert_allclose(objective(logprobs), [expected], atol=1e-5)


SMOOTH = [case[0] for case in BY_HAND if case[0].func not in (slic, rso_hinge)]


@pytest.mark.parametrize("objective", SMOOTH)
def test_gradients_are_those_of_the_values(objective):
    def loss(*pair):  # check_grads asks with arrays of numpy
        both = (jnp.asarray(logprob) for logprob in pair)
        return jnp.sum(objective(dataclasses.replace(H3, **dict(zip(("chosen", "rejected"), both, strict=True)))))

    check_grads(loss, (H3.chosen, H3.rejected), order=1, modes=["rev"], atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("objective", [case[0] for case in BY_HAND])
def test_a_better_chosen_reply_never_costs_more_and_extremes_stay_finite(objective):
    if objective.func is not ipo:
        losses = [
            float(objective(pair(chosen, -10.0, -6.0, -9.0, 4.0, 5.0))[0]) for chosen in (-12.0, -8.0, -4.0, -1.0)
        ]
        assert losses == sorted(losses, reverse=True)
    for chosen, rejected in ((-1e4, -1e-7), (-1e-7, -1e4), (0.0, -1.0)):
        extreme = pair(chosen, rejected, -5.0, -5.0, 4.0, 5.0)
        value, gradient = jax.value_and_grad(lambda p: jnp.sum(objective(p)))(extreme)
        assert np.isfinite(value)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("objective", [reference_free_dpo, simpo, slic, orpo])
def test_objectives_without_a_reference_do_not_see_it(objective):
    how = {
        "reference_free_dpo": {"beta": 0.5},
        "simpo": {"beta": 2.0, "margin": 0.5},
        "slic": {"margin": 9.0},
        "orpo": {"odds_coef": 1.0},
    }
    there = partial(objective, **how[objective.__name__])
    np.testing.assert_array_equal(there(H3), there(pair(-4.0, -10.0, -60.0, -0.9, 4.0, 5.0)))


def test_robust_dpo_is_unbiased_under_flips():
    flip, swapped = (
        0.2,
        PairLogprobs(H3.rejected, H3.chosen, H3.ref_rejected, H3.ref_chosen, H3.rejected_length, H3.chosen_length),
    )
    robust = partial(robust_dpo, beta=0.3, flip=flip)
    np.testing.assert_allclose((1 - flip) * robust(H3) + flip * robust(swapped), dpo(H3, beta=0.3), atol=1e-6)
    with pytest.raises(ValueError, match=r"\[0, 0.5\)"):
        robust_dpo(H3, beta=0.1, flip=0.5)


@pytest.mark.parametrize("logp", [-1e-9, -1e-3, -0.7, -30.0])
def test_log_odds_keep_their_digits(logp):
    found = float(log_odds(jnp.float32(logp)))
    bounded = min(logp, -1e-6)
    assert found == pytest.approx(bounded - np.log(-np.expm1(bounded)), rel=1e-5)


@pytest.mark.parametrize(
    ("ratio", "desirable", "baseline", "weights", "expected"),
    [
        (1.0, 1.0, 0.2, (1.0, 1.0), 0.48001),
        (-2.0, 0.0, 0.2, (1.0, 1.0), 0.44522),
        (1.0, 1.0, 0.2, (3.0, 1.0), 1.44003),
        (-2.0, 0.0, 0.2, (3.0, 0.5), 0.22261),
        (1.0, 1.0, -0.5, (1.0, 1.0), 0.47502),  # a negative estimate of a KL counts as 0: sigmoid(.1)
    ],
)
def test_kto_by_hand(ratio, desirable, baseline, weights, expected):
    found = kto(
        jnp.array([ratio]),
        jnp.array([desirable]),
        jnp.float32(baseline),
        beta=0.1,
        desirable_weight=weights[0],
        undesirable_weight=weights[1],
    )
    np.testing.assert_allclose(found, [expected], atol=1e-5)


def test_the_baseline_of_kto_has_no_gradient():
    gradient = jax.grad(lambda z: kto(jnp.array([1.0]), jnp.array([1.0]), z, beta=0.1)[0])(jnp.float32(0.2))
    assert float(gradient) == 0.0


# A model whose log-prob of a token is -(token id) / 8 - shift: losses can be computed by hand.
def logprobs(params, batch, temperature):
    return -(batch.tokens.astype(jnp.float32) / 8 + params) / temperature


def rows(tokens, replies) -> TokenBatch:
    tokens = jnp.array(tokens, jnp.int32)
    columns = jnp.arange(tokens.shape[1])[None, :]
    mask = jnp.array([[a <= c < b for c in range(tokens.shape[1])] for a, b in replies])
    return TokenBatch(tokens, jnp.broadcast_to(columns, tokens.shape), jnp.ones_like(tokens), mask)


CHOSEN = rows([[9, 8, 16, 0], [9, 8, 0, 0]], [(1, 3), (1, 2)])
REJECTED = rows([[9, 8, 8, 8], [9, 24, 8, 0]], [(1, 4), (1, 3)])


def test_reply_logprobs_sum_over_the_reply_alone():
    logp, length = reply_logprobs(jnp.float32(0.5), CHOSEN, logprobs=logprobs)
    np.testing.assert_allclose(logp, [-1.5 - 2.5, -1.5])
    np.testing.assert_allclose(length, [2.0, 1.0])


def test_preference_loss_is_a_weighted_mean_with_its_metrics():
    zeros = jnp.zeros((2,))
    pairs = PreferenceBatch(CHOSEN, REJECTED, zeros, jnp.array([3.0, 1.0]))
    batch = ReferencedPairs(pairs, jnp.array([-3.5, -1.0]), jnp.array([-3.0, -4.5]))
    loss, aux = preference_loss(jnp.float32(0.0), batch, logprobs=logprobs, objective=partial(ipo, tau=0.5))
    # log-ratios: chosen -3 + 3.5, -1 + 1; rejected -3 + 3, -4 + 4.5; h .5 and -.5
    np.testing.assert_allclose(loss, (3 * 0.25 + 1 * 2.25) / 4)
    expected = {"loss": 0.75, "accuracy": 0.75, "margin": 0.25, "chosen_ratio": 0.375, "rejected_ratio": 0.125}
    assert {name: float(value) for name, value in aux.metrics.items()} == pytest.approx(expected)
    assert float(aux.weight) == 4.0


def test_the_reference_sees_each_reply_of_a_pair():
    ones = jnp.ones(CHOSEN.tokens.shape[0])
    pairs = with_reference(jnp.float32(0.5), PreferenceBatch(CHOSEN, REJECTED, 0 * ones, ones), logprobs=logprobs)
    for found, side in ((pairs.ref_chosen, CHOSEN), (pairs.ref_rejected, REJECTED)):
        np.testing.assert_allclose(found, reply_logprobs(jnp.float32(0.5), side, logprobs=logprobs)[0], rtol=1e-6)
    assert not np.allclose(pairs.ref_chosen, pairs.ref_rejected)


def test_a_config_can_name_every_objective():
    assert set(get_args(Objective)) == {*OBJECTIVES, "kto"}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_by_name_prefers_the_chosen_reply_and_takes_beta(name):
    better, worse = pair(-1.0, -9.0, -5.0, -5.0, 4.0, 5.0), pair(-9.0, -1.0, -5.0, -5.0, 4.0, 5.0)
    objective = make_objective(name, 0.3)
    assert float(objective(better)[0]) < float(objective(worse)[0])
    assert float(objective(better)[0]) != float(make_objective(name, 0.6)(better)[0])


def test_padding_pairs_of_weight_0_change_nothing():
    zeros = jnp.zeros((2,))
    one = jax.tree.map(lambda x: x[:1], (CHOSEN, REJECTED))
    objective = partial(dpo, beta=0.3)
    both = ReferencedPairs(PreferenceBatch(CHOSEN, REJECTED, zeros, jnp.array([1.0, 0.0])), zeros, zeros)
    alone = ReferencedPairs(PreferenceBatch(*one, zeros[:1], jnp.ones((1,))), zeros[:1], zeros[:1])
    found, expected = (
        preference_loss(jnp.float32(0.1), b, logprobs=logprobs, objective=objective)[0] for b in (both, alone)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_baseline_of_kto_is_the_mean_log_ratio_of_mismatched_replies():
    labels = LabelBatch(CHOSEN, jnp.array([1.0, 0.0]), jnp.array([3.0, 1.0]))
    batch = LabelledReplies(labels, REJECTED)
    baseline, aux = kto_baseline(jnp.float32(0.3), jnp.float32(0.5), batch, logprobs=logprobs)
    # Each token is .2 nats likelier than under the reference; the replies have 3 and 2, and weigh 3 and 1.
    expected = (3 * 0.6 + 1 * 0.4) / 4
    np.testing.assert_allclose([baseline, aux.metrics["baseline"], aux.weight], [expected, expected, 4.0], rtol=1e-5)
    found = with_baseline(jnp.float32(0.5), batch, baseline, logprobs=logprobs)
    np.testing.assert_allclose(found.ref, [-1.5 - 2.5, -1.5], rtol=1e-6)
    assert (found.labels, float(found.baseline)) == (labels, float(baseline))


@pytest.mark.parametrize(("baseline", "losses", "margin"), [
    # log-ratios -3 + 4 = 1, desirable, and -1 + 3 = 2, not: 1 - sigmoid(.08) and 1 - sigmoid(-.18)
    (0.2, (0.48001, 0.54488), (0.8, -1.8)),
    # z0 is never below 0
    (-5.0, (0.47502, 0.54983), (1.0, -2.0)),
])  # fmt: skip
def test_kto_loss_by_hand(baseline, losses, margin):
    labels = LabelBatch(CHOSEN, jnp.array([1.0, 0.0]), jnp.array([3.0, 1.0]))
    batch = ReferencedLabels(labels, jnp.array([-4.0, -3.0]), jnp.float32(baseline))
    loss, aux = kto_loss(jnp.float32(0.0), batch, logprobs=logprobs, beta=0.1)
    expected = {
        "loss": (3 * losses[0] + losses[1]) / 4,
        "accuracy": 0.75,
        "margin": (3 * margin[0] + margin[1]) / 4,
        "log_ratio": 1.25,
        "baseline": baseline,
    }
    assert {name: float(value) for name, value in aux.metrics.items()} == pytest.approx(expected, abs=1e-5)
    np.testing.assert_allclose([loss, aux.weight], [expected["loss"], 4.0], atol=1e-5)
