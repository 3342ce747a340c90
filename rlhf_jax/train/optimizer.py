"""AdamW or Adafactor with a schedule, from an `Optim` config."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from rlhf_jax.config import Optim
from rlhf_jax.train.adafactor import clip_and_scale_by_size, scale_by_factored_moments


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


def with_bfloat16_moments(adam: optax.GradientTransformation) -> optax.GradientTransformation:
    """An Adam whose moments are bfloat16 between updates, and float32 while it computes: half of the memory.

    The first moment is rounded to the nearest. The second one is rounded up or down by chance, so that it is right in the mean: where
    gradients fall, an update takes 1 - b2 of its size off it at most, which is little beside bfloat16's steps of 1/256 to 1/128, and
    rounded to the nearest it would stay at the largest gradients that it has seen.
    """

    def init(params) -> Any:
        return _kept(adam.init(params), lambda nu, count: optax.tree.cast(nu, jnp.bfloat16))

    def update(updates, state: Any, params=None):
        wide = state._replace(mu=optax.tree.cast(state.mu, jnp.float32), nu=optax.tree.cast(state.nu, jnp.float32))
        updates, wide = adam.update(updates, wide, params)
        return updates, _kept(wide, _by_chance)

    return optax.GradientTransformation(init, update)


def _kept(state: Any, second: Any) -> Any:
    return state._replace(mu=optax.tree.cast(state.mu, jnp.bfloat16), nu=second(state.nu, state.count))


def _by_chance(tree: Any, count: jax.Array) -> Any:
    """The leaves in bfloat16, rounded by noise that belongs to this update and leaf, and to no layout of devices."""
    leaves, structure = jax.tree.flatten(tree)
    key = jax.random.fold_in(jax.random.key(0), count)
    keys = [jax.random.fold_in(key, number) for number in range(len(leaves))]
    return structure.unflatten([stochastic_bfloat16(leaf, key) for leaf, key in zip(leaves, keys, strict=True)])


def stochastic_bfloat16(x: jax.Array, key: jax.Array) -> jax.Array:
    """float32 to one of the two bfloat16 beside it, the nearer one more often, so that the mean is x."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    above = ((bits + noise) >> 16).astype(jnp.uint16)
    return jnp.where(jnp.isfinite(x), jax.lax.bitcast_convert_type(above, jnp.bfloat16), x.astype(jnp.bfloat16))


def make_optimizer(config: Optim) -> optax.GradientTransformation:
    """Clip by global norm, then Adam or Adafactor as the config has it, with decoupled weight decay (Loshchilov & Hutter 2019), on the
    schedule."""
    chain = optax.chain(
        *_scaled(config),
        optax.add_decayed_weights(config.weight_decay, is_matrix),
        optax.scale_by_learning_rate(learning_rate(config)),
    )
    if config.max_grad_norm is None:
        return chain
    return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), chain)


def _scaled(config: Optim) -> list[optax.GradientTransformation]:
    if config.kind == "adafactor":
        return [scale_by_factored_moments(), clip_and_scale_by_size()]
    scale = {"torch": optax.scale_by_adam, "tf1": scale_by_adam_tf1}[config.adam]
    adam = scale(b1=config.b1, b2=config.b2, eps=config.eps)
    return [adam if config.moments == "float32" else with_bfloat16_moments(adam)]
