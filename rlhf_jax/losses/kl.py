"""KL between policies: estimators from samples, and the controller that holds it at a target."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

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


def to_go(x: Float[Array, "B T"], mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
    """sum_{s >= t} x_s over the mask, 0 outside."""
    x = jnp.where(mask, x, 0.0)
    return jnp.where(mask, jnp.cumsum(x[:, ::-1], axis=1)[:, ::-1], 0.0)


def kl_loss(
    logprobs: Float[Array, "B T"],
    ref_logprobs: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    estimator: Literal["k1", "k2", "k3", "exact"],
    token_kl: Float[Array, "B T"] | None = None,
) -> Float[Array, "B T"]:
    """A KL term of the loss, per token, for responses that the policy itself sampled; 0 outside the mask.

    Summed over a response and averaged over responses, its gradient is that of

    k2     KL(pi || ref) of whole responses. Its value is that of k1; a token answers for the ratios from itself to the end.
    exact  KL(pi || ref) of whole responses, of which only the states are sampled. `token_kl` is the KL over the vocabulary per token.
    k3     the forward KL(ref || pi) of each token's distribution, states as sampled: GRPO's choice, with another optimum than the reward's
           (Shao et al. 2024, eq. 4). The effect of a token on later ones is left out.

    Raises: ValueError for k1, whose gradient grad log pi does not depend on the reference and is 0 on average, and for unknown names.
    """
    log_ratio = jnp.where(mask, logprobs - ref_logprobs, 0.0)
    score = jnp.where(mask, logprobs - jax.lax.stop_gradient(logprobs), 0.0)  # 0, with the gradient of log pi
    fixed = jax.lax.stop_gradient
    match estimator:
        case "k1":
            raise ValueError(
                "k1 as a loss teaches nothing: the gradient of log pi - log ref is that of log pi, which is 0 on average whatever the "
                "reference is; take k2 or exact, or put k1 into the reward"
            )
        case "k2":
            return fixed(log_ratio) + fixed(to_go(log_ratio, mask)) * score
        case "k3":
            return jnp.where(mask, k3(log_ratio, jnp.zeros_like(log_ratio)), 0.0)
        case "exact":
            if token_kl is None:
                raise ValueError("estimator='exact' needs token_kl, the KL over the vocabulary")
            token_kl = jnp.where(mask, token_kl, 0.0)
            later = to_go(token_kl, mask) - token_kl
            return token_kl + fixed(later) * score
    raise ValueError(f"estimator={estimator!r} must be 'k2', 'k3' or 'exact'")


def adapt_kl_coef(
    kl_coef: Float[Array, ""], kl: Float[Array, ""], *, target: float, horizon: float, episodes: int
) -> Float[Array, ""]:
    """The next KL coefficient: kl_coef * (1 + clip(KL / target - 1, -0.2, 0.2) * episodes / horizon).

    `kl` in nats per sequence. Source: Ziegler et al. 2019 (arXiv:1909.08593), section 2.2, and the released code.
    """
    error = jnp.clip(kl / target - 1.0, -0.2, 0.2)
    return kl_coef * (1.0 + error * episodes / horizon)
