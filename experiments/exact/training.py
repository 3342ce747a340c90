"""A whole training run in the exact world as one program: rollouts, scores, updates, and the exact objective along the way."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.exact.setting import Setting
from rlhf_jax.config import PolicyGradient
from rlhf_jax.config.study import OnPolicyStudy
from rlhf_jax.eval import exact
from rlhf_jax.losses.policy import policy_loss
from rlhf_jax.losses.ppo import ppo_value_loss
from rlhf_jax.rollout.generate import generate
from rlhf_jax.rollout.sampling import row_keys
from rlhf_jax.rollout.score import make_trajectory, token_kl_to
from rlhf_jax.train import init_state
from rlhf_jax.train.ppo import PPOState, make_ppo_update, start_ppo
from rlhf_jax.types import Params, Rollout
from rlhf_jax.worlds.exact import EOS


def gold_scores(setting: Setting, rollout: Rollout, prompts: jax.Array) -> jax.Array:
    """The true reward of each response, looked up in the list of all strings."""
    start = setting.world.prompt_length
    numbers = setting.world.numbers_of(rollout.batch.tokens[:, start:], rollout.batch.loss_mask[:, start:])
    return setting.gold[prompts, numbers]


def train_on_policy(
    setting: Setting,
    study: OnPolicyStudy,
    config: PolicyGradient,
    key: jax.Array,
    reference: Params,
    beta: jax.Array,
    lr: jax.Array,
) -> dict[str, jax.Array]:
    """Curves [steps / every] of one run that starts at the reference: `gap` = J* - J, `reward` E[r], `kl` and `entropy` in nats, exact.

    And `clip_fraction` where the objective clips. `beta` (the price of KL) and `lr` are arrays, so that a sweep is one program.
    """
    world, policy = setting.world, setting.policy
    groups = study.rows // config.samples
    group = np.repeat(np.arange(groups), config.samples)
    sample = np.tile(np.arange(config.samples), groups)
    prompt = group % study.world.prompts
    prompts = jax.tree.map(jnp.asarray, world.prompt_batch(prompt))
    critic = setting.value if config.baseline == "value" else None
    values = None if critic is None else critic.values
    adam, value_adam = (optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate)) for rate in (lr, study.value_lr))
    update = make_ppo_update(
        partial(policy_loss, token_stats=policy.token_stats, config=config, token_kl=token_kl_to(policy)),
        adam,
        None if values is None else partial(ppo_value_loss, values=values, clip=None),
        None if values is None else value_adam,
        epochs=config.epochs,
        minibatch=study.rows,
    )
    noise, order, init = jax.random.split(key, 3)
    value = None if critic is None else init_state(starting_at_zero(critic.init(init)), value_adam)
    state = start_ppo(init_state(reference, adam), value, beta)

    def iterate(state: PPOState, step: jax.Array):
        keys = row_keys(noise, step, group, sample)
        params = state.policy.params
        rollout = generate(
            params, prompts, keys, config.temperature, model=policy, new_tokens=world.length, stop=(EOS,)
        )
        trajectory, _ = make_trajectory(
            params,
            reference,
            None if state.value is None else state.value.params,
            rollout,
            gold_scores(setting, rollout, jnp.asarray(prompt)),
            state.kl_coef,
            state.average,
            state.moments,
            policy=policy,
            values=values,
            config=config,
        )
        extra = reference if config.kl_estimator == "exact" else None
        state, metrics = update(state, trajectory, jax.random.fold_in(order, step), None, extra)
        return state, metrics.get("clip_fraction", jnp.float32(0.0))

    logref = setting.logprobs(reference)
    _, best = exact.optimum(logref, setting.gold, beta)

    def measured(state: PPOState, chunk: jax.Array):
        clipped: jax.Array
        state, clipped = jax.lax.scan(iterate, state, chunk * study.every + jnp.arange(study.every))  # pyright: ignore[reportAssignmentType]
        logp = setting.logprobs(state.policy.params)
        return state, {
            "gap": best - exact.objective(logp, logref, setting.gold, beta),
            "reward": exact.expected(logp, setting.gold),
            "kl": exact.kl(logp, logref),
            "entropy": exact.entropy(logp),
            "clip_fraction": jnp.mean(clipped),
        }

    _, curves = jax.lax.scan(measured, state, jnp.arange(study.steps // study.every))
    return curves


def starting_at_zero(params: Params) -> Params:
    """A value model that starts by expecting 0 everywhere, as in Ziegler et al. 2019."""
    return params | {"score": jax.tree.map(jnp.zeros_like, params["score"])}
