"""Gradient estimators against the gradient that they estimate, which the exact world gives by enumeration."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from experiments.algorithms import algorithm
from experiments.exact.setting import Setting, open_setting, over_seeds, seed_keys
from experiments.exact.training import gold_scores
from rlhf_jax.config.study import EstimatorStudy
from rlhf_jax.eval import exact
from rlhf_jax.losses.kl import k1, k3, kl_loss
from rlhf_jax.losses.policy import policy_loss
from rlhf_jax.report.progress import progress
from rlhf_jax.report.study import Curve, StudyResult
from rlhf_jax.rollout.generate import generate
from rlhf_jax.rollout.sampling import row_keys
from rlhf_jax.rollout.score import compare_policies, make_trajectory
from rlhf_jax.types import Params, Rollout
from rlhf_jax.worlds.exact import EOS

OBJECTIVES = ("reinforce", "batch_mean", "rloo", "dr_grpo", "grpo_reward")
KL_TERMS = ("k1", "k2", "k3", "exact", "k3_sequence")


def run(study: EstimatorStudy, seeds: int) -> StudyResult:
    """Mean gradient over batches of every estimator, its scale on and cosine with the enumerated one, and its variance."""
    setting = open_setting(study)
    init, noise = jnp.swapaxes(jax.vmap(jax.random.split)(seed_keys(study, seeds)), 0, 1)
    with progress(1 + study.parts, study.name) as bar:
        pair = over_seeds(partial(two_policies, setting, study))(init)
        bar.advance("policies")
        add_up, sums = over_seeds(partial(sum_gradients, setting, study)), None
        for part in range(study.parts):
            more = jax.block_until_ready(add_up(jnp.full(seeds, part), noise, *pair))
            sums = more if sums is None else jax.tree.map(jnp.add, sums, more)
            bar.advance("gradients")
        found = jax.tree.map(np.asarray, over_seeds(partial(compare_gradients, setting, study))(sums, *pair))
    figures = {f"{name}/{what}": values for name, each in found.items() for what, values in each.items()}
    rows = np.arange(len(OBJECTIVES))
    names = ", ".join(f"{n} {name}" for n, name in enumerate(OBJECTIVES))
    variance = np.stack([figures[f"{name}/variance"] for name in OBJECTIVES], axis=1)
    plot = Curve(
        "Variance of the gradient of one batch", names, "total variance", {"variance": (rows, variance)}, logy=True
    )
    return StudyResult(figures, [plot])


def two_policies(setting: Setting, study: EstimatorStudy, key: jax.Array) -> tuple[Params, Params]:
    """(reference, a policy some steps of exact ascent away from it)."""
    reference = setting.reference(key)
    logref = setting.logprobs(reference)
    tx = optax.adam(study.ascent_lr)

    def loss(params):
        return -exact.objective(setting.logprobs(params), logref, setting.gold, study.beta)

    def ascend(state, _):
        params, opt_state = state
        updates, opt_state = tx.update(jax.grad(loss)(params), opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    (params, _), _ = jax.lax.scan(ascend, (reference, tx.init(reference)), None, length=study.ascent_steps)
    return reference, params


def enumerated(setting: Setting, study: EstimatorStudy, reference: Params, params: Params) -> dict[str, jax.Array]:
    """Flat gradients by summing over all strings: of -J, of the KL terms, and of the token-wise forward KL with states as sampled."""
    logref = setting.logprobs(reference)
    tokens = setting.policy.logprobs
    ref_tokens = tokens(reference, setting.batch, 1.0)
    weight = jax.lax.stop_gradient(jnp.exp(setting.logprobs(params))).reshape(-1)

    def forward_of_tokens(p):
        per_token = k3(tokens(p, setting.batch, 1.0), ref_tokens)
        return (
            jnp.sum(weight * jnp.sum(jnp.where(setting.batch.loss_mask, per_token, 0.0), axis=1)) / study.world.prompts
        )

    functions: dict[str, Callable] = {
        "objective": lambda p: -exact.objective(setting.logprobs(p), logref, setting.gold, study.beta),
        "reverse_kl": lambda p: exact.kl(setting.logprobs(p), logref),
        "forward_kl": lambda p: exact.kl(logref, setting.logprobs(p)),
        "forward_kl_of_tokens": forward_of_tokens,
    }
    return {name: ravel_pytree(jax.grad(function)(params))[0] for name, function in functions.items()}


def sampled_gradients(
    setting: Setting, study: EstimatorStudy, reference: Params, params: Params, rollout: Rollout, prompts: jax.Array
) -> dict[str, jax.Array]:
    """Flat gradients of every estimator on one batch of responses."""
    scores = gold_scores(setting, rollout, prompts)
    mask, policy = rollout.batch.loss_mask, setting.policy
    ref = policy.logprobs(reference, rollout.batch, rollout.temperature)

    def objective(name: str):
        config = algorithm(name, new_tokens=study.world.length, kl_coef=study.beta)
        config = dataclasses.replace(config, samples=study.samples)
        trajectory, _ = make_trajectory(
            params, reference, None, rollout, scores, jnp.float32(study.beta), policy=policy, values=None, config=config
        )
        loss = partial(policy_loss, token_stats=policy.token_stats, config=config)
        # The constant normaliser divides by the length of the longest response; the gradient of J does not.
        scale = study.world.length if config.normaliser == "constant" else 1
        return lambda p: scale * loss(p, trajectory)[0]

    def kl_term(name: str):
        def loss(p):
            stats, _, token_kl = compare_policies(p, reference, rollout, policy=policy)
            if name == "k3_sequence":
                whole, other = (jnp.sum(jnp.where(mask, x, 0.0), axis=1) for x in (stats.logprobs, ref))
                return jnp.mean(k3(whole, other))
            if name == "k1":  # which `kl_loss` refuses; here one sees why
                terms = jnp.where(mask, k1(stats.logprobs, ref), 0.0)
            else:
                terms = kl_loss(stats.logprobs, ref, mask, estimator=name, token_kl=token_kl)  # pyright: ignore[reportArgumentType]
            return jnp.mean(jnp.sum(terms, axis=1))

        return loss

    losses = {name: objective(name) for name in OBJECTIVES} | {name: kl_term(name) for name in KL_TERMS}
    return {name: ravel_pytree(jax.grad(loss)(params))[0] for name, loss in losses.items()}


TRUTH = {
    **dict.fromkeys(OBJECTIVES, "objective"),
    **dict.fromkeys(("k1", "k2", "exact"), "reverse_kl"),
    "k3": "forward_kl_of_tokens",
    "k3_sequence": "forward_kl",
}


Sums = dict[str, tuple[jax.Array, jax.Array]]
"""By estimator: the sum of the gradients of all batches, and of their squared norms."""


def sum_gradients(
    setting: Setting, study: EstimatorStudy, part: jax.Array, key: jax.Array, reference: Params, params: Params
) -> Sums:
    """The sums over one part of the batches."""
    groups = study.rows // study.samples
    group, sample = np.repeat(np.arange(groups), study.samples), np.tile(np.arange(study.samples), groups)
    prompt = group % study.world.prompts
    prompts = jax.tree.map(jnp.asarray, setting.world.prompt_batch(prompt))

    def one(batch: jax.Array):
        keys = row_keys(key, batch, group, sample)
        rollout = generate(params, prompts, keys, 1.0, model=setting.policy, new_tokens=study.world.length, stop=(EOS,))
        gradients = sampled_gradients(setting, study, reference, params, rollout, jnp.asarray(prompt))
        return {name: (gradient, jnp.sum(gradient * gradient)) for name, gradient in gradients.items()}

    batches = study.batches // study.parts
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(one, jnp.int32(0)))
    numbers = part * batches + jnp.arange(batches)
    return jax.lax.scan(lambda sums, batch: (jax.tree.map(jnp.add, sums, one(batch)), None), zeros, numbers)[0]


def compare_gradients(
    setting: Setting, study: EstimatorStudy, sums: Sums, reference: Params, params: Params
) -> dict[str, dict[str, jax.Array]]:
    """By estimator: `scale` on the truth, `cosine`, relative `error` with its Monte-Carlo `noise`, and total `variance` of a batch."""
    truths = enumerated(setting, study, reference, params)
    found = {}
    for name, (total, squares) in sums.items():
        mean, truth = total / study.batches, truths[TRUTH[name]]
        size = jnp.linalg.norm(truth)
        variance = squares / study.batches - jnp.sum(mean * mean)
        found[name] = {
            "scale": mean @ truth / size**2,
            "cosine": mean @ truth / (size * jnp.linalg.norm(mean)),
            "error": jnp.linalg.norm(mean - truth) / size,
            "noise": jnp.sqrt(variance / study.batches) / size,
            "variance": variance,
        }
    logp, logref = setting.logprobs(params), setting.logprobs(reference)
    found["policy"] = {
        "kl": exact.kl(logp, logref),
        "total_probability": jnp.mean(exact.total(logp)),
        "samples": jnp.float32(study.samples),
    }
    return found
