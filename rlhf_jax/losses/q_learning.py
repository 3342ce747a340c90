"""Value-based learning from fixed texts: a token is an action, the text before it the state, and the logits of a decoder are Q(s, .)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from rlhf_jax.masking import last_index, mask_weight, masked_mean
from rlhf_jax.types import Aux, CriticFn, OfflineBatch, Params, RewardedBatch, TokenBatch

Tokens = Float[Array, "B T"]
Number = Float[Array, ""] | float


def following(values: Tokens, mask: Bool[Array, "B T"]) -> Tokens:
    """V of the state behind each token, [:, t] = V_{t+1}; 0 behind the last token of the mask."""
    return jnp.pad(jnp.where(mask, values, 0.0)[:, 1:], ((0, 0), (0, 1)))


def one_step_targets(rewards: Tokens, values: Tokens, mask: Bool[Array, "B T"], *, gamma: float) -> Tokens:
    """r_t + gamma V(s_{t+1}), and r_t on the last token of the mask; 0 outside. values[:, t] is V just before token t."""
    return jnp.where(mask, rewards + gamma * following(values, mask), 0.0)


def expectile(u: Float[Array, "*S"], *, tau: Number) -> Float[Array, "*S"]:
    """|tau - 1(u < 0)| u^2: its mean is least at the tau-expectile of u; tau = 0.5 is half the squared error, tau -> 1 the maximum.

    Source: Kostrikov et al. 2021 (arXiv:2110.06169), eq. 5.
    """
    return jnp.where(u < 0, 1 - tau, tau) * jnp.square(u)


def polyak(target: Params, online: Params, *, rate: float) -> Params:
    """(1 - rate) target + rate online: the slow copy that the targets come from."""
    return optax.incremental_update(online, target, rate)


def earned_at_the_end(text: TokenBatch, reward: Float[Array, "B"]) -> Tokens:
    """The reward on the last token to learn, 0 before it and where nothing is to be learned."""
    at_end = text.loss_mask & (jnp.arange(text.tokens.shape[1])[None] == last_index(text.loss_mask)[:, None])
    return jnp.where(at_end, reward[:, None], 0.0)


def with_targets(slow: Params, batch: RewardedBatch, *, critics: CriticFn) -> OfflineBatch:
    """The rewards at the ends, and min(Q1, Q2) of the slow copies."""
    seen = critics(slow, batch.text)
    return OfflineBatch(batch.text, earned_at_the_end(batch.text, batch.reward), jnp.minimum(seen.q1, seen.q2))


def q_learning_loss(
    params: Params,
    batch: OfflineBatch,
    *,
    token_logits: Callable[[Params, TokenBatch], tuple[jax.Array, jax.Array]],
    gamma: float,
) -> tuple[jax.Array, Aux]:
    """One-step Q-learning, per token of the loss mask: (r + gamma max_a Q'(s', a) - Q(s, a))^2, the max over Q' in `batch.target_q`.

    The max runs over all tokens, those too that no text shows behind s': what Q' makes up of them, the targets believe
    (Fujimoto et al. 2019, arXiv:1812.02900; Kumar et al. 2020, arXiv:2006.04779).

    `token_logits` gives the Q of the token at t, and something else that is not needed. Source: Watkins & Dayan 1992; the slow copy Q':
    Mnih et al. 2015.
    """
    mask = batch.text.loss_mask
    target = one_step_targets(batch.rewards, batch.target_q, mask, gamma=gamma)
    q = jnp.where(mask, token_logits(params, batch.text)[0], 0.0)
    loss = masked_mean(jnp.square(target - q), mask)
    metrics = {"loss": loss, "q": masked_mean(q, mask), "target": masked_mean(target, mask)}
    return loss, Aux(weight=mask_weight(mask), metrics=metrics)


def ilql_loss(
    params: Params, batch: OfflineBatch, *, critics: CriticFn, gamma: float, tau: Number, cql_coef: float
) -> tuple[jax.Array, Aux]:
    """Implicit language Q-learning, per token of the loss mask.

    Q: (r + gamma V(s') - Q_i)^2 of both, with no gradient into V(s')
    V: expectile_tau(min_i target Q_i(s, a) - V(s)), the min in `batch.target_q`
    CQL: - cql_coef log softmax(Q_i(s, .))[a], which keeps the Q of tokens that the texts never show from floating up

    Source: Snell et al. 2022 (arXiv:2206.11871), section 4.
    """
    mask = batch.text.loss_mask
    seen = jax.tree.map(lambda x: jnp.where(mask, x, 0.0), critics(params, batch.text))
    v = seen.v
    target = one_step_targets(batch.rewards, jax.lax.stop_gradient(v), mask, gamma=gamma)
    value_loss = masked_mean(expectile(batch.target_q - v, tau=tau), mask)
    q_loss, cql_loss, taken = jnp.zeros(()), jnp.zeros(()), jnp.zeros(())
    for q, norm in ((seen.q1, seen.norm1), (seen.q2, seen.norm2)):
        q_loss += masked_mean(jnp.square(target - q), mask)
        cql_loss += masked_mean(norm - q, mask)
        taken += 0.5 * masked_mean(q, mask)
    loss = q_loss + value_loss + cql_coef * cql_loss
    metrics = {
        "loss": loss,
        "q_loss": q_loss,
        "value_loss": value_loss,
        "cql_loss": cql_loss,
        "q": taken,
        "v": masked_mean(v, mask),
    }
    return loss, Aux(weight=mask_weight(mask), metrics=metrics)


def advantage_weighted_logits(
    logits: Float[Array, "*B V"],
    q1: Float[Array, "*B V"],
    q2: Float[Array, "*B V"],
    v: Float[Array, "*B"],
    *,
    beta: Number,
) -> Float[Array, "*B V"]:
    """log pi_b + beta (min(Q1, Q2) - V): what ILQL samples from; beta = 0 is the cloned policy. Source: Snell et al. 2022, section 4.3."""
    return logits + beta * (jnp.minimum(q1, q2) - v[..., None])
