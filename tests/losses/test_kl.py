from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.losses.kl import adapt_kl_coef, k1, k2, k3, kl_loss

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def test_estimators_by_hand():
    logprobs, other = jnp.array([-1.0, -1.0]), jnp.array([-1.5, -0.5])
    np.testing.assert_allclose(k1(logprobs, other), [0.5, -0.5])
    np.testing.assert_allclose(k2(logprobs, other), [0.125, 0.125])
    np.testing.assert_allclose(k3(logprobs, other), [0.10653, 0.14872], atol=1e-5)


@pytest.mark.parametrize("estimator", [k1, k2, k3])
def test_a_policy_does_not_diverge_from_itself(estimator):
    logprobs = jnp.linspace(-30.0, 0.0, 7)
    np.testing.assert_array_equal(estimator(logprobs, logprobs), 0.0)


def test_expectations_under_the_first_policy_are_the_kl_exactly_for_k1_and_k3_and_nearly_for_k2():
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.42, 0.38, 0.2])
    kl = np.sum(p * np.log(p / q))
    log_p, log_q = (jnp.asarray(np.log(x), jnp.float32) for x in (p, q))
    estimate = {name: np.sum(p * np.asarray(f(log_p, log_q))) for name, f in (("k1", k1), ("k2", k2), ("k3", k3))}
    assert estimate["k1"] == pytest.approx(kl, abs=1e-6)
    assert estimate["k3"] == pytest.approx(kl, abs=1e-6)
    assert estimate["k2"] == pytest.approx(kl, rel=0.05)
    assert abs(estimate["k2"] - kl) > 1e-5


def test_k3_keeps_its_digits_for_policies_that_are_close():
    # exp(x) - 1 - x loses everything in float32 at x = 1e-4.
    np.testing.assert_allclose(k3(jnp.array([-1e-4]), jnp.array([0.0])), [0.5e-8], rtol=1e-2, atol=3e-12)


@pytest.mark.parametrize(
    ("kl", "expected"), [(9.0, 0.151536), (5.4, 0.149232), (6.0, 0.15), (600.0, 0.151536), (0.0, 0.148464)]
)
def test_the_coefficient_follows_the_kl_by_hand(kl, expected):
    coef = adapt_kl_coef(jnp.float32(0.15), jnp.float32(kl), target=6.0, horizon=10_000.0, episodes=512)
    np.testing.assert_allclose(coef, expected, rtol=1e-6)


def test_the_controller_is_a_pure_function_that_traces():
    coef = jax.jit(lambda c, kl: adapt_kl_coef(c, kl, target=6.0, horizon=1e4, episodes=512))(
        jnp.float32(0.15), jnp.float32(9.0)
    )
    np.testing.assert_allclose(coef, 0.151536, rtol=1e-6)


LOGPROBS, REFERENCE = jnp.array([[-1.0, -2.0, -0.5, 9.0]]), jnp.array([[-1.5, -1.8, -0.6, jnp.nan]])
SOME = jnp.array([[True, True, True, False]])


def value_and_slope(estimator, **how):
    """(per token, d sum / d log pi)."""

    def loss(logprobs):
        values = kl_loss(logprobs, REFERENCE, SOME, estimator=estimator, **how)
        return jnp.sum(values), values

    (_, values), slope = jax.value_and_grad(loss, has_aux=True)(LOGPROBS)
    return values, slope


def test_k2_in_the_loss_lets_a_token_answer_for_what_follows():
    values, slope = value_and_slope("k2")
    np.testing.assert_allclose(values, [[0.5, -0.2, 0.1, 0.0]], atol=1e-6)
    np.testing.assert_allclose(slope, [[0.4, -0.1, 0.1, 0.0]], atol=1e-6)


def test_k3_in_the_loss_is_that_of_grpo():
    values, slope = value_and_slope("k3")
    ratio = np.exp([-0.5, 0.2, -0.1])
    np.testing.assert_allclose(values[0, :3], ratio - 1 - np.log(ratio), atol=1e-6)
    np.testing.assert_allclose(slope, [[*(1 - ratio), 0.0]], atol=1e-6)


def test_the_exact_kl_in_the_loss_has_its_value_and_pays_for_the_states_it_leads_to():
    token_kl = jnp.array([[0.3, 0.2, 0.1, jnp.nan]])
    values, slope = value_and_slope("exact", token_kl=token_kl)
    np.testing.assert_allclose(values, [[0.3, 0.2, 0.1, 0.0]], atol=1e-6)
    np.testing.assert_allclose(slope, [[0.3, 0.1, 0.0, 0.0]], atol=1e-6)
    with pytest.raises(ValueError, match="needs token_kl"):
        value_and_slope("exact")


def test_k1_in_the_loss_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="k1 as a loss teaches nothing"):
        kl_loss(LOGPROBS, REFERENCE, SOME, estimator="k1")
