"""What an update may not depend on: microbatches, devices, padding, packing, whether it was interrupted, and a bit lost on disk."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rlhf_jax.checkpoint import Checkpoints
from rlhf_jax.compiled import Compiled, compile_step
from rlhf_jax.config import MeshConfig, Optim
from rlhf_jax.config.model import ONE_DEVICE
from rlhf_jax.data.batching.packing import pack_right
from rlhf_jax.data.batching.padding import pad_right
from rlhf_jax.data.tokens.encode import Encoded
from rlhf_jax.doctor.report import Check, at_most, equal
from rlhf_jax.doctor.rollouts import ROWS, keys_of, prompts_of, sampler
from rlhf_jax.doctor.subjects import (
    BOTH_HEADS,
    LLAMA,
    SCORING,
    built,
    largest_difference,
    lively,
    moved_left,
    nearby,
    right_padded,
)
from rlhf_jax.losses.policy import policy_loss
from rlhf_jax.losses.ppo import ppo_value_loss
from rlhf_jax.losses.sft import sft_loss
from rlhf_jax.mesh import make_mesh
from rlhf_jax.rollout.score import make_trajectory
from rlhf_jax.sharding import place, place_batch
from rlhf_jax.train import TrainState, init_state, make_step
from rlhf_jax.train.optimizer import make_optimizer
from rlhf_jax.train.ppo import PPOState, combined, make_ppo_update, start_ppo
from rlhf_jax.types import Trajectory

# Adam divides by the root of its second moment, which blows rounding up where gradients are tiny; with this eps it does not.
TX = make_optimizer(Optim(lr=0.02, rows=ROWS, steps=10, eps=1e-2, weight_decay=0.01))
LENGTHS = (9, 3, 5, 4, 9, 8, 3, 6, 2, 7, 9, 4, 3, 3, 8, 9)  # one row has nothing to learn
SAME = 1e-5

Metrics = dict[str, jax.Array]


def sft(mesh: Mesh, microbatches: int = 1) -> tuple[TrainState, Metrics]:
    """The state after a fine-tuning step on this mesh, and its metrics."""
    step = make_step(partial(sft_loss, logprobs=built(LLAMA).logprobs), TX, microbatches=microbatches)
    batch = place_batch(right_padded(list(LENGTHS), 9), mesh)
    return compile_step(step, mesh)(place(init_state(lively(LLAMA), TX), mesh), batch)


def ppo(mesh: Mesh, microbatches: int = 1) -> tuple[PPOState, Metrics]:
    """The state after PPO's update of a policy with a value head over two minibatches, and its metrics."""
    trajectory = place_batch(played(), mesh)
    return ppo_step(mesh, microbatches)(place(ppo_state(), mesh), trajectory, jax.random.key(0))


