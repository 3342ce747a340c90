from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.config import Sampling
from rlhf_jax.rollout.sampling import greedy_tokens, largest, left_by, logprob_of, penalised, row_keys, sample_tokens

RUN = jax.random.key(0)


def key_bits(*of):
    return [tuple(row) for row in np.asarray(jax.random.key_data(row_keys(*of)))]


def numbers(*values):
    return jnp.array(values, jnp.int32)


def test_a_key_depends_on_run_step_prompt_and_sample_and_on_nothing_else():
    base = key_bits(RUN, 3, numbers(5, 6, 5), numbers(0, 0, 1))
    assert len(set(base)) == 3
    assert key_bits(RUN, 3, numbers(5), numbers(1)) == [base[2]]
    assert key_bits(RUN, 3, numbers(6, 9, 9, 5), numbers(0, 9, 8, 0))[::3] == [base[1], base[0]]
    assert not set(key_bits(RUN, 4, numbers(5, 6, 5), numbers(0, 0, 1))) & set(base)
    assert not set(key_bits(jax.random.key(1), 3, numbers(5, 6, 5), numbers(0, 0, 1))) & set(base)
    assert key_bits(RUN, 0, numbers(1), numbers(2)) != key_bits(RUN, 0, numbers(2), numbers(1))
    assert key_bits(RUN, 1, numbers(0), numbers(2)) != key_bits(RUN, 0, numbers(1), numbers(2))


def test_indices_may_be_host_arrays_and_minus_one():
    from_host = key_bits(RUN, 3, np.array([5, -1], np.int32), np.zeros(2, np.int32))
    assert from_host == key_bits(RUN, 3, numbers(5, -1), numbers(0, 0))


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, -0.12693), (0.7, -0.05584)])
@pytest.mark.parametrize("choose", [greedy_tokens, sample_tokens])
def test_the_log_prob_is_that_of_the_tempered_distribution_by_hand(strict_dtypes, choose, temperature, expected):
    keys = jax.random.split(RUN, 64)
    logits = jnp.broadcast_to(jnp.array([[2.0, 0.0]]), (64, 2))
    tokens, logprobs = choose(logits, keys, jnp.int32(0), jnp.float32(temperature))
    expected_of_each = np.where(np.asarray(tokens) == 0, expected, expected - 2.0 / temperature)
    np.testing.assert_allclose(logprobs, expected_of_each, atol=1e-5)
    assert tokens.dtype == jnp.int32


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_tokens_come_as_often_as_their_probability_says(temperature):
    count, logits = 20_000, np.array([1.0, 0.0, -1.0, 0.5])
    keys, rows = jax.random.split(jax.random.key(2), count), np.tile(logits.astype(np.float32), (count, 1))
    tokens, _ = jax.jit(sample_tokens)(rows, keys, 0, temperature)
    p = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
    share = np.bincount(tokens, minlength=4) / count
    assert (np.abs(share - p) < 4 * np.sqrt(p * (1 - p) / count)).all()


def test_the_largest_is_the_first_of_the_largest_and_always_one_of_them():
    rows = jnp.array([[1.0, 3.0, 3.0], [-jnp.inf, -jnp.inf, -2.0], [2.0, 2.0, 2.0], [jnp.nan, 0.0, 1.0]])
    assert largest(rows)[:3].tolist() == [1, 2, 0]
    assert 0 <= int(largest(rows)[3]) < 3  # of numbers that are none, any


def test_columns_and_rows_have_noise_of_their_own():
    logits = jnp.zeros((8, 1000))
    keys = jax.random.split(RUN, 8)
    first, _ = sample_tokens(logits, keys, 0, 1.0)
    second, _ = sample_tokens(logits, keys, 1, 1.0)
    assert len({*first.tolist(), *second.tolist()}) >= 14
    again, _ = sample_tokens(logits, keys, 0, 1.0)
    assert first.tolist() == again.tolist()


def test_the_noise_goes_with_the_key_and_not_with_the_place_in_the_batch():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(6, 50)), jnp.float32)
    keys, order = jax.random.split(RUN, 6), np.array([3, 0, 5, 1, 4, 2])
    whole, _ = sample_tokens(logits, keys, 2, 1.0)
    permuted, _ = sample_tokens(logits[order], keys[order], 2, 1.0)
    part, _ = sample_tokens(logits[2:4], keys[2:4], 2, 1.0)
    assert permuted.tolist() == np.asarray(whole)[order].tolist()
    assert part.tolist() == whole[2:4].tolist()


def test_greedy_tokens_are_the_likeliest_whatever_key_and_temperature():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(6, 50)), jnp.float32)
    for seed, temperature in ((0, 1.0), (1, 0.1), (2, 5.0)):
        tokens, _ = greedy_tokens(logits, jax.random.split(jax.random.key(seed), 6), 0, temperature)
        assert tokens.tolist() == np.argmax(logits, axis=1).tolist()


