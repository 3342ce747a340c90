"""What must hold of every rollout: the sampler, the trainer and the reference speak of the same distribution."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.doctor.report import Check, at_most, equal, reported
from rlhf_jax.doctor.subjects import LLAMA, SCORING, STOPS, built, left_padded, lively
from rlhf_jax.losses.kl import k1, k2, k3
from rlhf_jax.losses.policy import policy_objective
from rlhf_jax.models import Model
from rlhf_jax.models.output import token_stats
from rlhf_jax.rollout.generate import generate
from rlhf_jax.rollout.sampling import row_keys, sample_tokens
from rlhf_jax.rollout.score import compare_policies, make_trajectory
from rlhf_jax.types import Params, Rollout, TokenBatch

TEMPERATURES = (0.7, 1.0, 1.3)
ROWS, PROMPT = 16, 4


def prompts_of(vocab: int = LLAMA.vocab, width: int = PROMPT) -> TokenBatch:
    """Left-padded prompts of one to `width` tokens."""
    return left_padded([1 + row % width for row in range(ROWS)], width, seed=7, vocab=vocab)


def keys_of(order: np.ndarray | None = None) -> jax.Array:
    """One key per row, in any order of the rows."""
    rows = np.arange(ROWS) if order is None else order
    return row_keys(jax.random.key(5), 3, rows // 4, rows % 4)


@functools.cache
def sampler(model: Model, new_tokens: int = SCORING.new_tokens, stops: tuple[int, ...] = STOPS):
    """The compiled sampler of a model."""
    return jax.jit(partial(generate, model=model, new_tokens=new_tokens, stop=stops))


def against_itself(params: Params, rollout: Rollout, *, policy: Model) -> dict[str, jax.Array]:
    """What should be nothing where policy and reference are the same: over the responses, the largest of each KL estimate, of the
    distance of the first ratio from 1 and of that between the sampler's and the trainer's log-probs; and what a score of 0.7 became.
    """
    config = dataclasses.replace(SCORING, kl_coef=0.1)
    scores = jnp.full(rollout.finished.shape, 0.7)
    coef = jnp.float32(config.kl_coef)
    trajectory, metrics = make_trajectory(
        params, params, None, rollout, scores, coef, policy=policy, values=None, config=config
    )
    mask, old = rollout.batch.loss_mask, trajectory.old_logprobs

    def largest(x):
        return jnp.max(jnp.where(mask, jnp.abs(x), 0.0))

    new = policy.token_stats(params, rollout.batch, rollout.temperature).logprobs
    _, report = policy_objective(new, old, jnp.ones_like(new), mask, config=config)
    return {
        "k1": largest(k1(old, trajectory.ref_logprobs)),
        "k2": largest(k2(old, trajectory.ref_logprobs)),
        "k3": largest(k3(old, trajectory.ref_logprobs)),
        "exact": largest(compare_policies(params, params, rollout, policy=policy)[2]),
        "ratio": largest(report["ratio"] - 1),
        "clip": largest(report["clip_fraction"]),
        "sampler": metrics["sampler_gap"],
        "reward": jnp.max(jnp.abs(jnp.sum(trajectory.rewards, axis=1) - 0.7)),
        "last": jnp.max(jnp.where(jnp.sum(trajectory.rewards != 0, axis=1) != 1, 1.0, 0.0)),
    }


def equal_policies() -> Iterator[Check]:
    """Policy and reference are the same."""
    model, params = built(LLAMA), lively(LLAMA)
    measure = jax.jit(partial(against_itself, policy=model))
    found = [measure(params, sampler(model)(params, prompts_of(), keys_of(), t)) for t in TEMPERATURES]
    worst = {name: max(float(figures[name]) for figures in found) for name in found[0]}
    there = ", ".join(f"{t:g}" for t in TEMPERATURES)
    for estimator in ("k1", "k2", "k3", "exact"):
        yield at_most(f"KL(policy, policy) by {estimator}, at temperatures {there}", worst[estimator], 1e-6)
    yield at_most("PPO ratio - 1 on the first minibatch", worst["ratio"], 1e-5)
    yield at_most("clip fraction on the first minibatch", worst["clip"], 0.0)
    yield at_most(f"sampler's log-probs - trainer's, float32, nats, at temperatures {there}", worst["sampler"], 1e-5)
    yield at_most("sum of a response's rewards - its score of 0.7", worst["reward"], 1e-6)
    yield at_most("responses whose score is not on their last token", worst["last"], 0.0)


def half_precision() -> Iterator[Check]:
    """Sampler and trainer in bfloat16."""
    model, params = built(dataclasses.replace(LLAMA, dtype="bfloat16")), lively(LLAMA)
    rollout = sampler(model)(params, prompts_of(), keys_of(), 1.0)
    gap = jax.jit(partial(against_itself, policy=model))(params, rollout)["sampler"]
    yield reported("sampler's log-probs - trainer's, bfloat16, nats", gap)


def temperatures() -> Iterator[Check]:
    """Temperature in sampler and trainer, by hand."""
    logits = jnp.array([[2.0, 0.0]])
    expected = {1.0: -0.12693, 0.7: -0.05584}
    batch = TokenBatch(*(jnp.array([x]) for x in ([0, 0], [0, 1], [1, 1], [False, True])))
    trained, sampled = {}, {}
    for temperature in expected:
        hidden = jnp.broadcast_to(logits, (1, 2, 2))
        trained[temperature] = token_stats(lambda x: x, hidden, batch, temperature, chunk=8).logprobs[0, 1]
        tokens, logprobs = sample_tokens(
            jnp.tile(logits, (64, 1)), jax.random.split(jax.random.key(0), 64), 0, temperature
        )
        sampled[temperature] = logprobs[jnp.argmin(tokens)]
    for who, found in (("trainer", trained), ("sampler", sampled)):
        error = max(abs(float(found[t]) - value) for t, value in expected.items())
        yield at_most(f"{who}: log p of logits (2, 0) at T = 1, 0.7; -.12693, -.05584 by hand", error, 1e-5)


def noise() -> Iterator[Check]:
    """Exploration noise."""
    places = list(itertools.product(range(3), range(4), range(4)))
    drawn = {
        tuple(
            np.asarray(jax.random.key_data(row_keys(jax.random.key(5), step, np.array([p]), np.array([s]))[0])).tolist()
        )
        for step, p, s in places
    }
    yield equal("different noise for every (step, prompt, sample)", len(drawn), len(places))
    model, params, prompts = built(LLAMA), lively(LLAMA), prompts_of()
    order = np.random.default_rng(0).permutation(ROWS)
    rollout = sampler(model)(params, prompts, keys_of(), 1.0)
    shuffled = sampler(model)(params, jax.tree.map(lambda x: x[order], prompts), keys_of(order), 1.0)
    changed = np.sum(np.asarray(rollout.batch.tokens)[order] != np.asarray(shuffled.batch.tokens))
    yield equal("tokens that change when rows change places", int(changed), 0)


def padding_is_no_token() -> Iterator[Check]:
    """Pad = eos."""
    model, params, prompts = built(LLAMA), lively(LLAMA), prompts_of()
    stops = (7,)
    rollout = sampler(model, 6, stops)(params, prompts, keys_of(), 1.3)
    mask, tokens = np.asarray(rollout.batch.loss_mask), np.asarray(rollout.batch.tokens)
    response, written = tokens[:, PROMPT:], mask[:, PROMPT:]
    ends = [np.flatnonzero(row == stops[0]) for row in response]
    lengths = np.array([end[0] + 1 if len(end) else response.shape[1] for end in ends])
    wrong = np.sum(written.sum(axis=1) != lengths) + np.sum(
        written != (np.arange(response.shape[1]) < lengths[:, None])
    )
    yield equal("responses that do not end with their eos, sampled pad ids inside", int(wrong), 0)
    padded_with_eos = dataclasses.replace(prompts, tokens=jnp.where(prompts.segments == 0, stops[0], prompts.tokens))
    other = sampler(model, 6, stops)(params, padded_with_eos, keys_of(), 1.3)
    changed = np.sum(np.asarray(other.batch.tokens)[:, PROMPT:] != response)
    yield equal("response tokens that change when prompts are padded with eos", int(changed), 0)


def shared_prompts() -> Iterator[Check]:
    """Four responses to each prompt, which is read once for them, as updates and scoring do."""
    model, params, new = built(LLAMA), lively(LLAMA), SCORING.new_tokens
    prompts = jax.tree.map(lambda x: x[: ROWS // 4], prompts_of())
    rollout = sampler(model)(params, prompts, keys_of(), 1.0)
    apart, together = (
        jax.jit(reader.token_stats)(params, rollout.batch, 1.0).logprobs for reader in (model, model.in_groups(4, new))
    )
    worst = jnp.max(jnp.abs(apart - together))
    yield at_most("log-probs behind one reading of the prompt - those of rows by themselves, nats", worst, 1e-5)
    gap = jnp.max(jnp.where(rollout.batch.loss_mask, jnp.abs(rollout.logprobs - apart), 0.0))
    yield at_most("sampler's log-probs of responses that share their prompt - trainer's, nats", gap, 1e-5)


EXAMINATIONS = (equal_policies, half_precision, temperatures, noise, padding_is_no_token, shared_prompts)
