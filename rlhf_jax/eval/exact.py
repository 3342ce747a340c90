"""Exact quantities of distributions over all strings of a world: what algorithms estimate, and where they should end.

Log-probabilities and rewards are [X, N]: prompts by strings. Expectations are over the strings, then a plain mean over prompts.
KL is in nats per string, beta is its price in the objective E[r] - beta KL(policy || reference).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from rlhf_jax.types import LogprobFn, Params, TokenBatch

Table = Float[Array, "X N"]
Scalar = Float[Array, ""]
PerPrompt = Float[Array, "X"]

HALVINGS = 60


def string_logprobs(
    params: Params, batch: TokenBatch, *, logprobs: LogprobFn, prompts: int, temperature: float = 1.0
) -> Table:
    """log pi(string | prompt) of every string behind every prompt, from a batch that lists them prompt by prompt."""
    batch = jax.tree.map(jnp.asarray, batch)
    per_token = logprobs(params, batch, temperature)
    return jnp.sum(jnp.where(batch.loss_mask, per_token, 0.0), axis=1).reshape(prompts, -1)


def total(logp: Table) -> PerPrompt:
    """The probability of all strings together: 1 for every autoregressive policy whose log-probs are right."""
    return jnp.sum(jnp.exp(logp), axis=1)


def expected(logp: Table, values: Table) -> Scalar:
    """E[values] under the policy."""
    return jnp.mean(jnp.sum(jnp.exp(logp) * values, axis=1))


def moments(logp: Table, values: Table) -> tuple[PerPrompt, PerPrompt]:
    """(mean, standard deviation) of the values under the policy, of each prompt."""
    p = jnp.exp(logp)
    mean = jnp.sum(p * values, axis=1)
    return mean, jnp.sqrt(jnp.sum(p * jnp.square(values - mean[:, None]), axis=1))


def kl(logp: Table, logq: Table) -> Scalar:
    """KL(p || q); strings that p never writes cost nothing."""
    return jnp.mean(kl_per_prompt(logp, logq))


def kl_per_prompt(logp: Table, logq: Table) -> PerPrompt:
    """KL(p || q) of each prompt."""
    written = logp > -jnp.inf
    difference = jnp.where(written, logp, 0.0) - jnp.where(written, logq, 0.0)
    return jnp.sum(jnp.exp(logp) * difference, axis=1)


def entropy(logp: Table) -> Scalar:
    """-E[log p], nats per string."""
    return -jnp.mean(jnp.sum(jnp.exp(logp) * jnp.where(logp > -jnp.inf, logp, 0.0), axis=1))


def objective(logp: Table, logref: Table, rewards: Table, beta: Scalar | float) -> Scalar:
    """J = E[r] - beta KL(policy || reference)."""
    return expected(logp, rewards) - beta * kl(logp, logref)


def optimum(logref: Table, rewards: Table, beta: Scalar | float) -> tuple[Table, Scalar]:
    """(log pi*, J*): the policy of highest J, pi* = pi_ref exp(r / beta) / Z, and its J* = beta mean log Z.

    For every policy, J* - J(pi) = beta KL(pi || pi*). Source: Korbak et al. 2022 (arXiv:2205.11275); Rafailov et al. 2023, eq. 4.
    """
    tilted = logref + rewards / beta
    log_z = jax.nn.logsumexp(tilted, axis=1, keepdims=True)
    return tilted - log_z, beta * jnp.mean(log_z)


def best_of_n(logref: Table, scores: Table, n: Scalar | float) -> Table:
    """log-probabilities of the best of n samples by these scores, for any real n >= 1; equal scores share their part as pi_ref does.

    With c(s) the mass of the scores up to s, the group of score s is drawn with c(s)^n - c(before s)^n.
    """

    def one_prompt(logp, score):
        order = jnp.argsort(score)
        logp, score = logp[order], score[order]
        p = jnp.exp(logp)
        first = jnp.searchsorted(score, score, side="left")
        mass = jax.ops.segment_sum(p, first, num_segments=p.shape[0])[first]
        behind = jnp.searchsorted(score, score, side="right")
        # The mass up to a group from below where it is small, as 1 - the rest where it is large: both keep their digits.
        below = jnp.concatenate([jnp.zeros(1), jnp.cumsum(p)])[behind]
        above = jnp.concatenate([jnp.cumsum(p[::-1])[::-1], jnp.zeros(1)])[behind]
        tiny = jnp.finfo(p.dtype).tiny
        log_c = jnp.where(below < 0.5, jnp.log(jnp.maximum(below, tiny)), jnp.log1p(-above))
        share = jnp.minimum(mass / jnp.exp(log_c), 1.0)
        # (1 - (1 - share)^n) / share, which is n for a group too unlikely for a float.
        seen = jnp.maximum(share, tiny)
        gain = jnp.where(share > tiny, jnp.log(-jnp.expm1(n * jnp.log1p(-seen))) - jnp.log(seen), jnp.log(n))
        return (logp + (n - 1) * log_c + gain)[jnp.argsort(order)]

    return jax.vmap(one_prompt)(logref, scores)


def wins(logmu: Table, prefers: Callable[[jax.Array, jax.Array], jax.Array], values: Table) -> Table:
    """P(string > mu) of every string: E_{y' ~ mu} prefers(values, values of y'). `prefers(a, b)` is P(a > b) and broadcasts."""

    def one_prompt(arrays):
        mu, value = arrays
        return jax.lax.map(lambda one: jnp.sum(mu * prefers(one, value)), value, batch_size=256)

    return jax.lax.map(one_prompt, (jnp.exp(logmu), values))


def ipo_optimum(logref: Table, preference: Table, tau: float) -> Table:
    """log-probabilities of the optimum of IPO, pi_ref exp(P(y > mu) / tau) / Z, with `preference` = `wins(...)`.

    Source: Azar et al. 2023 (arXiv:2310.12036), eq. 6 with the identity for Psi.
    """
    return optimum(logref, preference, tau)[0]


def forward_kl_optimum(logref: Table, rewards: Table, beta: float) -> Table:
    """log-probabilities of the policy of highest E[r] - beta KL(pi_ref || pi): pi = beta pi_ref / (lambda - r).

    lambda, one per prompt, makes it sum to 1; it lies within [max r + beta pi_ref(best), max r + beta], where the bisection looks.
    """
    best = jnp.max(rewards, axis=1, keepdims=True)
    behind = best - rewards
    low = jnp.log(beta) + jnp.max(jnp.where(behind == 0, logref, -jnp.inf), axis=1, keepdims=True)
    high = jnp.full_like(low, jnp.log(beta))

    def policy(log_gap):
        return jnp.log(beta) + logref - jnp.log(jnp.exp(log_gap) + behind)

    def halve(_, ends):
        low, high = ends
        middle = 0.5 * (low + high)
        too_much = jax.nn.logsumexp(policy(middle), axis=1, keepdims=True) > 0
        return jnp.where(too_much, middle, low), jnp.where(too_much, high, middle)

    low, high = jax.lax.fori_loop(0, HALVINGS, halve, (low, high))
    return policy(0.5 * (low + high))


def sqrt_kl_slope(logref: Table, rewards: Table) -> PerPrompt:
    """dE[r] / d sqrt(KL) of each prompt along the optima, at the reference: sqrt(2 Var_ref(r)).

    The linear law of Bai et al. 2022 (arXiv:2204.05862), section 4.3, near its start.
    """
    return jnp.sqrt(2.0) * moments(logref, rewards)[1]


def frontier(logref: Table, rewards: Table, betas: Float[Array, "B"]) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
    """(KL, E[r]) of the optimum at each price of KL: no policy has more reward at its KL. Source: Rafailov et al. 2023, eq. 4."""

    def point(beta):
        best, _ = optimum(logref, rewards, beta)
        return kl(best, logref), expected(best, rewards)

    return jax.lax.map(point, betas)


def most_reward_at(logref: Table, rewards: Table, betas: Float[Array, "B"], kl: Float[Array, "P"]) -> Float[Array, "P"]:
    """The most E[r] that any policy can have at each KL: min over beta of J*(beta) + beta KL, the frontier if beta ran over all prices.

    For any set of prices it is an upper bound, since E[r] - beta KL <= J*(beta) for every policy and every beta.
    """
    best = jax.lax.map(lambda beta: optimum(logref, rewards, beta)[1], betas)
    return jnp.min(best[:, None] + betas[:, None] * kl[None, :], axis=0)


def expectile_of(x: Float[Array, "*B A"], weights: Float[Array, "*B A"], tau: Scalar | float) -> Float[Array, "*B"]:
    """The tau-expectile over the last axis, 0 < tau < 1: the m with sum_a w_a |tau - 1(x_a < m)| (x_a - m) = 0; 0 where nothing weighs.

    Newton's method from the mean: exact after as many steps as there are pieces, one more than entries at most.
    """

    def mean(weights):
        whole = jnp.sum(weights, axis=-1)
        return jnp.sum(weights * x, axis=-1) / jnp.where(whole > 0, whole, 1.0)

    found = mean(weights)
    for _ in range(x.shape[-1]):
        found = mean(weights * jnp.where(x < found[..., None], 1 - tau, tau))
    return found


def implicit_values(mass: Table, rewards: Table, tau: Scalar | float, *, words: int, length: int) -> PerPrompt:
    """V of the start under expectile backups, V(s) = expectile_tau of V(s a) over a ~ behaviour, by going through all prefixes.

    `mass` is how often each string of an `ExactWorld` of these sizes occurs. tau = 0.5 is the behaviour's mean reward; tau -> 1 the
    highest reward that it ever earns. For a discount gamma pass gamma^(tokens - 1) r: an expectile scales with its values.
    Source: the fixed point of Kostrikov et al. 2021 (arXiv:2110.06169), section 4.2.
    """
    ends = np.cumsum([words**n for n in range(length)])  # of the strings of n words that end, in the list of all
    *ended, value = jnp.split(rewards, ends, axis=1)
    *ended_mass, weight = jnp.split(mass, ends, axis=1)
    for reward, count in zip(reversed(ended), reversed(ended_mass), strict=True):
        options, weights = (
            jnp.concatenate([one[:, :, None], more.reshape(*one.shape, words)], axis=2)
            for one, more in ((reward, value), (count, weight))
        )
        value, weight = expectile_of(options, weights, tau), jnp.sum(weights, axis=2)
    return value[:, 0]
