from __future__ import annotations

import dataclasses
import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import LLAMA, SCORING, VALUE, assert_trees_close, built, jitted, lively, nearby, played, sampled

from experiments.smoke import smoke_dapo
from rlhf_jax.losses.advantages import gae
from rlhf_jax.losses.kl import k1, k2, k3
from rlhf_jax.losses.ppo import ppo_value_loss
from rlhf_jax.masking import whiten
from rlhf_jax.models.output import compare_tokens
from rlhf_jax.rollout.generate import truncate
from rlhf_jax.rollout.replies import response_ids
from rlhf_jax.rollout.score import describe_rows, final_scores, make_trajectory
from rlhf_jax.types import Moments

SCORES = np.random.default_rng(3).normal(size=8).astype(np.float32)
KL_COEF = 0.1


def trajectory_of(config=SCORING, *, temperature=0.7, reference=None, rollout=None, scores=SCORES):
    make = jitted(program(config))
    reference = nearby() if reference is None else reference
    rollout = sampled(LLAMA, temperature) if rollout is None else rollout
    value = lively(VALUE, seed=2)
    return make(lively(LLAMA), reference, value, rollout, jnp.asarray(scores), jnp.float32(KL_COEF))


@functools.cache
def program(config):
    return partial(make_trajectory, policy=built(LLAMA), values=built(VALUE).values, config=config)


def mask_of(trajectory):
    return np.asarray(trajectory.rollout.batch.loss_mask)


def last_columns(trajectory):
    return mask_of(trajectory).shape[1] - 1 - np.argmax(mask_of(trajectory)[:, ::-1], axis=1)


def kl_by_hand(params, reference, rollout):
    """KL [B, T] of whole distributions, from the logits."""

    def log_softmax(params):
        logits = np.asarray(jitted(built(LLAMA).logits)(params, rollout.batch), np.float64) / float(rollout.temperature)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    p, q = log_softmax(params), log_softmax(reference)
    kl = (np.exp(p) * (p - q)).sum(-1)
    return np.where(np.asarray(rollout.batch.loss_mask), np.roll(kl, 1, axis=1), 0.0)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_a_policy_does_not_diverge_from_itself_and_is_rewarded_by_the_score_alone(temperature):
    trajectory, metrics = trajectory_of(reference=lively(LLAMA), temperature=temperature)
    for estimator in (k1, k2, k3):
        np.testing.assert_array_equal(estimator(trajectory.old_logprobs, trajectory.ref_logprobs), 0.0)
    assert float(metrics["kl"]) == float(metrics["kl_sequence"]) == float(metrics["kl_sampled"]) == 0.0
    expected = np.zeros(mask_of(trajectory).shape, np.float32)
    expected[np.arange(8), last_columns(trajectory)] = SCORES
    np.testing.assert_array_equal(trajectory.rewards, expected)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_what_the_trainer_recomputes_is_what_the_sampler_said(temperature):
    trajectory, metrics = trajectory_of(temperature=temperature)
    assert float(metrics["sampler_gap"]) < 1e-5
    mask = mask_of(trajectory)
    np.testing.assert_allclose(
        np.asarray(trajectory.old_logprobs)[mask], np.asarray(trajectory.rollout.logprobs)[mask], atol=1e-5
    )


def test_a_wrong_temperature_shows_in_the_gap():
    rollout = sampled(LLAMA, 0.7).replace(temperature=jnp.float32(1.0))
    assert float(trajectory_of(rollout=rollout)[1]["sampler_gap"]) > 0.1


def test_log_probs_as_they_were_sampled_do_for_those_of_another_reading():
    scored, metrics = trajectory_of()
    sampled_, without = trajectory_of(dataclasses.replace(SCORING, old_logprobs="sampled"))
    mask = mask_of(scored)
    np.testing.assert_array_equal(sampled_.old_logprobs, sampled_.rollout.logprobs)
    assert_trees_close(sampled_, scored.replace(old_logprobs=sampled_.old_logprobs), atol=1e-4)
    assert set(metrics) - set(without) == {"sampler_gap", "rollout_entropy"}
    estimate = np.where(mask, k1(sampled_.old_logprobs, sampled_.ref_logprobs), 0.0)
    np.testing.assert_allclose(without["kl_sequence"], estimate.sum(1).mean(), rtol=1e-5)
    np.testing.assert_allclose(without["kl"], estimate.sum() / mask.sum(), rtol=1e-5)
    assert abs(float(without["kl"]) / float(metrics["kl"]) - 1) > 1e-3