@functools.cache
def ppo_step(mesh: Mesh, microbatches: int = 1) -> Compiled:
    """PPO's compiled update."""
    model = built(BOTH_HEADS)
    policy = partial(policy_loss, token_stats=model.token_stats, config=SCORING)
    loss = combined(policy, partial(ppo_value_loss, values=model.values, clip=0.2), 0.1)
    update = make_ppo_update(loss, TX, None, None, epochs=1, minibatch=ROWS // 2, microbatches=microbatches)
    return compile_step(update, mesh)


def ppo_state() -> PPOState:
    """What PPO's update changes, at its start."""
    return start_ppo(init_state(lively(BOTH_HEADS), TX), None, jnp.float32(0.1))


@functools.cache
def played() -> Trajectory:
    """What PPO learns from, on the host: sampled responses with made-up scores, and a reference nearby."""
    model, params = built(BOTH_HEADS), lively(BOTH_HEADS)
    make = jax.jit(partial(make_trajectory, policy=model, values=model.values, config=SCORING))
    rollout = sampler(model)(params, prompts_of(), keys_of(), 0.7)
    scores = jnp.asarray(np.random.default_rng(3).normal(size=ROWS), jnp.float32)
    trajectory, _ = make(params, nearby(BOTH_HEADS), params, rollout, scores, jnp.float32(0.1))
    return jax.tree.map(np.asarray, trajectory)


def meshes() -> list[MeshConfig]:
    """Shapes that lay all devices of this machine along each axis, and, last, along as many axes as they divide into."""
    count = jax.device_count()
    if count == 1:
        return []
    shapes = [MeshConfig(count, 1, 1), MeshConfig(1, count, 1)]
    if count % 2 == 0:
        shapes.append(MeshConfig(1, count // 2, 2))
    if count % 4 == 0:
        shapes.append(MeshConfig(2, count // 4, 2))
    return [shape for shape in dict.fromkeys(shapes) if ROWS // 2 % shape.row_shards == 0]


def however_it_is_split() -> Iterator[Check]:
    """Updates by microbatches and devices."""
    alone, shapes = make_mesh(ONE_DEVICE), meshes()
    for name, update, over in (("SFT", sft, shapes), ("PPO", ppo, shapes[-1:])):
        whole = update(alone)
        for count in (2, 4):
            distance = largest_difference(whole, update(alone, count))
            yield at_most(f"{name}, update: {count} microbatches against 1", distance, SAME)
        for shape in over:
            named = ", ".join(f"{axis}={size}" for axis, size in dataclasses.asdict(shape).items())
            distance = largest_difference(whole, update(make_mesh(shape)))
            yield at_most(f"{name}, update: mesh {named} against 1 device", distance, SAME)


def however_it_is_laid_out() -> Iterator[Check]:
    """Gradients by padding and packing."""
    noise = np.random.default_rng(1)
    texts = [
        Encoded(tuple(noise.integers(0, LLAMA.vocab, 2).tolist()), tuple(noise.integers(0, LLAMA.vocab, n).tolist()))
        for n in (3, 5, 2, 7, 4, 1, 6, 3)
    ]
    padded, packed = (jax.tree.map(jnp.asarray, lay(texts, 12, 0)) for lay in (pad_right, pack_right))
    gradient = jax.jit(jax.grad(lambda params, batch: sft_loss(params, batch, logprobs=built(LLAMA).logprobs)[0]))
    right = gradient(lively(LLAMA), padded)
    for name, other in {"packed": packed, "left-padded": moved_left(padded)}.items():
        distance = largest_difference(right, gradient(lively(LLAMA), other))
        yield at_most(f"SFT gradient, {name} against right-padded", distance, SAME)


def stopped_and_resumed() -> Iterator[Check]:
    """Resume from a checkpoint."""
    mesh = make_mesh(ONE_DEVICE)
    trajectory = place_batch(played(), mesh)

    def advance(state):
        state, _ = ppo_step(mesh)(state, trajectory, jax.random.fold_in(jax.random.key(1), state.policy.step))
        return state

    def start():
        return place(ppo_state(), mesh)

    through = advance(advance(start()))
    with tempfile.TemporaryDirectory() as folder:
        with Checkpoints(Path(folder)) as kept:
            kept.save(1, advance(start()))
        with Checkpoints(Path(folder)) as kept:
            resumed = advance(kept.restore(1, start()))
    yield equal("PPO resumed from a checkpoint against uninterrupted", largest_difference(through, resumed), 0.0)


def damaged_on_disk() -> Iterator[Check]:
    """A checkpoint with a flipped bit."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        kept = Path(folder) / "kept"
        with Checkpoints(kept) as checkpoints:
            for step in (1, 2):
                checkpoints.save(step, {"x": jnp.full(64, step)})
        path = max((path for path in (kept / "2").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        with Checkpoints(kept) as checkpoints:
            used = checkpoints.latest
        named = any(f"{path.relative_to(kept / '2').as_posix()} changed" in str(one.message) for one in said)
        aside = (Path(folder) / "kept.damaged" / "2").is_dir()
    found = f"{'named' if named else 'not named'}, {'set aside' if aside else 'left'}, step {used} used"
    yield equal("a bit flipped in the newer of two checkpoints", found, "named, set aside, step 1 used")


EXAMINATIONS = (however_it_is_split, however_it_is_laid_out, stopped_and_resumed, damaged_on_disk)
