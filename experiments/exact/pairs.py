"""Comparisons in the exact world: pairs of the reference's own samples, by number, and as the texts that models read."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from experiments.exact.setting import Setting
from rlhf_jax.types import PreferenceBatch, TokenBatch, pytree


@pytree
class Pairs:
    """Comparisons by number: of the prompt, and of the strings."""

    prompt: jax.Array  # [N]
    chosen: jax.Array
    rejected: jax.Array


def sample_pairs(
    logref: jax.Array, gold: jax.Array, key: jax.Array, count: int, chance_to_win: Callable[[jax.Array], jax.Array]
) -> Pairs:
    """Pairs of independent samples of the reference; `chance_to_win(gap)` is P(first is preferred), by how much more gold it has."""
    where, one, two, labels = jax.random.split(key, 4)
    prompt = jax.random.randint(where, (count,), 0, logref.shape[0])
    first, second = (draw_strings(k, logref, prompt) for k in (one, two))
    wins = jax.random.uniform(labels, (count,)) < chance_to_win(gold[prompt, first] - gold[prompt, second])
    return Pairs(prompt, jnp.where(wins, first, second), jnp.where(wins, second, first))


def draw_strings(key: jax.Array, logp: jax.Array, prompt: jax.Array) -> jax.Array:
    """One string per prompt number, from its row of log-probabilities, by inverting the cumulative sum."""
    mass = jnp.cumsum(jnp.exp(logp), axis=1)
    level = jax.random.uniform(key, prompt.shape) * mass[prompt, -1]
    found = jax.vmap(lambda row, x: jnp.searchsorted(row, x, side="right"), in_axes=(0, None))(mass, level)
    return jnp.minimum(found[prompt, jnp.arange(prompt.shape[0])], logp.shape[1] - 1)


def better_wins(gap: jax.Array, flip: jax.Array | float) -> jax.Array:
    """P(first is preferred) where the better string wins but for a share of flipped labels; equal ones win half of the time."""
    return jnp.where(gap == 0, 0.5, jnp.where(gap > 0, 1.0 - flip, flip))


def comparisons(setting: Setting, rows: Pairs) -> PreferenceBatch:
    """Pairs by number as texts, all of weight 1."""
    ones = jnp.ones(rows.prompt.shape[0])
    chosen, rejected = (texts_of(setting, rows.prompt, strings) for strings in (rows.chosen, rows.rejected))
    return PreferenceBatch(chosen, rejected, margin=jnp.zeros_like(ones), weight=ones)


def texts_of(setting: Setting, prompt: jax.Array, strings: jax.Array) -> TokenBatch:
    """Strings behind prompts, by number."""
    rows = prompt * setting.gold.shape[1] + strings
    return jax.tree.map(lambda x: x[rows], setting.batch)