def test_log_probs_are_not_taken_as_they_were_sampled_from_a_rounded_cache():
    experiment = smoke_dapo("cpu")
    policy = dataclasses.replace(experiment.policy, cache_dtype="bfloat16")
    with pytest.raises(ValueError, match=r"ppo.old_logprobs='sampled' with .* policy.cache_dtype='bfloat16'"):
        dataclasses.replace(experiment, policy=policy)


@pytest.mark.parametrize("off", [-0.25, 0.25])
def test_the_gap_counts_to_both_sides(off):
    rollout = sampled(LLAMA, 0.7)
    rollout = rollout.replace(logprobs=rollout.logprobs + off)
    np.testing.assert_allclose(trajectory_of(rollout=rollout)[1]["sampler_gap"], 0.25, atol=1e-4)


def test_rewards_are_the_penalty_of_every_token_and_the_score_of_the_last():
    trajectory, metrics = trajectory_of()
    mask = mask_of(trajectory)
    difference = np.asarray(trajectory.old_logprobs) - np.asarray(trajectory.ref_logprobs)
    assert np.abs(difference[mask]).max() > 0.05
    expected = np.where(mask, -KL_COEF * difference, 0.0)
    expected[np.arange(8), last_columns(trajectory)] += SCORES
    np.testing.assert_allclose(trajectory.rewards, expected, atol=1e-6)
    np.testing.assert_allclose(metrics["reward"], expected.sum(1).mean(), atol=1e-6)
    np.testing.assert_allclose(metrics["score"], SCORES.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["score_std"], SCORES.std(), rtol=1e-5)
    np.testing.assert_allclose(metrics["kl_sampled"], np.where(mask, difference, 0.0).sum(1).mean(), atol=1e-5)


def test_the_reference_is_asked_at_the_temperature_of_the_rollout():
    trajectory, _ = trajectory_of(temperature=0.7)
    rollout = trajectory.rollout
    expected = jitted(built(LLAMA).logprobs)(nearby(), rollout.batch, rollout.temperature)
    mask = mask_of(trajectory)
    np.testing.assert_allclose(np.asarray(trajectory.ref_logprobs)[mask], np.asarray(expected)[mask], atol=1e-5)


def test_the_kl_reported_is_exact_over_the_vocabulary():
    trajectory, metrics = trajectory_of()
    kl = kl_by_hand(lively(LLAMA), nearby(), trajectory.rollout)
    assert kl.sum() > 0.01
    np.testing.assert_allclose(metrics["kl_sequence"], kl.sum(1).mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["kl"], kl.sum() / mask_of(trajectory).sum(), rtol=1e-4)


def test_exact_kl_of_a_rollout_does_not_depend_on_chunks():
    rollout, model = sampled(), built(LLAMA)
    hidden = [jitted(model.hidden)(params, rollout.batch) for params in (lively(LLAMA), nearby())]
    unembed = [partial(model.unembed, params) for params in (lively(LLAMA), nearby())]
    kl = compare_tokens(unembed[0], hidden[0], unembed[1], hidden[1], rollout.batch, rollout.temperature, chunk=3)[2]
    mask = np.asarray(rollout.batch.loss_mask)
    np.testing.assert_allclose(np.where(mask, kl, 0.0), kl_by_hand(lively(LLAMA), nearby(), rollout), atol=1e-5)


def test_advantages_are_whitened_over_the_whole_batch_and_returns_are_not():
    plain, _ = trajectory_of(dataclasses.replace(SCORING, whiten_advantages=False))
    white, metrics = trajectory_of()
    mask = jnp.asarray(mask_of(plain))
    advantages, returns = gae(plain.rewards, plain.values, mask, gamma=1.0, lam=0.95)
    np.testing.assert_allclose(plain.advantages, advantages, atol=1e-5)
    np.testing.assert_allclose(white.advantages, whiten(advantages, mask), atol=1e-4)
    np.testing.assert_allclose(white.returns, returns, atol=1e-5)
    inside = np.asarray(white.advantages)[mask_of(white)]
    np.testing.assert_allclose([inside.mean(), inside.std()], [0.0, 1.0], atol=1e-5)
    residual = np.asarray(returns - plain.values)[mask_of(plain)]
    expected = 1 - residual.var() / np.asarray(returns)[mask_of(plain)].var()
    np.testing.assert_allclose(metrics["explained_variance"], expected, atol=1e-4)


def test_whitened_rewards_keep_their_mean_and_enter_advantages_only():
    config = dataclasses.replace(SCORING, whiten_rewards=True, whiten_advantages=False, gamma=0.9, lam=0.5)
    trajectory, _ = trajectory_of(config)
    mask = jnp.asarray(mask_of(trajectory))
    learned_from = whiten(trajectory.rewards, mask, shift_mean=False)
    advantages, returns = gae(learned_from, trajectory.values, mask, gamma=0.9, lam=0.5)
    np.testing.assert_allclose(trajectory.advantages, advantages, atol=1e-5)
    np.testing.assert_allclose(trajectory.returns, returns, atol=1e-5)
    np.testing.assert_allclose(trajectory.rewards, played().rewards, atol=1e-6)  # reported as they are


