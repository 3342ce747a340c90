"""AdamW with a schedule, from an `Optim` config."""

from __future__ import annotations

import jax
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


def is_matrix(params):
    """True for the leaves that weight decay applies to: kernels and embeddings, by the last name of their path."""

    def named(path, _) -> bool:  # other people's trees may be lists, or a single array
        return any(getattr(entry, "key", None) in ("kernel", "embedding") for entry in path[-1:])

    return jax.tree_util.tree_map_with_path(named, params)


def make_optimizer(config: Optim) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW (Loshchilov & Hutter 2019) on the schedule; eps is added to sqrt(v_hat), as in PyTorch."""
    adam = optax.adamw(
        learning_rate(config),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=is_matrix,
    )
    if config.max_grad_norm is None:
        return adam
    return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), adam)
