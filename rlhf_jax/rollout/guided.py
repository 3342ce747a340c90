"""A policy that critics guide: implicit language Q-learning decodes with it."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from rlhf_jax.losses.q_learning import advantage_weighted_logits
from rlhf_jax.models import Model
from rlhf_jax.models.assemble import model_of
from rlhf_jax.models.critics import Critics
from rlhf_jax.types import Params, TokenBatch


def guided(policy: Model, critics: Critics) -> Model:
    """The policy log pi + beta (min(Q1, Q2) - V), with parameters {policy, critics, beta}, for sampling and for log-probs alike.

    What it has read is what both have, side by side. Source: Snell et al. 2022 (arXiv:2206.11871), section 4.3.
    """
    width = policy.config.width

    def init(key: jax.Array) -> Params:
        one, two = jax.random.split(key)
        return {"policy": policy.init(one), "critics": critics.init(two), "beta": jnp.ones(())}

    def hidden(params: Params, batch: TokenBatch) -> jax.Array:
        read = policy.hidden(params["policy"], batch), critics.trunk.hidden(params["critics"]["trunk"], batch)
        return jnp.concatenate(read, axis=-1)

    def unembed(params: Params, x: jax.Array) -> jax.Array:
        logits = policy.unembed(params["policy"], x[..., :width])
        return advantage_weighted_logits(logits, *critics.heads(params["critics"], x[..., width:]), beta=params["beta"])

    def scalar(params: Params, x: jax.Array) -> jax.Array:
        return critics.heads(params["critics"], x[..., width:])[2]

    def prefill(params: Params, batch: TokenBatch, length: int):
        one, ours = policy.prefill(params["policy"], batch, length)
        two, theirs = critics.trunk.prefill(params["critics"]["trunk"], batch, length)
        return jnp.concatenate([one, two], axis=-1), (ours, theirs)

    def decode(params: Params, tokens, positions, column, filled, cache):
        read = tokens, positions, column, filled
        one, ours = policy.decode(params["policy"], *read, cache[0])
        two, theirs = critics.trunk.decode(params["critics"]["trunk"], *read, cache[1])
        return jnp.concatenate([one, two], axis=-1), (ours, theirs)

    def ready(params: Params, rows: int) -> Params:
        theirs = {**params["critics"], "trunk": critics.trunk.ready(params["critics"]["trunk"], rows)}
        return {**params, "policy": policy.ready(params["policy"], rows), "critics": theirs}

    return model_of(policy.config, init, hidden, unembed, scalar, prefill, decode, policy.decoded, ready)
