from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.losses.q_learning import (
    advantage_weighted_logits,
    expectile,
    following,
    ilql_loss,
    one_step_targets,
    polyak,
    q_learning_loss,
    with_targets,
)
from rlhf_jax.masking import last_index
from rlhf_jax.types import OfflineBatch, RewardedBatch, TokenBatch, TokenValues
from rlhf_jax.worlds.exact import ExactWorld

pytestmark = pytest.mark.usefixtures("strict_dtypes")

MASK = jnp.array([[False, True, True, True, False]])


@pytest.mark.parametrize(
    ("u", "tau", "expected"), [(1.0, 0.7, 0.7), (-1.0, 0.7, 0.3), (2.0, 0.5, 2.0), (0.0, 0.9, 0.0)]
)
def test_expectile_by_hand(u, tau, expected):
    np.testing.assert_allclose(expectile(jnp.float32(u), tau=tau), expected, rtol=1e-6)


def test_the_minimum_of_the_expectile_loss_lies_above_the_mean():
    values = jnp.array([0.0, 0.0, 0.0, 4.0])
    grid = jnp.linspace(0, 4, 401)
    best = [
        float(grid[jnp.argmin(jnp.mean(expectile(values[None] - grid[:, None], tau=tau), axis=1))])
        for tau in (0.5, 0.9)
    ]
    # .9 * (4 - m) = .1 * 3 m
    np.testing.assert_allclose(best, [1.0, 3.0], atol=0.011)


def test_values_behind_the_last_token_are_0():
    values = jnp.array([[9.0, 1.0, 2.0, 3.0, jnp.nan]])
    np.testing.assert_allclose(following(values, MASK), [[1.0, 2.0, 3.0, 0.0, 0.0]])


def test_one_step_targets_by_hand():
    # r + gamma V(s'), from the V before each token
    best = jnp.array([[7.0, 1.0, 2.0, 0.75, jnp.nan]])
    rewards = jnp.array([[5.0, 0.1, 0.0, 1.0, 5.0]])
    found = one_step_targets(rewards, best, MASK, gamma=0.9)
    np.testing.assert_allclose(found, [[0.0, 0.1 + 0.9 * 2.0, 0.9 * 0.75, 1.0, 0.0]], rtol=1e-6)


def test_polyak_by_hand():
    found = polyak({"w": jnp.array([1.0])}, {"w": jnp.array([3.0])}, rate=0.25)
    np.testing.assert_allclose(found["w"], [1.5])


def batch() -> OfflineBatch:
    tokens = jnp.array([[3, 1, 2]], jnp.int32)
    mask = jnp.array([[False, True, True]])
    text = TokenBatch(tokens, tokens, jnp.ones_like(tokens), mask)
    return OfflineBatch(text, jnp.array([[9.0, 0.0, 1.0]]), jnp.array([[9.0, 0.5, 2.0]]))


def critics(params, text):
    q, norm = jnp.array([[9.0, 0.6, 0.8]]), jnp.array([[9.0, 1.0, 1.5]])
    v = jnp.array([[9.0, 0.2, 0.4]])
    return TokenValues(q + params["q1"], q + params["q2"], norm + params["q1"], norm + params["q2"], v + params["v"])


def token_logits(params, text):
    return jnp.array([[9.0, 0.6, 0.8]]) + params, jnp.zeros((1, 3))


def test_one_step_q_learning_by_hand():
    loss, aux = q_learning_loss(jnp.float32(0.1), batch(), token_logits=token_logits, gamma=0.9)
    # targets 0 + .9 * 2 and 1; Q .7 and .9
    np.testing.assert_allclose(loss, (1.1**2 + 0.1**2) / 2, rtol=1e-5)
    found = [float(aux.metrics[name]) for name in ("loss", "q", "target")]
    np.testing.assert_allclose(found, [(1.1**2 + 0.1**2) / 2, 0.8, 1.4], rtol=1e-5)
    assert float(aux.weight) == 2.0


