"""What holds for every loss: its gradient is that of its value, and what stands outside a mask, nan too, reaches neither."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from rlhf_jax.config import PolicyGradient
from rlhf_jax.losses import ensemble, kl, policy, preference, q_learning, ranking, rating, reward
from rlhf_jax.losses.ppo import ppo_value_loss, token_rewards
from rlhf_jax.losses.scores import no_moments
from rlhf_jax.losses.sft import sft_loss
from rlhf_jax.masking import whiten
from rlhf_jax.models.api import TokenStats
from rlhf_jax.types import (
    LabelBatch,
    LabelledReplies,
    OfflineBatch,
    PreferenceBatch,
    RankedBatch,
    ReferencedPairs,
    Rollout,
    StepBatch,
    TokenBatch,
    TokenValues,
    Trajectory,
)

pytestmark = pytest.mark.usefixtures("strict_dtypes")

NOISE = np.random.default_rng(0)
ROWS, WIDTH = 4, 5
# Unequal lengths, a hole as between the steps of a solution, and a row without anything.
MASK = jnp.array([[0, 1, 1, 1, 0], [0, 0, 1, 0, 0], [0, 1, 0, 1, 1], [0, 0, 0, 0, 0]], bool)
NOTHING = jnp.zeros_like(MASK)


def noise(*shape: int, scale: float = 1.0) -> jax.Array:
    return jnp.asarray(scale * NOISE.normal(size=shape), jnp.float32)


X, OTHER, ADVANTAGES, TARGETS = (noise(ROWS, WIDTH) for _ in range(4))
ROW, SECOND = noise(ROWS), noise(ROWS)
YES_NO, WEIGHT = jnp.array([1.0, 0.0, 1.0, 0.0]), jnp.array([1.0, 0.5, 2.0, 1.0])
RANK = jnp.array([[0, 1, 2], [1, 1, 0]])


def texts(mask: jax.Array = MASK) -> TokenBatch:
    zeros = jnp.zeros(mask.shape, jnp.int32)
    return TokenBatch(zeros, zeros, zeros + 1, mask)


def given(params, *_):
    """A model whose output is its parameters."""
    return params


def of_both(params, batch):
    """A model whose scores are its parameters, for a batch of two rows to each of them."""
    return jnp.concatenate([params, 0.5 - params])


# --- losses of rows --------------------------------------------------------------------------------------------------

PAIRS = PreferenceBatch(texts(), texts(), 0.3 * ROW, WEIGHT)
RANKED = RankedBatch(texts(jnp.zeros((6, WIDTH), bool)), RANK, jnp.array([[1.0, 1.0, 1.0], [1.0, 0.0, 1.0]]))

OF_ROWS = {
    "bradley_terry": lambda a, b: reward.bradley_terry(a, b, 0.3 * a, label_smoothing=0.1),
    "centring": reward.centring,
    "comparison_loss": lambda a, b: reward.comparison_loss(a, PAIRS, scores=of_both, centring_coef=0.1)[0] + b,
    "label_loss": lambda a, b: reward.label_loss(a, LabelBatch(texts(), YES_NO, WEIGHT), scores=given)[0] + b,
    "k_wise": lambda a, b: ranking.k_wise(jnp.stack([a, b, a * b], axis=1)[:2], RANK)[0],
    "ranking_loss": lambda a, b: ranking.ranking_loss(jnp.concatenate([a[:3], b[:3]]), RANKED, scores=given)[0],
    "best_of_k": lambda a, b: ranking.best_of_k(jnp.stack([a, b, 0.0 * a], axis=1), jnp.array([0, 1, 2, 1])),
    "regression": rating.regression,
    "thresholds_of": lambda a, b: rating.thresholds_of(a[0], 0.3 * b),
    "mean_score": lambda a, b: ensemble.mean_score(jnp.stack([a, b])),
    "worst_case": lambda a, b: ensemble.worst_case(jnp.stack([a, b])),
    "uncertainty_weighted": lambda a, b: ensemble.uncertainty_weighted(jnp.stack([a, b, a * b]), coef=0.5),
    "standardised": lambda a, b: ensemble.standardised(jnp.stack([a, b]), a[:2], 1 + b[:2] ** 2),
    "kto": lambda a, b: preference.kto(a, YES_NO, jnp.float32(0.2), beta=0.7, undesirable_weight=0.5) + b,
    "expectile": lambda a, b: q_learning.expectile(a - b, tau=0.7),
    "decoding": lambda a, b: q_learning.advantage_weighted_logits(a[None], b[None], a[None], b[:1], beta=2.0),
    "score_function": policy.score_function,
    "overlong_penalty": lambda a, b: policy.overlong_penalty(18_000.0 + 100.0 * a, longest=20_480, cache=4096) + b,
    "clipped_surrogate": lambda a, b: policy.clipped_surrogate(
        jnp.exp(0.5 * a), b, clip=0.2, clip_high=0.28, dual_clip=3.0
    ),
    "k1": kl.k1,
    "k2": kl.k2,
    "k3": kl.k3,
}


@pytest.mark.parametrize("name", OF_ROWS)
def test_gradients_of_rows_are_those_of_the_values(name):
    check(OF_ROWS[name], ROW, SECOND)


def total(out: jax.Array) -> jax.Array:
    """A sum in which no two entries count alike."""
    return jnp.sum(out * jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape))


def check(function, *at: jax.Array) -> None:
    """Gradients against finite differences."""

    def of_arrays(*arrays):  # check_grads asks with arrays of numpy
        return total(function(*(jnp.asarray(x) for x in arrays)))

    check_grads(of_arrays, at, order=1, modes=["rev"], eps=1e-2, atol=5e-3, rtol=5e-3)


# --- losses of tokens: (array [B, T] that a model gives, mask) -> loss ------------------------------------------------


def trajectory(mask: jax.Array, outside: float, config: PolicyGradient) -> Trajectory:
    """A made-up one on both sides of the clip range, with `outside` wherever the mask is False."""
    old, ref, advantages, old_values, returns = (
        jnp.where(mask, x, outside) for x in (X - 0.3 * OTHER, X + 0.5 * OTHER, ADVANTAGES, OTHER, TARGETS)
    )
    return Trajectory(
        rollout=Rollout(texts(mask), old, jnp.ones(ROWS, bool), jnp.float32(0.7)),
        old_logprobs=old,
        ref_logprobs=ref,
        values=old_values,
        rewards=returns,
        advantages=advantages,
        returns=returns,
        scores=ROW,
        weights=policy.token_weights(
            mask, config.normaliser, constant=3.0, group=jnp.array([0, 0, 1, 1], jnp.int32), groups=2
        ),
        loss_kl_coef=jnp.float32(0.3),
        average=jnp.float32(0.0),
        moments=no_moments(),
    )


def policy_loss(x, mask, outside, **parts):
    config = dataclasses.replace(PolicyGradient(new_tokens=3, samples=2), **parts)
    return policy.policy_loss(
        x,
        trajectory(mask, outside, config),
        x,  # stands for the reference's parameters
        token_stats=lambda params, *_: TokenStats(logprobs=params, entropy=-1.5 * params),
        token_kl=lambda params, *_: 0.5 * params,
        config=config,
    )[0]


def value_loss(x, mask, outside, clip):
    return ppo_value_loss(x, trajectory(mask, outside, PolicyGradient(new_tokens=3)), values=given, clip=clip)[0]


def pairs_of(x, mask, outside):
    batch = ReferencedPairs(PreferenceBatch(texts(mask[:2]), texts(mask[2:]), ROW[:2], WEIGHT[:2]), ROW[:2], ROW[2:])
    return preference.preference_loss(x, batch, logprobs=given, objective=partial(preference.dpo, beta=0.5))[0]


def desired(x, mask, outside):
    other = jnp.where(mask, -2.0, outside)
    labels = LabelBatch(texts(mask), YES_NO, WEIGHT)
    replies = LabelledReplies(labels, texts(mask))
    baseline, _ = preference.kto_baseline(other, 0.5 * other, replies, logprobs=given)
    batch = preference.with_baseline(other, replies, baseline, logprobs=given)
    return preference.kto_loss(x, batch, logprobs=given, beta=0.5)[0]


def ilql(x, mask, outside, trained):
    """With no discount, so that the targets, through which no gradient flows, do not depend on V."""
    batch = OfflineBatch(texts(mask), *(jnp.where(mask, y, outside) for y in (TARGETS, OTHER)))
    params = {"q1": ADVANTAGES, "q2": OTHER, "v": TARGETS} | {trained: x}
    params = {name: jnp.where(mask, y, outside) if name != trained else y for name, y in params.items()}

    def critics(params, _):
        q1, q2 = params["q1"], params["q2"]
        return TokenValues(q1, q2, 1.5 * q1, 1.5 * q2, params["v"])

    return q_learning.ilql_loss(params, batch, critics=critics, gamma=0.0, tau=0.7, cql_coef=0.1)[0]


def one_step(x, mask, outside):
    batch = OfflineBatch(texts(mask), *(jnp.where(mask, y, outside) for y in (TARGETS, OTHER)))
    return q_learning.q_learning_loss(x, batch, token_logits=lambda q, _: (q, 1.5 * q), gamma=0.9)[0]


def steps(x, mask, outside):
    batch = StepBatch(texts(), jnp.where(mask, YES_NO[:, None], 0.0), mask)
    return rating.process_loss(x, batch, token_scores=given)[0]


def kl_loss(x, mask, outside, estimator):
    ref, token_kl = (jnp.where(mask, y, outside) for y in (OTHER, jnp.square(OTHER)))
    return kl.kl_loss(x, ref, mask, estimator=estimator, token_kl=token_kl)


CONSTANT = {"normaliser": "constant"}
OF_TOKENS = {
    "sft_loss": lambda x, mask, _: sft_loss(x, texts(mask), logprobs=given)[0],
    "value_loss": partial(value_loss, clip=None),
    "clipped value_loss": partial(value_loss, clip=0.5),
    "ppo": policy_loss,
    "ppo, every bound": partial(policy_loss, clip=0.1, clip_high=0.2, dual_clip=1.5, normaliser="group"),
    "gspo": partial(policy_loss, ratio="sequence", normaliser="sequence"),
    "score": partial(policy_loss, objective="score", **CONSTANT),
    "ppo with entropy": partial(policy_loss, entropy_coef=0.3),
    "ppo with k3": partial(policy_loss, kl_in="loss", kl_estimator="k3"),
    "preference_loss": pairs_of,
    "kto_loss": desired,
    "q_learning_loss": one_step,
    "ilql, q": partial(ilql, trained="q1"),
    "ilql, v": partial(ilql, trained="v"),
    "process_loss": steps,
    "solution_logprob": lambda x, mask, _: rating.solution_logprob(x, mask),
    "token_rewards": lambda x, mask, outside: token_rewards(ROW, x, jnp.where(mask, OTHER, outside), mask, kl_coef=0.3),
    "k3 in the loss": partial(kl_loss, estimator="k3"),
    "whiten": lambda x, mask, _: whiten(x, mask),
}

# Their gradients are meant to be others than those of their values: a part is held fixed. By hand in their own tests.
WITH_FIXED_PARTS = {
    "truncated importance": partial(policy_loss, objective="truncated", importance_cap=1.2),
    "ppo with k2": partial(policy_loss, kl_in="loss", kl_estimator="k2", **CONSTANT),
    "ppo with the exact kl": partial(policy_loss, kl_in="loss", kl_estimator="exact"),
    "k2 in the loss": partial(kl_loss, estimator="k2"),
    "exact kl in the loss": partial(kl_loss, estimator="exact"),
}


@pytest.mark.parametrize("name", OF_TOKENS)
def test_gradients_of_tokens_are_those_of_the_values(name):
    check(lambda x: OF_TOKENS[name](x, MASK, 0.0), X)


@pytest.mark.parametrize("name", OF_TOKENS | WITH_FIXED_PARTS)
def test_what_stands_outside_the_mask_reaches_neither_the_loss_nor_its_gradient(name):
    loss = (OF_TOKENS | WITH_FIXED_PARTS)[name]

    def value_and_gradient(outside):
        x = jnp.where(MASK, X, outside)
        return jax.value_and_grad(lambda x: total(loss(x, MASK, outside)))(x)

    (value, gradient), (expected, clean) = value_and_gradient(jnp.nan), value_and_gradient(0.0)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, clean, rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(gradient)[~np.asarray(MASK)], 0.0)
    assert np.abs(np.asarray(gradient)).max() > 1e-3


@pytest.mark.parametrize("name", OF_TOKENS | WITH_FIXED_PARTS)
def test_a_batch_without_anything_to_learn_has_a_finite_loss_and_no_gradient(name):
    loss = (OF_TOKENS | WITH_FIXED_PARTS)[name]
    value, gradient = jax.value_and_grad(lambda x: total(loss(x, NOTHING, jnp.nan)))(jnp.full_like(X, jnp.nan))
    assert np.isfinite(value)
    np.testing.assert_array_equal(gradient, 0.0)
