"""Updates on given texts: SFT, packed and padded, the reward model, DPO."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from benchmarks.workloads.common import (
    OPTIM,
    SHAPE,
    Shape,
    Values,
    Workload,
    fastest_mesh,
    forward_flops,
    lengths,
    random_texts,
    token_batch,
)
from rlhf_jax.compiled import compile_function, compile_step
from rlhf_jax.config import ModelConfig, Preference
from rlhf_jax.data.batching.batches import take_rows
from rlhf_jax.data.batching.packing import pack_right
from rlhf_jax.data.batching.padding import pad_right
from rlhf_jax.data.tokens.encode import Encoded
from rlhf_jax.loops.preference import completed, make_preference_step
from rlhf_jax.losses.reward import comparison_loss
from rlhf_jax.losses.sft import sft_loss
from rlhf_jax.models import build_model
from rlhf_jax.sharding import initialise, place, place_batch
from rlhf_jax.train import init_state, make_step
from rlhf_jax.train.optimizer import make_optimizer
from rlhf_jax.types import PreferenceBatch, TokenBatch

TEXTS = 128
ROWS, LENGTH = SHAPE.rows, SHAPE.length
BUCKETS = (64, 128, 192, LENGTH)  # of tokens


def sft(config: ModelConfig, shape: Shape = SHAPE) -> Workload:
    """One update on 8 rows of 256 tokens."""
    return _sft(config, [token_batch(config, shape.rows, shape.length)], np.full(shape.rows, shape.length), shape)


def sft_padded(config: ModelConfig) -> Workload:
    """128 texts of log-normal lengths (mean 100, at most 256), a row each, in updates of 8 rows of one bucket. Real tokens count."""

    def in_buckets(texts: list[Encoded]) -> Iterator[TokenBatch]:
        for low, high in itertools.pairwise((0, *BUCKETS)):
            yield from _batches(pad_right([text for text in texts if low < text.size <= high], high, 0))

    return _varied(config, in_buckets)


def sft_packed(config: ModelConfig) -> Workload:
    """The same texts, several to a row, in updates of 8 rows."""
    return _varied(config, lambda texts: _batches(pack_right(texts, LENGTH, 0)))


def _varied(config: ModelConfig, batches_of: Callable[[list[Encoded]], Iterator[TokenBatch]]) -> Workload:
    sizes = lengths(TEXTS, 100, LENGTH)
    return _sft(config, list(batches_of(random_texts(config, sizes))), sizes)


def _batches(rows: TokenBatch) -> Iterator[TokenBatch]:
    """Each 8 rows; the last has empty ones."""
    filled = jax.tree.map(lambda x: jnp.pad(x, ((0, -len(x) % ROWS), (0, 0))), rows)
    for start in range(0, filled.tokens.shape[0], ROWS):
        yield take_rows(filled, slice(start, start + ROWS))


def _sft(config: ModelConfig, batches: list[TokenBatch], sizes: np.ndarray, shape: Shape = SHAPE) -> Workload:
    mesh, model, tx = fastest_mesh(config, shape.rows), build_model(config), make_optimizer(OPTIM)
    loss = partial(sft_loss, logprobs=model.logprobs)
    shapes = len({batch.tokens.shape for batch in batches})
    step = compile_step(make_step(loss, tx, microbatches=shape.microbatches), mesh, programs=shapes)
    state = place(init_state(initialise(model.init, jax.random.key(0), mesh=mesh), tx), mesh)

    def update(v: Values) -> Values:
        state = v["state"]
        for batch in v["batches"]:
            state, _ = step(state, batch)
        return v | {"state": state}

    flops = 3 * forward_flops(config, sizes)
    return Workload(
        "tokens/s", int(sizes.sum()), {"state": state, "batches": place_batch(batches, mesh)}, {"update": update}, flops
    )


def reward(config: ModelConfig) -> Workload:
    """One update on 8 pairs of 256 tokens each side."""
    config = dataclasses.replace(config, head="scalar")
    mesh, model, tx = fastest_mesh(config), build_model(config), make_optimizer(OPTIM)
    step = compile_step(make_step(partial(comparison_loss, scores=model.scores), tx), mesh)
    state = place(init_state(initialise(model.init, jax.random.key(0), mesh=mesh), tx), mesh)

    def update(v: Values) -> Values:
        return v | {"state": step(v["state"], v["batch"])[0]}

    flops = 3 * forward_flops(config, np.full(2 * ROWS, LENGTH))
    return Workload("pairs/s", ROWS, {"state": state, "batch": _pairs(config, mesh)}, {"update": update}, flops)


def dpo(config: ModelConfig) -> Workload:
    """One update on 8 pairs of 256 tokens each side, and before it the log-probs of the reference."""
    mesh, model = fastest_mesh(config), build_model(config)
    _, update_of = make_preference_step(model, Preference(data=None, pairs=ROWS, optim=OPTIM))
    complete = compile_function(partial(completed, model=model), mesh)
    step = compile_step(update_of, mesh)
    reference = initialise(model.init, jax.random.key(0), mesh=mesh)
    state = init_state(reference, make_optimizer(OPTIM))
    values = place({"reference": reference, "state": state}, mesh) | {"pairs": _pairs(config, mesh)}

    def score(v: Values) -> Values:
        return v | {"batch": complete(v["state"].params, v["reference"], v["pairs"])}

    def update(v: Values) -> Values:
        return v | {"state": step(v["state"], v["batch"])[0]}

    flops = 4 * forward_flops(config, np.full(2 * ROWS, LENGTH))
    return Workload("pairs/s", ROWS, values, {"reference": score, "update": update}, flops)


def _pairs(config: ModelConfig, mesh: Mesh) -> PreferenceBatch:
    chosen, rejected = (token_batch(config, ROWS, LENGTH, seed) for seed in (0, 1))
    return place_batch(PreferenceBatch(chosen, rejected, margin=jnp.zeros(ROWS), weight=jnp.ones(ROWS)), mesh)