def test_rewards_take_the_score_in_the_unit_of_all_scores_so_far_and_metrics_as_it_is():
    config = dataclasses.replace(SCORING, score_unit="normalised", score_clip=0.8, missing_stop_score=-1.0)
    before = Moments(jnp.float32(24.0), jnp.float32(2.0), jnp.float32(9.0))
    make = jitted(program(config))
    value, scores = lively(VALUE, seed=2), jnp.asarray(SCORES)
    trajectory, metrics = make(
        lively(LLAMA), lively(LLAMA), value, sampled(), scores, jnp.float32(KL_COEF), jnp.float32(0.0), before
    )
    said = np.where(sampled().finished, SCORES, -1.0)
    mean = (24 * 2 + said.sum()) / 32
    deviation = np.sqrt((24 * (9 + 2**2) + (said**2).sum()) / 32 - mean**2)
    np.testing.assert_allclose(
        [trajectory.moments.count, trajectory.moments.mean, trajectory.moments.variance],
        [32, mean, deviation**2],
        rtol=1e-5,
    )
    expected = np.clip((said - mean) / deviation, -0.8, 0.8)
    assert set(np.abs(expected) < 0.8) == {True, False}
    np.testing.assert_allclose(
        np.asarray(trajectory.rewards)[np.arange(8), last_columns(trajectory)], expected, atol=1e-5
    )
    np.testing.assert_allclose(trajectory.scores, said)
    np.testing.assert_allclose(metrics["score"], said.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["reward"], expected.mean(), atol=1e-5)


def test_a_first_batch_is_measured_by_itself():
    trajectory, _ = trajectory_of(dataclasses.replace(SCORING, score_unit="scaled"), reference=lively(LLAMA))
    rewards = np.asarray(trajectory.rewards)[np.arange(8), last_columns(trajectory)]
    np.testing.assert_allclose(rewards, SCORES / SCORES.std(), rtol=1e-4)


def test_advantages_are_bounded_after_whitening():
    white, _ = trajectory_of()
    bounded, _ = trajectory_of(dataclasses.replace(SCORING, advantage_clip=0.5))
    assert np.abs(white.advantages).max() > 0.5
    np.testing.assert_allclose(bounded.advantages, np.clip(white.advantages, -0.5, 0.5), atol=1e-6)
    np.testing.assert_allclose(bounded.returns, white.returns, atol=1e-6)


def test_values_are_those_of_the_value_model_on_the_response_and_nothing_elsewhere():
    trajectory, metrics = trajectory_of()
    expected = jitted(built(VALUE).values)(lively(VALUE, seed=2), trajectory.rollout.batch)
    mask = mask_of(trajectory)
    np.testing.assert_allclose(trajectory.values, np.where(mask, expected, 0.0), atol=1e-5)
    np.testing.assert_allclose(metrics["value"], np.asarray(expected)[mask].mean(), atol=1e-5)
    for name in ("rewards", "advantages", "returns"):
        np.testing.assert_array_equal(np.asarray(getattr(trajectory, name))[~mask], 0.0)


def test_a_score_one_step_behind_the_response_reaches_it_through_the_value_there():
    config = dataclasses.replace(SCORING, reward_at="eos_plus_1", whiten_advantages=False)
    (found, _), (usual, _) = trajectory_of(config), trajectory_of(dataclasses.replace(config, reward_at="eos"))
    batch, mask, last = found.rollout.batch, mask_of(found), last_columns(found)
    room = last + 1 < mask.shape[1]
    assert room.any() and not room.all()
    tokens = np.asarray(batch.tokens).copy()
    rows = np.flatnonzero(room)
    tokens[rows, last[rows] + 1] = 9  # any token: its value is of the state before it
    real = np.asarray(batch.segments) != 0
    real[rows, last[rows] + 1] = True
    positions = np.cumsum(real, axis=1) - real
    longer = batch.replace(
        tokens=jnp.asarray(tokens), positions=jnp.asarray(positions), segments=jnp.asarray(real, jnp.int32)
    )
    values = np.asarray(built(VALUE).values(lively(VALUE, seed=2), longer))
    penalty = -KL_COEF * np.asarray(k1(found.old_logprobs, found.ref_logprobs))
    for row in range(len(mask)):
        end = last[row]
        if not room[row]:
            np.testing.assert_allclose(found.advantages[row], usual.advantages[row], atol=1e-6)
            continue
        behind = values[row, end + 1]
        np.testing.assert_allclose(found.values[row, end : end + 2], values[row, end : end + 2], atol=1e-5)
        assert float(found.rewards[row, end + 1]) == SCORES[row] and float(found.advantages[row, end + 1]) == 0
        np.testing.assert_allclose(found.returns[row, end + 1], SCORES[row], atol=1e-5)
        expected = config.lam * (SCORES[row] - behind) + penalty[row, end] + behind - values[row, end]
        np.testing.assert_allclose(found.advantages[row, end], expected, atol=1e-5)
    loss = partial(ppo_value_loss, lively(VALUE, seed=2), values=built(VALUE).values, clip=None)
    weights = [float(loss(one, reward_at=at)[1].weight) for one, at in ((usual, "eos"), (found, "eos_plus_1"))]
    assert weights == [mask.sum(), mask.sum() + room.sum()]


