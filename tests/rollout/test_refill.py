from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import LLAMA, sampled

from rlhf_jax.rollout.refill import Scored, has_signal, refill


def scored(scores, first=0):
    """Four groups of two responses, whose prompts are numbered from `first` on."""
    index = first + jnp.repeat(jnp.arange(4), 2)
    return Scored(sampled(LLAMA, 0.7), jnp.asarray(scores, jnp.float32), index)


KEPT = scored([1, 1, 0, 2, 3, 3, 5, 4])  # the second and the fourth prompt have a signal


def test_a_signal_is_a_difference_within_a_group():
    np.testing.assert_array_equal(has_signal(KEPT.scores, samples=2), [False, True, False, True])
    np.testing.assert_array_equal(has_signal(KEPT.scores, samples=4), [True, True])


@pytest.mark.parametrize(
    ("new", "prompts"),
    [
        ([7, 8, 7, 7, 9, 8, 6, 5], [1, 3, 10, 12]),  # enough: the first of the new ones that have a signal
        ([7, 7, 7, 7, 9, 8, 7, 7], [1, 3, 12, 0]),  # too few: the rest without one, kept ones first
        ([7] * 8, [1, 3, 0, 2]),
    ],
)
def test_groups_without_a_signal_are_replaced_whole(new, prompts):
    new = scored(new, first=10)
    filled = jax.jit(lambda a, b: refill(a, b, samples=2))(KEPT, new)
    np.testing.assert_array_equal(filled.index, np.repeat(prompts, 2))
    for row, prompt in enumerate(np.asarray(filled.index)):
        source, place = (new, prompt - 10) if prompt >= 10 else (KEPT, prompt)
        there = 2 * place + row % 2
        assert float(filled.scores[row]) == float(source.scores[there])
        np.testing.assert_array_equal(filled.rollout.batch.tokens[row], source.rollout.batch.tokens[there])
    assert float(filled.rollout.temperature) == pytest.approx(0.7)
