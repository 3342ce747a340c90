"""One update of critics: what the targets come from, how the slow copies follow, and that microbatches do not matter."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from builders import LLAMA, assert_trees_close, critics_of, lively_critics, right_padded

from rlhf_jax.losses.q_learning import ilql_loss, with_targets
from rlhf_jax.train.critics import CriticState, make_critic_step, start_critics
from rlhf_jax.train.step import gradients
from rlhf_jax.types import RewardedBatch

CRITICS = critics_of(LLAMA)
LOSS = partial(ilql_loss, critics=CRITICS.values, gamma=0.9, tau=0.7, cql_coef=0.1)
BATCH = RewardedBatch(right_padded([9, 3, 5, 4, 9, 8, 2, 6], 9), jnp.linspace(-1.0, 1.0, 8))
TX = optax.sgd(0.01)


def state() -> CriticState:
    """One whose slow copies are some way behind."""
    start = start_critics(lively_critics(LLAMA), TX)
    return CriticState(start.train, lively_critics(LLAMA, seed=1))


def test_the_targets_are_of_the_slow_copies_which_then_follow_the_parameters():
    start = state()
    after, metrics = jax.jit(make_critic_step(LOSS, CRITICS.values, TX, rate=0.25))(start, BATCH)
    expected, *_ = gradients(LOSS, start.train.params, with_targets(start.slow, BATCH, critics=CRITICS.values))
    stepped = jax.tree.map(lambda x, g: x - 0.01 * g, start.train.params, expected)
    assert_trees_close(after.train.params, stepped, atol=1e-5)
    assert_trees_close(after.slow, jax.tree.map(lambda x, y: 0.75 * x + 0.25 * y, start.slow, stepped), atol=1e-5)
    assert {"q_loss", "value_loss", "cql_loss", "grad_norm"} <= metrics.keys()


@pytest.mark.parametrize("microbatches", [2, 4])
def test_microbatches_give_the_update_of_the_whole_batch(microbatches):
    whole, pieces = (
        jax.jit(make_critic_step(LOSS, CRITICS.values, TX, rate=0.5, microbatches=count))(state(), BATCH)
        for count in (1, microbatches)
    )
    assert_trees_close(whole, pieces, atol=1e-5, rtol=1e-5)


def test_the_start_of_the_slow_copies_is_a_copy():
    start = start_critics(lively_critics(LLAMA), TX)
    assert_trees_close(start.slow, start.train.params, atol=0.0)
    slow, online = (jax.tree.leaves(tree)[0].unsafe_buffer_pointer() for tree in (start.slow, start.train.params))
    assert slow != online
    assert np.asarray(start.train.step) == 0