def test_a_missing_stop_token_replaces_the_score():
    rollout = sampled()
    assert 0 < int(rollout.finished.sum()) < 8
    expected = np.where(rollout.finished, SCORES, -1.0)
    scores, zero_is_a_score = jnp.asarray(SCORES), np.where(rollout.finished, SCORES, 0.0)
    for missing, wanted in ((-1.0, expected), (None, SCORES), (0.0, zero_is_a_score)):
        config = dataclasses.replace(SCORING, missing_stop_score=missing)
        np.testing.assert_array_equal(final_scores(scores, rollout, config), wanted)
    trajectory, metrics = trajectory_of(dataclasses.replace(SCORING, missing_stop_score=-1.0), reference=lively(LLAMA))
    np.testing.assert_array_equal(trajectory.scores, expected)
    np.testing.assert_array_equal(np.asarray(trajectory.rewards)[np.arange(8), last_columns(trajectory)], expected)
    np.testing.assert_allclose(metrics["score"], expected.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["finished"], np.mean(rollout.finished))


def test_a_truncated_response_is_rewarded_at_its_new_end():
    rollout = sampled()
    stop = max(response_ids(rollout), key=len)[1]
    cut = truncate(rollout, stop, 1)
    assert int(cut.batch.loss_mask.sum()) < int(rollout.batch.loss_mask.sum())
    trajectory, metrics = trajectory_of(rollout=cut, reference=lively(LLAMA))
    lengths = [len(ids) for ids in response_ids(cut)]
    np.testing.assert_array_equal(np.asarray(trajectory.rewards)[np.arange(8), 4 + np.array(lengths) - 1], SCORES)
    assert float(metrics["length"]) == np.mean(lengths)
    assert float(metrics["sampler_gap"]) < 1e-5


def test_rows_are_described_by_their_sums():
    rollout = sampled()
    rows = jax.jit(partial(describe_rows, policy=built(LLAMA)))(lively(LLAMA), nearby(), rollout)
    mask = np.asarray(rollout.batch.loss_mask)
    run = jitted(built(LLAMA).token_stats)
    stats, ref = (run(params, rollout.batch, rollout.temperature) for params in (lively(LLAMA), nearby()))
    np.testing.assert_allclose(rows["kl"], kl_by_hand(lively(LLAMA), nearby(), rollout).sum(1), atol=1e-4)
    np.testing.assert_allclose(rows["logprob"], np.where(mask, stats.logprobs, 0.0).sum(1), atol=1e-5)
    np.testing.assert_allclose(rows["ref_logprob"], np.where(mask, ref.logprobs, 0.0).sum(1), atol=1e-5)
    np.testing.assert_allclose(rows["entropy"], np.where(mask, stats.entropy, 0.0).sum(1), atol=1e-5)
    np.testing.assert_array_equal(rows["length"], mask.sum(1))


def test_a_rollout_that_was_padded_or_cut_says_no_more_where_its_responses_stand():
    rollout = sampled(LLAMA, 0.7)
    assert rollout.columns == (4, rollout.last)
    cut = jax.tree.map(lambda x: x[:, :-1] if x.ndim == 2 else x, rollout)
    for use in (
        lambda: trajectory_of(rollout=cut),
        lambda: describe_rows(lively(LLAMA), nearby(), cut, policy=built(LLAMA)),
    ):
        with pytest.raises(
            ValueError, match=r"a rollout of 9 columns says that it has 4 of prompts and 6 of responses"
        ):
            use()
    assert cut.replace(columns=None).last is None
    whole, anywhere = (trajectory_of(rollout=each)[0] for each in (rollout, rollout.replace(columns=None)))
    for name in ("rewards", "advantages", "returns"):
        np.testing.assert_allclose(getattr(anywhere, name), getattr(whole, name), atol=1e-5)
