"""KL between policies: estimators from samples, and the controller that holds it at a target."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

FloatArray = Float[Array, "*S"]


def k1(logprobs: FloatArray, other_logprobs: FloatArray) -> FloatArray:
    """log p - log q of samples from p: the unbiased estimator of KL(p || q); single values may be negative.

    Source: Schulman 2020, "Approximating KL divergence".
    """
    return logprobs - other_logprobs


def k2(logprobs: FloatArray, other_logprobs: FloatArray) -> FloatArray:
    """(log p - log q)^2 / 2 of samples from p: biased, never negative. Source: as `k1`."""
    return 0.5 * jnp.square(logprobs - other_logprobs)


def k3(logprobs: FloatArray, other_logprobs: FloatArray) -> FloatArray:
    """q/p - 1 - log(q/p) of samples from p: unbiased for KL(p || q), never negative. Source: as `k1`."""
    log_ratio = other_logprobs - logprobs
    return jnp.expm1(log_ratio) - log_ratio


def adapt_kl_coef(
    kl_coef: Float[Array, ""], kl: Float[Array, ""], *, target: float, horizon: float, episodes: int
) -> Float[Array, ""]:
    """The next KL coefficient: kl_coef * (1 + clip(KL / target - 1, -0.2, 0.2) * episodes / horizon).

    `kl` in nats per sequence. Source: Ziegler et al. 2019 (arXiv:1909.08593), section 2.2, and the released code.
    """
    error = jnp.clip(kl / target - 1.0, -0.2, 0.2)
    return kl_coef * (1.0 + error * episodes / horizon)