def test_log_probs_are_computed_in_float32():
    logits = jnp.array([[2.0, 0.0]], jnp.bfloat16)
    _, logprobs = greedy_tokens(logits, jax.random.split(RUN, 1), 0, 1.0)
    assert logprobs.dtype == jnp.float32
    np.testing.assert_allclose(logprobs, [-0.12693], atol=1e-5)
    np.testing.assert_allclose(logprob_of(jnp.array([[2.0, 0.0]]), numbers(1)), [-2.12693], atol=1e-5)


P = np.array([0.1, 0.4, 0.05, 0.3, 0.15])


def left(probabilities=P, **sampling):
    """The tokens that may be drawn."""
    logits = jnp.log(jnp.asarray([probabilities], jnp.float32))
    kept = left_by(logits, Sampling(**sampling))
    np.testing.assert_array_equal(kept[0], np.where(np.isfinite(kept[0]), logits[0], -np.inf))
    return np.flatnonzero(np.isfinite(kept[0])).tolist()


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"top_k": 1}, [1]),
        ({"top_k": 3}, [1, 3, 4]),
        ({"top_k": 99}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.01}, [1]),
        ({"top_p": 1e-9}, [1]),
        ({"top_p": 0.39}, [1]),
        ({"top_p": 0.41}, [1, 3]),
        ({"top_p": 0.84}, [1, 3, 4]),
        ({"top_p": 1.0}, [0, 1, 2, 3, 4]),
        ({"min_p": 0.3}, [1, 3, 4]),
        ({"min_p": 0.0}, [0, 1, 2, 3, 4]),
        ({"min_p": 1.0}, [1]),
        # Of the three likeliest the first two have 0.7 / 0.85 of the probability.
        ({"top_k": 3, "top_p": 0.82}, [1, 3]),
        ({"top_p": 0.84, "min_p": 0.5}, [1, 3]),
    ],
)
def test_what_may_be_drawn_by_hand(strict_dtypes, sampling, expected):
    assert left(**sampling) == expected


def test_a_top_p_of_one_leaves_the_unlikeliest_of_many_tokens():
    logits = jnp.asarray(np.random.default_rng(6).normal(scale=4.0, size=(4, 32_000)), jnp.float32)
    np.testing.assert_array_equal(left_by(logits, Sampling(top_p=1.0)), logits)


def test_of_tokens_that_are_as_likely_the_first_are_left():
    assert left([0.25] * 4, top_k=2) == [0, 1]
    assert left([0.25] * 4, top_p=0.6) == [0, 1, 2]


@pytest.mark.parametrize(
    "sampling", [{"top_k": 7}, {"top_p": 0.6}, {"min_p": 0.2}, {"top_k": 9, "top_p": 0.8, "min_p": 0.05}]
)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_rest_is_left_out_as_transformers_does(sampling, temperature):
    import torch
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = np.random.default_rng(4).normal(scale=2.0, size=(200, 50)).astype(np.float32)
    theirs = TemperatureLogitsWarper(temperature)(None, torch.tensor(logits))
    for name, warper in (("top_k", TopKLogitsWarper), ("top_p", TopPLogitsWarper), ("min_p", MinPLogitsWarper)):
        if name in sampling:
            theirs = warper(sampling[name])(None, theirs)
    ours = left_by(jnp.asarray(logits) / temperature, Sampling(**sampling))
    np.testing.assert_array_equal(np.isfinite(ours), np.isfinite(theirs.numpy()))
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6)


@pytest.mark.parametrize("penalty", [1.3, 0.7, 1.0])
def test_tokens_that_stand_before_are_made_less_likely_as_transformers_does(penalty):
    import torch
    from transformers import RepetitionPenaltyLogitsProcessor

    draw = np.random.default_rng(5)
    logits, before = draw.normal(size=(40, 50)).astype(np.float32), draw.integers(0, 50, (40, 12))
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor(before), torch.tensor(logits))
    padded = np.concatenate([np.full((40, 3), 50), before, np.full((40, 2), 50)], axis=1)  # 50 is no token
    np.testing.assert_allclose(penalised(jnp.asarray(logits), jnp.asarray(padded), penalty), theirs, rtol=1e-6)


def test_log_probs_of_what_is_drawn_are_those_among_what_is_left():
    count = 20_000
    rows = jnp.tile(jnp.log(jnp.asarray(P, jnp.float32)), (count, 1))
    keys = jax.random.split(jax.random.key(5), count)
    tokens, logprobs = jax.jit(lambda *given: sample_tokens(*given, sampling=Sampling(top_k=3)))(rows, keys, 0, 1.0)
    expected = np.where(np.isin(np.arange(5), [1, 3, 4]), P, 0.0) / 0.85
    share = np.bincount(tokens, minlength=5) / count
    assert (np.abs(share - expected) <= 4 * np.sqrt(expected * (1 - expected) / count)).all()
    np.testing.assert_allclose(np.exp(logprobs), expected[np.asarray(tokens)], rtol=1e-5)


@pytest.mark.parametrize(
    ("setting", "said"),
    [({"top_k": 0}, "top_k"), ({"top_p": 0.0}, "top_p"), ({"top_p": 1.5}, "top_p"), ({"min_p": -0.1}, "min_p")],
)
def test_settings_that_leave_nothing_or_mean_nothing_are_refused(setting, said):
    with pytest.raises(ValueError, match=said):
        Sampling(**setting)
