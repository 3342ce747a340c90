"""PPO's update: epochs of shuffled minibatches over one trajectory, as one program."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rlhf_jax.frozen import join_frozen, split_frozen
from rlhf_jax.losses.scores import no_moments
from rlhf_jax.sharding import constrain
from rlhf_jax.train.step import TrainState, apply_gradients, gradients, skips
from rlhf_jax.types import Aux, LossFn, Moments, Params, TokenBatch, Trajectory, pytree


@pytree
class PPOState:
    """Everything that changes from one iteration to the next."""

    policy: TrainState
    value: TrainState | None  # None: the value is a head on the policy, or there is none
    kl_coef: jax.Array
    average: jax.Array  # moving average of the rewards per response, which a baseline may use
    moments: Moments  # of all scores so far, which their unit may come from
    iteration: jax.Array


def start_ppo(policy: TrainState, value: TrainState | None, kl_coef: jax.Array) -> PPOState:
    """The state before the first iteration."""
    return PPOState(
        policy=policy,
        value=value,
        kl_coef=kl_coef,
        average=jnp.zeros(()),
        moments=no_moments(),
        iteration=jnp.zeros((), jnp.int32),
    )


@dataclasses.dataclass(frozen=True)
class Term:
    """A loss with its coefficient; each term is a mean over its own weight, so that ptx and PPO do not dilute each other."""

    loss: LossFn
    coef: float = 1.0


def combined(policy: LossFn, value: LossFn, coef: float) -> LossFn:
    """policy + coef * value, for a value head on the policy's trunk; both are means over the response tokens."""

    def loss(params, trajectory):
        (a, first), (b, second) = policy(params, trajectory), value(params, trajectory)
        return a + coef * b, Aux(weight=first.weight, metrics={**first.metrics, **second.metrics})

    return loss


def minibatch_rows(key: jax.Array, rows: int, epochs: int, minibatch: int, together: int = 1) -> jax.Array:
    """[epochs * minibatches, minibatch] row numbers: every epoch is a fresh permutation of all rows, so many of which stay together."""
    orders = jax.vmap(lambda k: jax.random.permutation(k, rows // together))(jax.random.split(key, epochs))
    return (orders[:, :, None] * together + jnp.arange(together)[None, None, :]).reshape(-1, minibatch)


def select_rows(trajectory: Any, rows: jax.Array) -> Any:
    """The given rows of every array of a record; scalars stay. Constrained, as indexing leaves rows replicated."""

    def pick(x):
        if x.ndim == 0:
            return x
        return constrain(x[rows], "batch", *(None,) * (x.ndim - 1))

    return jax.tree.map(pick, trajectory)


def if_finite(new: Any, old: Any) -> Any:
    """The new tree where all of it is finite, else the old one: a score that is no number must not stay in what later ones are held to."""
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(new)]))
    return jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old)


def make_ppo_update(
    policy_loss: LossFn,
    policy_tx: optax.GradientTransformation,
    value_loss: LossFn | None,
    value_tx: optax.GradientTransformation | None,
    *,
    epochs: int,
    minibatch: int,
    microbatches: int = 1,
    together: int = 1,
    ptx: Term | None = None,
    ema: float | None = None,
    value_warmup: int = 0,
) -> Callable[..., tuple[PPOState, dict[str, jax.Array]]]:
    """(state, trajectory, key, ptx batch or None, reference or None) -> (state, mean metrics over the minibatches, and `skips`).

    Rows go to minibatches and microbatches in groups of so many that stand `together`. The ptx batch holds [epochs * minibatches, rows, T]
    demonstrations; its gradient is added before the one clipping and update, as in Ouyang et al. 2022, section 3.5 and appendix C.4.
    Advantages come whitened over the whole batch.
    With `reference` the policy loss is called as (params, minibatch, reference). In the first `value_warmup` iterations the policy's state
    stays as it is, moments and schedule too, and the value model learns alone (Zheng et al. 2023, arXiv:2307.04964, section 5.3.3).
    """

    def one_minibatch(trajectory: Trajectory, reference: Params | None):
        loss = policy_loss if reference is None else lambda params, batch: policy_loss(params, batch, reference)  # pyright: ignore[reportCallIssue]

        def body(state: PPOState, item):
            rows, demonstrations = item
            batch = select_rows(trajectory, rows)
            grads, metrics, _, value_of_loss = gradients(loss, state.policy.params, batch, microbatches, together)
            if ptx is not None:
                extra = gradients(ptx.loss, state.policy.params, demonstrations, microbatches)
                grads = jax.tree.map(lambda g, e, coef=ptx.coef: g + coef * e, grads, extra.grads)
                metrics |= {f"ptx_{name}": value for name, value in extra.metrics.items()}
                value_of_loss += ptx.coef * extra.loss
            metrics |= {"loss": value_of_loss, "grad_norm": optax.tree.norm(grads)}
            policy = apply_gradients(state.policy, grads, policy_tx, ema=ema, loss=value_of_loss)
            if value_warmup:
                wait = state.iteration < value_warmup
                policy = jax.tree.map(lambda new, old: jnp.where(wait, old, new), policy, state.policy)
            value = state.value
            if value is not None:
                assert value_loss is not None and value_tx is not None
                found = gradients(value_loss, value.params, batch, microbatches, together)
                metrics |= found.metrics | {"value_grad_norm": optax.tree.norm(found.grads)}
                value = apply_gradients(value, found.grads, value_tx, loss=found.loss)
            metrics |= skips(policy) if value is None else skips(policy, value)
            return dataclasses.replace(state, policy=policy, value=value), metrics

        return body

    def update(
        state: PPOState,
        trajectory: Trajectory,
        key: jax.Array,
        demonstrations: TokenBatch | None = None,
        reference: Params | None = None,
    ):
        rows = minibatch_rows(key, trajectory.scores.shape[0], epochs, minibatch, together)
        body = one_minibatch(trajectory, reference)
        live, frozen = split_frozen(state)

        def one(live: PPOState, item):
            state, metrics = body(join_frozen(live, frozen), item)
            return split_frozen(state)[0], metrics

        live, metrics = jax.lax.scan(one, live, (rows, demonstrations))
        state = join_frozen(live, frozen)
        first = ("ratio", "clip_fraction", "approx_kl")
        seen = {f"first_{name}": metrics[name][0] for name in first if name in metrics}
        # Of updates that were left out the number and the longest row, of all else the mean.
        seen |= {"skipped": metrics["skipped"].sum(), "skipped_in_a_row": metrics["skipped_in_a_row"].max()}
        average, moments = if_finite((trajectory.average, trajectory.moments), (state.average, state.moments))
        state = dataclasses.replace(state, average=average, moments=moments)
        return state, jax.tree.map(jnp.mean, metrics) | seen

    return update
