"""What the workloads have in common: sizes, random texts, and what a workload is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rlhf_jax.config import MeshConfig, ModelConfig, Optim
from rlhf_jax.data.tokens.encode import Encoded
from rlhf_jax.mesh import make_mesh, split_cpu
from rlhf_jax.report.environment import cores
from rlhf_jax.rollout.sampling import row_keys
from rlhf_jax.sharding import place_batch
from rlhf_jax.types import TokenBatch

FAST = {"max_length": 512, "unroll": True, "logit_chunk": None}  # on CPUs, for models that memory has room for
SIZES = {
    "S": ModelConfig(vocab=4096, width=256, layers=4, heads=4, kv_heads=2, mlp=1024, **FAST),
    "M": ModelConfig(vocab=16_384, width=512, layers=8, heads=8, kv_heads=4, mlp=1408, **FAST),
}
OPTIM = Optim(lr=1e-4, steps=1000, rows=8)


@dataclasses.dataclass(frozen=True)
class Shape:
    """How much of everything there is in one step."""

    rows: int = 8  # or pairs, of an update on given texts, and of a minibatch of PPO
    length: int = 256
    microbatches: int = 1
    prompts: int = 16
    samples: int = 1
    prompt_length: int = 64
    new_tokens: int = 128


SHAPE = Shape()
SMALL = 10_000_000  # weights


def use_all_cores() -> None:
    """Lets each core of a CPU be a device of its own, in a process in which JAX has made nothing yet."""
    split_cpu(cores())


def fastest_mesh(config: ModelConfig, rows: int = SHAPE.rows) -> Mesh:
    """A device for each core of a CPU, as far as these divide the rows of an update, for a small model; one device for a larger one, whose
    gradients take longer to add up, and for any on what else there is. As was measured: docs/benchmarks.md."""
    apart = jax.default_backend() == "cpu" and weights(config) <= SMALL
    return make_mesh(MeshConfig(data=math.gcd(len(jax.devices()), rows) if apart else 1))


Values = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Workload:
    """`phases` run in order and pass one dict of values along; `unit` says what `amount` of one whole step counts.

    `flops` are those that one step needs: products of matrices on real tokens, attention to what a token sees, nothing made twice. `bytes`
    are what decoding has to read at least: all weights at every turn, and of the cache what has been written. `before` is what a step does
    before it decodes, by itself: it is timed too, and counts to no step.
    """

    unit: str
    amount: int
    values: Values
    phases: dict[str, Callable[[Values], Values]]
    flops: float
    bytes: float = 0.0
    before: Callable[[Values], Any] | None = None


def weights(config: ModelConfig) -> int:
    """Numbers in all matrices that a token goes through, the output layer with them."""
    c = config
    attention = 2 * c.width * c.head_size * (c.heads + c.kv_heads)
    return c.layers * (attention + 3 * c.width * c.mlp) + (c.width * c.vocab if c.lm_head else 0)


def forward_flops(config: ModelConfig, sizes: Any, asked: Any = None) -> float:
    """Operations of reading texts of these sizes once: two for each weight and token, and attention to what stands before.

    The output layer is for `asked` of the tokens of each text; None: for all.
    """
    c, sizes = config, np.asarray(sizes, np.float64)
    output = c.width * c.vocab if c.lm_head else 0
    products = (weights(c) - output) * sizes.sum() + output * (sizes if asked is None else np.asarray(asked)).sum()
    return float(2 * products + 2 * c.layers * c.heads * c.head_size * np.square(sizes).sum())


def decode_bytes(config: ModelConfig, rows: int, before: int, new_tokens: int, samples: int = 1) -> float:
    """Bytes read by as many turns as there are new tokens, in the types that the model computes in and keeps keys and values in; of what
    stands before, once for so many samples."""
    c = config
    column = 2 * c.layers * c.kv_heads * c.head_size * jnp.dtype(c.kept_dtype).itemsize
    columns = new_tokens * before * rows / samples + rows * sum(range(new_tokens))
    return float(new_tokens * weights(c) * jnp.dtype(c.dtype).itemsize + column * columns)


def token_batch(config: ModelConfig, rows: int, length: int, seed: int = 0) -> TokenBatch:
    """Random tokens without padding, all but the first to be learned."""
    tokens = np.random.default_rng(seed).integers(0, config.vocab, (rows, length), dtype=np.int32)
    columns = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
    arrays: Any = (tokens, columns, np.ones_like(columns), columns > 0)
    return TokenBatch(*(jnp.asarray(array) for array in arrays))


def lengths(count: int, mean: float, cap: int, seed: int = 0, spread: float = 0.8) -> np.ndarray:
    """Log-normal lengths from 1 to `cap`, of this mean before they are capped; `spread` is the deviation of their logarithm."""
    drawn = np.random.default_rng(seed).lognormal(np.log(mean) - spread**2 / 2, spread, count)
    return np.clip(np.rint(drawn), 1, cap).astype(np.int32)


def random_texts(config: ModelConfig, sizes: np.ndarray, seed: int = 0) -> list[Encoded]:
    """Texts of these sizes, all but the first token to be learned."""
    draw = np.random.default_rng(seed)
    texts = [draw.integers(0, config.vocab, size + 1).tolist() for size in np.maximum(sizes - 1, 1)]
    return [Encoded((text[0],), tuple(text[1:])) for text in texts]


def prompts(config: ModelConfig, mesh: Mesh, count: int, samples: int = 1, length: int = SHAPE.prompt_length) -> Values:
    """Prompts without padding, and the keys of `samples` responses to each, on the mesh."""
    batch = token_batch(config, count, length)
    places = np.repeat(np.arange(count), samples)
    asked = {
        "prompts": dataclasses.replace(batch, loss_mask=jnp.zeros_like(batch.loss_mask)),
        "keys": row_keys(jax.random.key(3), 0, places, np.tile(np.arange(samples), count)),
    }
    return place_batch(asked, mesh)
