"""Gradients of the losses against those of what they stand for, where every string can be listed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax.config import ModelConfig, PolicyGradient
from rlhf_jax.doctor.report import Check, at_most, equal
from rlhf_jax.doctor.subjects import built, lively, nearby, relative_error
from rlhf_jax.eval import exact
from rlhf_jax.losses.kl import kl_loss
from rlhf_jax.losses.policy import policy_loss
from rlhf_jax.rollout.score import compare_policies, make_trajectory, token_kl_to
from rlhf_jax.types import Params, Rollout, TokenWeights
from rlhf_jax.worlds.exact import ExactWorld

WORLD = ExactWorld(vocab=4, length=4, prompts=2)
SHAPE = ModelConfig(vocab=4, width=16, layers=1, heads=2, kv_heads=2, mlp=24, max_length=8, tied=False)
BETA = 0.3
REWARD = PolicyGradient(
    new_tokens=WORLD.length,
    baseline="none",
    whiten_advantages=False,
    normaliser="constant",
    objective="score",
    kl_coef=BETA,
)
ALGORITHMS = {
    "the score function, KL in the reward": REWARD,
    "PPO at ratio 1, KL in the reward": dataclasses.replace(REWARD, objective="clip"),
    "k2 in the loss": dataclasses.replace(REWARD, kl_in="loss", kl_estimator="k2"),
    "exact KL in the loss": dataclasses.replace(REWARD, kl_in="loss", kl_estimator="exact"),
}


def in_the_exact_world() -> Iterator[Check]:
    """Losses over all strings, each as often as the policy writes it."""
    strings = len(WORLD.strings)
    policy, reference = lively(SHAPE), nearby(SHAPE)
    found = {name: float(error) for name, error in jax.jit(measure)(policy, reference).items()}
    yield at_most("probability of all strings together - 1", found.pop("total"), 1e-5)
    yield at_most("J* - J(policy) = beta KL(policy || optimum), relative error", found.pop("identity"), 1e-4)
    for name, error in found.items():
        yield at_most(f"{name}, relative error over all {strings} strings", error, 1e-3)


def measure(params: Params, reference: Params) -> dict[str, jax.Array]:
    """Relative errors of each, as one program."""
    model, gold = built(SHAPE), jnp.asarray(WORLD.gold)
    batch = jax.tree.map(jnp.asarray, WORLD.batch)

    def logp_of(params: Params) -> jax.Array:
        return exact.string_logprobs(params, batch, logprobs=model.logprobs, prompts=WORLD.prompts)

    logp, logref = logp_of(params), logp_of(reference)
    often = jnp.exp(logp).reshape(-1)
    best, most = exact.optimum(logref, gold, BETA)
    gap = most - exact.objective(logp, logref, gold, BETA)
    rollout = Rollout(batch, jnp.zeros(batch.tokens.shape), jnp.ones(often.shape, bool), jnp.float32(1.0))

    def trained(config: PolicyGradient, scores: jax.Array) -> Any:
        """The gradient that training goes up on."""
        trajectory, _ = make_trajectory(
            params, reference, None, rollout, scores, jnp.float32(BETA), policy=model, values=None, config=config
        )
        weights = TokenWeights(jnp.where(batch.loss_mask, often[:, None], 0.0), often)
        gradient = jax.grad(policy_loss, has_aux=True)(
            params,
            dataclasses.replace(trajectory, weights=weights),
            reference,
            token_stats=model.token_stats,
            config=config,
            token_kl=token_kl_to(model),
        )[0]
        return jax.tree.map(jnp.negative, gradient)

    true = jax.grad(lambda p: exact.objective(logp_of(p), logref, gold, BETA))(params)
    errors = {
        "total": jnp.max(jnp.abs(exact.total(logp) - 1)),
        "identity": jnp.abs(gap / (BETA * exact.kl(logp, best)) - 1),
    }
    for name, config in ALGORITHMS.items():
        errors[f"gradient of E[r] - beta KL by {name}"] = relative_error(trained(config, gold.reshape(-1)), true)

    def forward_kl(params: Params) -> jax.Array:
        """KL(ref || pi) of each token's distribution, over the states that the policy visits."""
        per_token = compare_policies(reference, params, rollout, policy=model)[2]
        return jnp.sum(often * jnp.sum(jnp.where(batch.loss_mask, per_token, 0.0), axis=1)) / WORLD.prompts

    k3 = trained(dataclasses.replace(REWARD, kl_in="loss", kl_estimator="k3"), jnp.zeros(often.shape))
    forward = jax.tree.map(lambda x: -BETA * x, jax.grad(forward_kl)(params))
    return errors | {"gradient of the forward KL per token by k3 in the loss": relative_error(k3, forward)}


def refusals() -> Iterator[Check]:
    """k1 in the loss is refused."""

    def by_config():
        PolicyGradient(new_tokens=1, kl_in="loss", kl_estimator="k1")

    def by_loss():
        kl_loss(jnp.zeros((1, 1)), jnp.zeros((1, 1)), jnp.ones((1, 1), bool), estimator="k1")

    refused = 0
    for attempt in (by_config, by_loss):
        try:
            attempt()
        except ValueError:
            refused += 1
    yield equal("k1 in the loss is refused, by the config and by the loss", refused, 2)


EXAMINATIONS = (in_the_exact_world, refusals)
