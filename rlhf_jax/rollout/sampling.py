"""Drawing tokens: noise that belongs to a sample, not to its place in a batch."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from rlhf_jax.config import EVERYTHING, Sampling
from rlhf_jax.rollout.noise import gumbel


def row_keys(
    run_key: Key[Array, ""],
    step: Int[Array, ""] | int,
    prompt: Int[Array | np.ndarray, "B"],
    sample: Int[Array | np.ndarray, "B"],
) -> Key[Array, "B"]:
    """One key per sample, a function of (run, step, prompt index, sample index) alone: the same on every batch layout and mesh."""
    at_step = jax.random.fold_in(run_key, step)

    def key_of(prompt, sample):
        return jax.random.fold_in(jax.random.fold_in(at_step, prompt), sample)

    return jax.vmap(key_of)(prompt, sample)


def sample_tokens(
    logits: Float[Array, "B V"],
    keys: Key[Array, "B"],
    columns: Int[Array, "*B"] | int,
    temperature: Float[Array, ""] | float,
    *,
    sampling: Sampling = EVERYTHING,
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    """A token of each row from softmax(logits / temperature), or what `sampling` leaves of it, and its log-probability there, in nats.

    By the Gumbel-max trick; the noise of the c-th token of a sample is fold_in(its key, c). `columns` says which it is, of each row or of
    all.
    """
    logits = left_by(logits.astype(jnp.float32) / temperature, sampling)
    noise_of = partial(gumbel, size=logits.shape[1])
    noise = jax.vmap(noise_of)(keys, jnp.broadcast_to(columns, keys.shape))
    tokens = largest(logits + noise)
    return tokens, logprob_of(logits, tokens)


def penalised(
    logits: Float[Array, "B V"], before: Int[Array, "B N"], penalty: Float[Array, ""] | float
) -> Float[Array, "B V"]:
    """The logits, those of tokens that stand `before` divided by the penalty, or multiplied by it below 0; ids from V on are nothing."""
    rows = jnp.arange(logits.shape[0])[:, None]
    seen = jnp.zeros(logits.shape, bool).at[rows, before].set(True, mode="drop")
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def left_by(logits: Float[Array, "B V"], sampling: Sampling) -> Float[Array, "B V"]:
    """The logits, and -inf for tokens that may not be drawn; of equal ones the first are left, and the likeliest token always is."""
    top_k, top_p, min_p = sampling.top_k, sampling.top_p, sampling.min_p
    if top_k is not None or top_p is not None:
        order = jnp.argsort(logits, axis=-1, descending=True, stable=True)
        place = jnp.arange(logits.shape[1])[None, :]
        keep = place < (logits.shape[1] if top_k is None else top_k)
        if top_p is not None:
            ordered = jnp.where(keep, jnp.take_along_axis(logits, order, axis=-1), -jnp.inf)
            # From the end, where sums of small numbers are exact.
            behind = jax.lax.cumsum(jax.nn.softmax(ordered, axis=-1), axis=1, reverse=True)
            keep = keep & ((place == 0) | (behind > 1.0 - top_p))
        keep = jnp.take_along_axis(jnp.broadcast_to(keep, logits.shape), jnp.argsort(order, axis=-1), axis=-1)
        logits = jnp.where(keep, logits, -jnp.inf)
    if min_p is not None:
        logits = jnp.where(logits >= jnp.max(logits, axis=-1, keepdims=True) + jnp.log(min_p), logits, -jnp.inf)
    return logits


def greedy_tokens(
    logits: Float[Array, "B V"],
    keys: Key[Array, "B"],
    columns: Int[Array, "*B"] | int,
    temperature: Float[Array, ""] | float,
) -> tuple[Int[Array, "B"], Float[Array, "B"]]:
    """The likeliest token of each row, and its log-probability under softmax(logits / temperature)."""
    logits = logits.astype(jnp.float32) / temperature
    tokens = largest(logits)
    return tokens, logprob_of(logits, tokens)


def largest(x: Float[Array, "B V"]) -> Int[Array, "B"]:
    """The first place of the largest number of each row.

    By two plain reductions, which XLA vectorises on a CPU, with the noise before them; it does not `jnp.argmax`, which takes three times
    as long there.
    """
    places = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    found = jnp.min(jnp.where(x == jnp.max(x, axis=-1, keepdims=True), places, x.shape[1]), axis=-1)
    return jnp.minimum(found, x.shape[1] - 1)  # where nothing is a number, nothing is the largest


def logprob_of(logits: Float[Array, "B V"], tokens: Int[Array, "B"]) -> Float[Array, "B"]:
    """log softmax(logits) of the given token of each row."""
    return jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0] - jax.nn.logsumexp(logits, axis=-1)
