"""What a stage trains: all of a model, or adapters of it (LoRA), which are merged at its end."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from functools import partial

import jax
import jax.numpy as jnp

from rlhf_jax.config import LoRA
from rlhf_jax.files import write_atomic
from rlhf_jax.loops.run import Run
from rlhf_jax.models import Model
from rlhf_jax.models.lora import BASE, adapted, merged, with_lora
from rlhf_jax.processes import on_host
from rlhf_jax.report.runs import read_json
from rlhf_jax.sharding import place
from rlhf_jax.types import Params

BASES = "bases.json"


@dataclasses.dataclass(frozen=True)
class Trainee:
    """A model as a stage trains it. `model` takes `params`, and also the model's own parameters, so that a reference shares them."""

    model: Model
    params: Params
    run: Run
    lora: LoRA | None

    def whole(self, params: Params) -> Params:
        """The model's own parameters of trained ones: adapters merged into the weights, everything else as it is."""
        if self.lora is None:
            return params
        return self.run.programs.function(partial(partial, merged, config=self.lora))(params)


def check_base(run: Run, stage: str, params: Params, *, write: bool = True) -> None:
    """Keeps a fingerprint of the base of a stage's adapters, or compares it with the one kept: checkpoints hold the adapters alone.

    Raises: ValueError where the adapters were trained on another base.
    """
    path = run.directory / BASES
    kept = read_json(path, {})
    found = fingerprint(run, params[BASE].tree)
    if stage not in kept and write:
        write_atomic(path, json.dumps({**kept, stage: found}) + "\n")
    elif kept.get(stage) != found:
        raise ValueError(
            f"{path}: the adapters of stage {stage} were trained on another base than is made now: its checkpoint has changed, or this is "
            "another machine or version of jax"
        )


def fingerprint(run: Run, params: Params) -> str:
    """A number of 64 bits that depends on every bit of every parameter and on its place."""

    def of(leaf: jax.Array) -> jax.Array:
        kind = jnp.uint16 if leaf.dtype.itemsize == 2 else jnp.uint32
        bits = jax.lax.bitcast_convert_type(leaf, kind).astype(jnp.uint32).ravel()
        place = 2 * jax.lax.iota(jnp.uint32, bits.size) + 1
        words = jnp.stack([bits, bits ^ (bits >> 15)])
        return jnp.sum(words * place[None], axis=1, dtype=jnp.uint32)

    sums = run.programs.function(lambda: partial(jax.tree.map, of))(params)
    return hashlib.sha256(b"".join(part.tobytes() for part in jax.tree.leaves(on_host(sums)))).hexdigest()[:16]


def trainee(run: Run, stage: str, model: Model, params: Params, *, adapters: bool = True) -> Trainee:
    """What a stage of this run trains, beginning with these parameters; `adapters` only where they were trained before."""
    lora = run.experiment.lora if adapters else None
    if lora is None:
        return Trainee(model, params, run, None)
    start = place(adapted(params, lora, jax.random.fold_in(run.key(stage), 1)), run.mesh)
    check_base(run, stage, start)
    return Trainee(with_lora(model, lora), start, run, lora)
