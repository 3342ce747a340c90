"""What all studies in the exact world share: the world on the device, its policy, and the fine-tuned reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, PartitionSpec

from rlhf_jax.config.study import ExactStudy
from rlhf_jax.eval import exact
from rlhf_jax.losses.sft import sft_loss
from rlhf_jax.models import Model, build_model
from rlhf_jax.train import init_state, make_step
from rlhf_jax.types import Params, TokenBatch
from rlhf_jax.worlds.exact import ExactWorld


@dataclasses.dataclass(frozen=True)
class Setting:
    """A study's world and models. Its functions are pure: they are compiled, and run over seeds, by who calls them."""

    study: ExactStudy
    world: ExactWorld
    policy: Model
    value: Model
    batch: TokenBatch  # every string behind every prompt, on the device
    gold: jax.Array  # the true reward, [prompts, strings]

    def logprobs(self, params: Params) -> jax.Array:
        """log pi of every string behind every prompt, [prompts, strings], by the model's ordinary log-probs."""
        return exact.string_logprobs(
            params, self.batch, logprobs=self.policy.logprobs, prompts=self.study.world.prompts
        )

    def reference(self, key: jax.Array) -> Params:
        """A policy fine-tuned on sampled demonstrations: strings whose words do not repeat."""
        study, strings = self.study, len(self.world.strings)
        demonstrated = jnp.asarray(self.world.demonstrations)
        tx = optax.adam(optax.cosine_decay_schedule(study.reference_lr, study.reference_steps))
        step = make_step(partial(sft_loss, logprobs=self.policy.logprobs), tx)
        init, draws = jax.random.split(key)

        def advance(state, key):
            which, where = jax.random.split(key)
            string = jax.random.choice(which, strings, (study.reference_rows,), p=demonstrated)
            prompt = jax.random.randint(where, (study.reference_rows,), 0, study.world.prompts)
            state, _ = step(state, jax.tree.map(lambda x: x[prompt * strings + string], self.batch))
            return state, None

        keys = jax.random.split(draws, study.reference_steps)
        state, _ = jax.lax.scan(advance, init_state(self.policy.init(init), tx), keys)
        return state.params


def open_setting(study: ExactStudy) -> Setting:
    """The setting of a study, its arrays on the device."""
    world = ExactWorld(**dataclasses.asdict(study.world))
    return Setting(
        study,
        world,
        policy=build_model(study.policy),
        value=build_model(dataclasses.replace(study.policy, head="scalar")),
        batch=jax.tree.map(jnp.asarray, world.batch),
        gold=jnp.asarray(world.gold),
    )


def seed_keys(study: ExactStudy, seeds: int) -> jax.Array:
    """One key per seed, from the study's seed on."""
    return jax.vmap(jax.random.key)(jnp.arange(study.seed, study.seed + seeds))


def over_seeds(function: Callable) -> Callable:
    """The function over a leading axis of seeds of all its arguments, as one compiled program; the devices share the seeds.

    An accelerator takes its seeds at once; a core of a CPU one after the other, as its cache holds the work of one seed, not of several.
    """

    @jax.jit
    def together(*arguments):
        seeds = jax.tree.leaves(arguments)[0].shape[0]
        devices = jax.devices()[:seeds]
        # Seeds that do not divide are filled up with the last one, whose results are dropped.
        rest = -seeds % len(devices)
        filled = jax.tree.map(lambda x: jnp.concatenate([x, jnp.repeat(x[-1:], rest, axis=0)]), arguments)
        each = in_turn(function) if devices[0].platform == "cpu" else jax.vmap(function)
        mesh = jax.make_mesh((len(devices),), ("seeds",), axis_types=(AxisType.Auto,), devices=devices)
        split = PartitionSpec("seeds")
        shared = jax.shard_map(each, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)
        return jax.tree.map(lambda x: x[:seeds], shared(*filled))

    return together


def in_turn(function: Callable) -> Callable:
    """`jax.vmap(function)`, worked through one at a time."""
    return lambda *arguments: jax.lax.map(lambda one: function(*one), arguments)