def test_q_learning_on_every_string_ends_at_the_values_of_dynamic_programming():
    """A table of Q over all prefixes of an exact world, and every string of it in the batch: nothing is estimated, so Q is Q*."""
    world, gamma = ExactWorld(vocab=3, length=3, prompts=2), 0.9
    text = jax.tree.map(jnp.asarray, world.batch)
    mask, rows = np.asarray(text.loss_mask), np.asarray(text.tokens)
    prefixes = sorted({tuple(row[:t]) for row, m in zip(rows, mask, strict=True) for t in np.flatnonzero(m)})
    state = np.zeros(rows.shape, int)
    for n, t in np.argwhere(mask):
        state[n, t] = prefixes.index(tuple(rows[n, :t]))
    last = np.arange(rows.shape[1]) == np.asarray(last_index(text.loss_mask))[:, None]
    rewards = jnp.asarray(np.where(last, world.gold.reshape(-1, 1), 0.0), jnp.float32)

    def taken(table, text):
        return jnp.take_along_axis(table[state], text.tokens[:, :, None], axis=2)[:, :, 0], jnp.zeros(text.tokens.shape)

    @jax.jit
    def update(table):
        given = OfflineBatch(text, rewards, jnp.max(table, axis=-1)[state])
        return table - 3.0 * jax.grad(lambda t: q_learning_loss(t, given, token_logits=taken, gamma=gamma)[0])(table)

    table = jnp.full((len(prefixes), world.vocab), 5.0)  # starts too high
    for _ in range(600):
        table = update(table)

    strings = {
        (*world.prompt(x), *s): world.gold[x, n] for x in range(world.prompts) for n, s in enumerate(world.strings)
    }

    def best_from(prefix):
        ended = [gamma ** (len(s) - len(prefix) - 1) * r for s, r in strings.items() if s[: len(prefix)] == prefix]
        return max(ended)

    for n, prefix in enumerate(prefixes):
        for token in range(world.vocab):
            longer = (*prefix, token)
            value = strings[longer] if longer in strings else gamma * best_from(longer)
            np.testing.assert_allclose(table[n, token], value, atol=1e-3, err_msg=str(longer))


def loss_at(q1, q2, v):
    params = {"q1": jnp.float32(q1), "q2": jnp.float32(q2), "v": jnp.float32(v)}
    return ilql_loss(params, batch(), critics=critics, gamma=0.9, tau=0.7, cql_coef=0.1)


def test_ilql_by_hand():
    loss, aux = loss_at(0.0, 0.1, 0.0)
    # targets .36 and 1; Q1 .6 and .8, Q2 .7 and .9; squares, mean over two tokens
    q_loss = (0.24**2 + 0.2**2) / 2 + (0.34**2 + 0.1**2) / 2
    value_loss = 0.7 * (0.3**2 + 1.6**2) / 2
    cql = 2 * (0.4 + 0.7) / 2
    found = [float(aux.metrics[name]) for name in ("q_loss", "value_loss", "cql_loss")]
    np.testing.assert_allclose(found, [q_loss, value_loss, cql], rtol=1e-5)
    np.testing.assert_allclose(loss, q_loss + value_loss + 0.1 * cql, rtol=1e-5)
    np.testing.assert_allclose([aux.metrics["q"], aux.metrics["v"]], [(0.7 + 0.8) / 2, 0.3], rtol=1e-5)
    assert float(aux.weight) == 2.0


def test_the_value_learns_from_the_target_q_alone():
    gradient = jax.grad(lambda v: loss_at(0.0, 0.1, v)[0])(0.0)
    np.testing.assert_allclose(gradient, -0.7 * 2 * (0.3 + 1.6) / 2, rtol=1e-5)


def test_the_reward_of_a_text_is_earned_by_its_last_token_to_learn():
    text = batch().text
    texts = jax.tree.map(lambda x: jnp.concatenate([x, x, x]), text)
    texts = texts.replace(loss_mask=jnp.array([[False, True, True], [True, True, False], [False, False, False]]))
    slow = {"q1": jnp.float32(0.1), "q2": jnp.float32(-0.2), "v": jnp.float32(0.0)}
    found = with_targets(slow, RewardedBatch(texts, jnp.array([1.0, -2.0, 5.0])), critics=critics)
    np.testing.assert_array_equal(found.rewards, [[0.0, 0.0, 1.0], [0.0, -2.0, 0.0], [0.0, 0.0, 0.0]])
    np.testing.assert_allclose(found.target_q[0], [8.8, 0.4, 0.6], rtol=1e-6)  # of Q2, the lesser


def test_decoding_by_hand():
    logits, q1, q2 = jnp.array([[0.0, 1.0]]), jnp.array([[1.0, 2.0]]), jnp.array([[0.5, 3.0]])
    found = advantage_weighted_logits(logits, q1, q2, jnp.array([1.0]), beta=2.0)
    np.testing.assert_allclose(found, [[-1.0, 3.0]])
    np.testing.assert_allclose(advantage_weighted_logits(logits, q1, q2, jnp.array([1.0]), beta=0.0), logits)
