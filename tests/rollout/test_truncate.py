from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from builders import LLAMA, built, jitted, lively, sampled

from rlhf_jax.rollout.generate import truncate
from rlhf_jax.rollout.replies import response_ids
from rlhf_jax.types import Rollout, TokenBatch

FULL_STOP = 13


def rollout_of(responses: list[list[int]], prompt: list[int]) -> Rollout:
    """Responses padded to one length behind one prompt."""
    width = max(len(ids) for ids in responses)
    tokens = np.array([prompt + ids + [0] * (width - len(ids)) for ids in responses])
    real = np.arange(tokens.shape[1])[None, :] < len(prompt) + np.array([len(ids) for ids in responses])[:, None]
    mask = real & (np.arange(tokens.shape[1])[None, :] >= len(prompt))
    return Rollout(
        batch=TokenBatch(
            tokens=jnp.asarray(tokens, jnp.int32),
            positions=jnp.asarray(np.where(real, np.arange(tokens.shape[1])[None, :], 0), jnp.int32),
            segments=jnp.asarray(real, jnp.int32),
            loss_mask=jnp.asarray(mask),
        ),
        logprobs=jnp.asarray(np.where(mask, -1.0, 0.0), jnp.float32),
        finished=jnp.ones(len(responses), bool),
        temperature=jnp.float32(1.0),
    )


def with_stops(length: int, *places: int) -> list[int]:
    return [FULL_STOP if place in places else 100 + place for place in range(length)]


def test_zieglers_rule_by_hand():
    early_and_late, early, at_the_limit = with_stops(24, 10, 18), with_stops(24, 10), with_stops(24, 16, 17)
    cut = truncate(rollout_of([early_and_late, early, at_the_limit], [1, FULL_STOP]), FULL_STOP, 16)
    assert response_ids(cut) == [early_and_late[:19], early, at_the_limit[:17]]
    assert cut.finished.tolist() == [True, False, True]  # whoever has none gets the fixed score


def test_without_a_minimum_the_first_stop_counts_but_none_in_the_prompt():
    cut = truncate(rollout_of([with_stops(4, 0, 2), with_stops(4)], [FULL_STOP, 1]), FULL_STOP)
    assert response_ids(cut) == [[FULL_STOP], with_stops(4)]
    assert cut.finished.tolist() == [True, False]


def test_what_is_cut_off_is_padding_in_every_array():
    cut = truncate(rollout_of([with_stops(4, 1)], [1, 2]), FULL_STOP)
    assert cut.batch.tokens.tolist() == [[1, 2, 100, FULL_STOP, 0, 0]]
    assert cut.batch.positions.tolist() == [[0, 1, 2, 3, 0, 0]]
    assert cut.batch.segments.tolist() == [[1, 1, 1, 1, 0, 0]]
    assert cut.batch.loss_mask.tolist() == [[False, False, True, True, False, False]]
    assert cut.logprobs.tolist() == [[0.0, 0.0, -1.0, -1.0, 0.0, 0.0]]


def test_padding_with_the_id_of_the_stop_token_is_no_stop():
    rollout = rollout_of([[100, 101], [100, 101, 102, 103]], [1])
    batch = rollout.batch.replace(tokens=jnp.where(rollout.batch.segments == 0, FULL_STOP, rollout.batch.tokens))
    cut = truncate(rollout.replace(batch=batch), FULL_STOP)
    assert cut.finished.tolist() == [False, False]
    assert response_ids(cut) == [[100, 101], [100, 101, 102, 103]]


def test_a_real_rollout_keeps_the_log_probs_of_what_is_left():
    rollout = sampled()
    ids = response_ids(rollout)
    stop = max(ids, key=len)[1]
    cut = jax.jit(truncate, static_argnums=(1, 2))(rollout, stop, 1)
    lengths = [next((n + 1 for n, token in enumerate(row) if token == stop and n >= 1), len(row)) for row in ids]
    assert response_ids(cut) == [row[:length] for row, length in zip(ids, lengths, strict=True)]
    assert sum(lengths) < sum(map(len, ids))
    mask = np.asarray(cut.batch.loss_mask)
    trained = jitted(built(LLAMA).logprobs)(lively(LLAMA), cut.batch, cut.temperature)
    np.testing.assert_allclose(np.asarray(cut.logprobs)[mask], np.asarray(trained)[mask], atol=1e-5)
