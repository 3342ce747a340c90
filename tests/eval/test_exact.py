"""Closed forms against each other, against numbers by hand, and against a real decoder on the exact world."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import lively

from rlhf_jax.config import ModelConfig
from rlhf_jax.eval import exact
from rlhf_jax.eval.best_of_n import best_of_n_kl
from rlhf_jax.models import build_model
from rlhf_jax.worlds.exact import ExactWorld

WORLD = ExactWorld(vocab=4, length=3, prompts=2, seed=3)
CONFIG = ModelConfig(vocab=4, width=16, layers=2, heads=2, kv_heads=1, mlp=24, max_length=8)
BETA = 0.4


@functools.cache
def table(seed: int, temperature: float = 1.0) -> jax.Array:
    model = build_model(CONFIG)
    return exact.string_logprobs(
        lively(CONFIG, seed), WORLD.batch, logprobs=model.logprobs, prompts=WORLD.prompts, temperature=temperature
    )


def distribution(*p: float) -> jax.Array:
    return jnp.log(jnp.array([p]))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_all_strings_together_have_probability_one_for_any_decoder(temperature):
    logp = table(0, temperature)
    assert logp.shape == WORLD.gold.shape
    np.testing.assert_allclose(exact.total(logp), 1, atol=1e-5)


def test_the_log_probability_of_a_string_is_the_sum_of_its_tokens():
    per_token = np.asarray(build_model(CONFIG).logprobs(lively(CONFIG, 0), jax.tree.map(jnp.asarray, WORLD.batch), 1.0))
    row = len(WORLD.strings) + WORLD.strings.index((2, 1, 0))  # the second prompt
    np.testing.assert_allclose(table(0)[1, row - len(WORLD.strings)], per_token[row, 1:4].sum(), rtol=1e-6)


def test_kl_entropy_and_expectation_by_hand():
    p, q = distribution(0.5, 0.5, 0.0), distribution(0.25, 0.25, 0.5)
    assert exact.kl(p, q) == pytest.approx(np.log(2))
    assert exact.kl(q, q) == 0
    assert exact.kl(q, p) == np.inf
    assert exact.entropy(p) == pytest.approx(np.log(2))
    assert exact.entropy(q) == pytest.approx(1.5 * np.log(2))
    rewards = jnp.array([[1.0, 2.0, 9.0]])
    assert exact.expected(p, rewards) == pytest.approx(1.5)
    assert exact.objective(p, q, rewards, 0.5) == pytest.approx(1.5 - 0.5 * np.log(2))


@pytest.mark.parametrize(("beta", "share"), [(0.5, 0.881), (2.0, 0.622)])
def test_the_optimum_of_two_arms_by_hand(beta, share):
    best, value = exact.optimum(distribution(0.5, 0.5), jnp.array([[1.0, 0.0]]), beta)
    assert float(jnp.exp(best)[0, 0]) == pytest.approx(share, abs=5e-4)
    assert value == pytest.approx(beta * np.log((np.exp(1 / beta) + 1) / 2))


def test_what_a_policy_lacks_to_the_optimum_is_beta_times_its_kl_to_it():
    gold = jnp.asarray(WORLD.gold)
    best, value = exact.optimum(table(0), gold, BETA)
    for seed in (0, 1, 2):
        lacks = value - exact.objective(table(seed), table(0), gold, BETA)
        assert float(lacks) == pytest.approx(BETA * float(exact.kl(table(seed), best)), abs=1e-4)
    assert exact.objective(best, table(0), gold, BETA) == pytest.approx(float(value), abs=1e-5)


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_the_best_of_n_by_counting_all_draws(n):
    p, scores = np.array([0.1, 0.4, 0.3, 0.2]), np.array([2.0, 0.5, 2.0, -1.0])
    found = np.exp(np.asarray(exact.best_of_n(jnp.log(p)[None], jnp.asarray(scores)[None], n)))[0]
    # Scores 2 (mass .4, shared 1 : 3), .5 (mass .4), -1 (mass .2).
    top = 1 - 0.6**n
    np.testing.assert_allclose(found, [top / 4, 0.6**n - 0.2**n, top * 3 / 4, 0.2**n], atol=1e-6)


def test_the_best_of_n_is_a_distribution_for_any_real_n_and_its_kl_stays_below_the_formula():
    logref, gold = table(0), jnp.asarray(WORLD.gold)
    last = -np.inf
    for n in (1.0, 1.5, 4.0, 32.0, 1e3, 1e5):
        best = exact.best_of_n(logref, gold, n)
        np.testing.assert_allclose(exact.total(best), 1, atol=1e-4)
        assert (exact.kl_per_prompt(best, logref) <= best_of_n_kl(n) + 1e-4).all()
        reward = float(exact.expected(best, gold))
        assert reward >= last - 1e-5
        last = reward
    assert last == pytest.approx(float(gold.max(axis=1).mean()), abs=1e-3)


def test_the_best_of_n_of_strings_too_unlikely_for_a_float_is_still_a_distribution():
    logp = jnp.array([[-200.0, -0.1, np.log(1 - np.exp(-0.1)), -300.0, -jnp.inf]])
    for scores in ([5.0, 1.0, 2.0, 4.0, 3.0], [0.0, 1.0, 2.0, -1.0, -2.0]):
        best = exact.best_of_n(logp, jnp.array([scores]), 3.0)
        assert not jnp.isnan(best).any()
        np.testing.assert_allclose(exact.total(best), 1, rtol=1e-6)
        assert jnp.isfinite(exact.kl(best, logp))
    # The best string of all, however unlikely, is drawn n times as often.
    np.testing.assert_allclose(
        exact.best_of_n(logp, jnp.array([[5.0, 1.0, 2.0, 4.0, 3.0]]), 3.0)[0, 0], -200 + np.log(3)
    )


def test_the_kl_of_the_best_of_n_meets_the_formula_where_no_string_stands_out():
    p = jnp.full((1, 20_000), -np.log(20_000.0))
    scores = jax.random.normal(jax.random.key(0), p.shape)
    assert exact.kl(exact.best_of_n(p, scores, 16.0), p) == pytest.approx(best_of_n_kl(16), rel=1e-3)


def bradley_terry(a, b):
    return jax.nn.sigmoid(a - b)


def test_the_moments_of_each_prompt_by_hand():
    logp = jnp.log(jnp.array([[0.25, 0.75], [0.5, 0.5]]))
    mean, std = exact.moments(logp, jnp.array([[0.0, 4.0], [1.0, 3.0]]))
    np.testing.assert_allclose(mean, [3.0, 2.0], rtol=1e-6)
    np.testing.assert_allclose(std, [3**0.5, 1.0], rtol=1e-6)


def test_wins_and_the_optimum_of_ipo_by_hand():
    uniform, values = distribution(0.5, 0.5), jnp.array([[np.log(3.0), 0.0]])
    preference = exact.wins(uniform, bradley_terry, values)
    np.testing.assert_allclose(preference, [[0.625, 0.375]], rtol=1e-6)
    best = jnp.exp(exact.ipo_optimum(uniform, preference, 0.25))
    np.testing.assert_allclose(best[0, 0], 1 / (1 + np.exp(-1)), rtol=1e-6)
    assert exact.expected(uniform, preference) == pytest.approx(0.5)  # a policy against itself


def test_two_deterministic_actions_have_the_optimum_of_azar_et_al():
    # Section 5.3: pi(best) = sigmoid(1 / (2 tau)).
    preference = exact.wins(distribution(0.5, 0.5), lambda a, b: (a > b) + 0.5 * (a == b), jnp.array([[1.0, 0.0]]))
    best = jnp.exp(exact.ipo_optimum(distribution(0.5, 0.5), preference, 0.5))
    np.testing.assert_allclose(best[0, 0], 1 / (1 + np.exp(-0.5 / 0.5)), rtol=1e-6)


@pytest.mark.parametrize("beta", [0.05, 0.5, 5.0])
def test_the_optimum_under_forward_kl_is_a_distribution_that_no_other_beats(beta):
    logref, gold = table(0), jnp.asarray(WORLD.gold)
    best = exact.forward_kl_optimum(logref, gold, beta)
    np.testing.assert_allclose(exact.total(best), 1, atol=1e-4)

    def objective(logp):
        return float(exact.expected(logp, gold) - beta * exact.kl(logref, logp))

    for seed in range(5):
        noise = 0.1 * jax.random.normal(jax.random.key(seed), best.shape)
        assert objective(jax.nn.log_softmax(best + noise, axis=1)) < objective(best)


def test_reward_starts_to_rise_with_the_root_of_the_kl_as_the_law_says():
    logref, gold = table(0), jnp.asarray(WORLD.gold)
    slope = exact.sqrt_kl_slope(logref, gold)
    best, _ = exact.optimum(logref, gold, 20.0)
    p, q = jnp.exp(best), jnp.exp(logref)
    rise = jnp.sum((p - q) * gold, axis=1)
    np.testing.assert_allclose(rise / jnp.sqrt(exact.kl_per_prompt(best, logref)), slope, rtol=0.05)


def test_the_exact_policy_gradient_is_that_of_the_score_function():
    model, params, gold = build_model(CONFIG), lively(CONFIG, 1), jnp.asarray(WORLD.gold)
    reading = functools.partial(
        exact.string_logprobs, batch=WORLD.batch, logprobs=model.logprobs, prompts=WORLD.prompts
    )
    direct = jax.grad(lambda p: exact.expected(reading(p), gold))(params)
    weights = jax.lax.stop_gradient(jnp.exp(reading(params)) * gold)
    score_function = jax.grad(lambda p: jnp.mean(jnp.sum(weights * reading(p), axis=1)))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), direct, score_function)


def test_expectiles_by_hand():
    x = jnp.array([[0.0, 0.0, 0.0, 4.0], [1.0, 7.0, 3.0, -2.0], [5.0, 5.0, 5.0, 5.0]])
    weights = jnp.array([[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(exact.expectile_of(x, weights, 0.5), [1.0, 2.0, 0.0], rtol=1e-6)
    # .9 (4 - m) = .1 * 3 m; .9 (3 - m) = .1 (m - 1)
    np.testing.assert_allclose(exact.expectile_of(x, weights, 0.9), [3.0, 2.8, 0.0], rtol=1e-6)


def test_values_under_expectile_backups_by_hand():
    # Two words, two tokens: "", "1", "2", then "11", "12", "21", "22".
    rewards = jnp.array([[0.0, 9.0, 1.0, 2.0, 4.0, 9.0, 5.0]])
    mass = jnp.array([[1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0]])
    values = [float(exact.implicit_values(mass, rewards, tau, words=2, length=2)[0]) for tau in (0.5, 0.75)]
    # tau .5: the mean. tau .75: V(1) = 3.5 from 2 and 4, V(2) = 4 from 1 and 5; then 3 (2 (3.5 - v) + 2 (4 - v)) = v
    np.testing.assert_allclose(values, [12 / 5, 45 / 13], rtol=1e-6)


def test_values_at_tau_half_are_the_mean_and_rise_to_the_highest_reward():
    logp, gold = table(0), jnp.asarray(WORLD.gold)
    taus = (0.5, 0.7, 0.9, 0.9999)
    sizes = {"words": WORLD.words, "length": WORLD.length}
    values = np.array([exact.implicit_values(jnp.exp(logp), gold, tau, **sizes) for tau in taus])
    np.testing.assert_allclose(values[0].mean(), exact.expected(logp, gold), atol=1e-5)
    assert (np.diff(values, axis=0) > 0).all()
    np.testing.assert_allclose(values[-1], gold.max(axis=1), atol=0.05)
