"""Responses: all of one length, and of many lengths, with all written at once or in slots."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from benchmarks.workloads.common import (
    SHAPE,
    Shape,
    Values,
    Workload,
    decode_bytes,
    fastest_mesh,
    forward_flops,
    lengths,
    prompts,
)
from rlhf_jax.compiled import compile_function
from rlhf_jax.config import ModelConfig
from rlhf_jax.models import Model, build_model
from rlhf_jax.rollout.generate import generate
from rlhf_jax.rollout.sampling import sample_tokens
from rlhf_jax.sharding import initialise, place_batch

PROMPTS, MANY, STOP = SHAPE.prompts, 128, 1
NEW_TOKENS, PROMPT_LENGTH = SHAPE.new_tokens, SHAPE.prompt_length


def writer(model: Model, mesh: Mesh, new_tokens: int) -> tuple[Callable, Callable]:
    """(the rollout, what comes before it decodes) of parameters and values that have `prompts` and `keys`."""

    def of(columns: int) -> Callable:
        program = compile_function(partial(generate, model=model, new_tokens=columns), mesh)
        return lambda params, v: program(params, v["prompts"], v["keys"], jnp.float32(1.0))

    return of(new_tokens), of(1)


def generation(config: ModelConfig, shape: Shape = SHAPE) -> Workload:
    """128 new tokens to each of 16 prompts of 64; no stop token, so that every row is written to its end."""
    mesh, model, new_tokens = fastest_mesh(config, shape.prompts * shape.samples), build_model(config), shape.new_tokens
    write, prompts_read = writer(model, mesh, new_tokens)
    asked = prompts(config, mesh, shape.prompts, shape.samples, shape.prompt_length)
    values = asked | {"params": initialise(model.init, jax.random.key(0), mesh=mesh)}

    def rollout(v: Values) -> Values:
        return v | {"rollout": write(v["params"], v)}

    rows = shape.prompts * shape.samples
    flops = forward_flops(config, np.full(rows, shape.prompt_length + new_tokens), np.full(rows, new_tokens))
    read = decode_bytes(config, rows, shape.prompt_length, new_tokens, shape.samples)
    phases = {"rollout": rollout}
    return Workload(
        "new tokens/s", rows * new_tokens, values, phases, flops, read, lambda v: prompts_read(v["params"], v)
    )


def varied_at_once(config: ModelConfig) -> Workload:
    """128 responses of log-normal lengths (mean 40, at most 128), all written at once."""
    return _varied(config, None)


def varied_in_batches(config: ModelConfig) -> Workload:
    """The same in 8 batches of 16, each as long as its longest."""
    return _varied(config, None, PROMPTS)


def varied_in_slots(config: ModelConfig) -> Workload:
    """The same in 16 slots, in which the next begins where one has ended."""
    return _varied(config, PROMPTS)


def _varied(config: ModelConfig, slots: int | None, rows: int = MANY) -> Workload:
    mesh, model = fastest_mesh(config), build_model(config)
    sizes = lengths(MANY, 40, NEW_TOKENS)
    asked = prompts(config, mesh, MANY)
    # A response stops where its length says; the keys, which go with the responses, tell it.
    keys = jax.random.wrap_key_data(jnp.stack([jnp.zeros(MANY, jnp.uint32), sizes.astype(jnp.uint32)], axis=1))

    def choose(logits, keys, columns, temperature):
        tokens, logprobs = sample_tokens(logits, keys, columns, temperature)
        last = columns + 1 == jax.random.key_data(keys)[:, 1].astype(jnp.int32)
        return jnp.where(last, STOP, jnp.where(tokens == STOP, STOP + 1, tokens)), logprobs

    how = {"model": model, "new_tokens": NEW_TOKENS, "stop": (STOP,), "choose": choose, "slots": slots}
    write = compile_function(partial(generate, **how), mesh)
    parts = [slice(start, start + rows) for start in range(0, MANY, rows)]
    batches = [
        place_batch((jax.tree.map(lambda x, p=part: x[p], asked["prompts"]), keys[part]), mesh) for part in parts
    ]
    values = {"params": initialise(model.init, jax.random.key(0), mesh=mesh), "batches": batches}

    def rollout(v: Values) -> Values:
        return v | {"rollouts": [write(v["params"], *batch, jnp.float32(1.0)) for batch in v["batches"]]}

    flops = forward_flops(config, PROMPT_LENGTH + sizes, sizes)
    return Workload("new tokens/s", int(sizes.sum()), values, {"rollout": rollout}, flops)
