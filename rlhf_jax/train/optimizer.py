"""AdamW with a schedule, from an `Optim` config."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from rlhf_jax.config import Optim


def learning_rate(config: Optim) -> optax.Schedule:
    """Update number (from 0) -> learning rate: linear warm-up, then constant, linear or cosine to `final_lr * lr`."""
    decay_steps = max(config.total - config.warmup, 1)
    match config.schedule:
        case "constant":
            decay = optax.constant_schedule(config.lr)
        case "linear":
            decay = optax.linear_schedule(config.lr, config.lr * config.final_lr, decay_steps)
        case "cosine":
            decay = optax.cosine_decay_schedule(config.lr, decay_steps, alpha=config.final_lr)
    if not config.warmup:
        return decay
    # From lr / warmup, not from 0: an update with a learning rate of 0 is a wasted one.
    warmup = optax.linear_schedule(config.lr / config.warmup, config.lr, config.warmup)
    return optax.join_schedules([warmup, decay], [config.warmup])


MATRICES = ("kernel", "embedding", "lora_a", "lora_b")


def is_matrix(params):
    """True for the leaves that weight decay applies to: kernels, embeddings and adapters, by the last name of their path."""

    def named(path, _) -> bool:  # other people's trees may be lists, or a single array
        return any(getattr(entry, "key", None) in MATRICES for entry in path[-1:])

    return jax.tree_util.tree_map_with_path(named, params)


def scale_by_adam_tf1(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam as TensorFlow 1 has it: m_t sqrt(1 - b2^t) / (1 - b1^t) / (sqrt(v_t) + eps).

    eps stands beside the root of the raw second moment, as if `optax.scale_by_adam` had eps / sqrt(1 - b2^t): early steps of small
    gradients are shorter, by up to 1 / sqrt(1 - b2). Source: Kingma & Ba 2015, section 2, "epsilon hat".
    """

    def init(params) -> optax.ScaleByAdamState:
        mu, nu = optax.tree.zeros_like(params), optax.tree.zeros_like(params)
        return optax.ScaleByAdamState(count=jnp.zeros((), jnp.int32), mu=mu, nu=nu)

    def update(updates, state: Any, params=None):
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        count = optax.safe_increment(state.count)
        scale = jnp.sqrt(1 - b2**count) / (1 - b1**count)
        updates = jax.tree.map(lambda m, v: scale.astype(m.dtype) * m / (jnp.sqrt(v) + eps), mu, nu)
        return updates, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformation(init, update)


def make_optimizer(config: Optim) -> optax.GradientTransformation:
    """Clip by global norm, then Adam as the config has it, with decoupled weight decay (Loshchilov & Hutter 2019), on the schedule."""
    scale = {"torch": optax.scale_by_adam, "tf1": scale_by_adam_tf1}[config.adam]
    adam = optax.chain(
        scale(b1=config.b1, b2=config.b2, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay, is_matrix),
        optax.scale_by_learning_rate(learning_rate(config)),
    )
    if config.max_grad_norm is None:
        return adam
    return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), adam)
