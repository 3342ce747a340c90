"""One product of a layer by itself: forward, and its gradients for what goes in and for the weights.

python -m benchmarks.dense

One JSON line per matrix and size: GFLOP/s on 8 texts of 256 tokens, as `Project` has it, with all leading dimensions as rows, and as
`x @ w` of texts is written. What of it XLA runs fast shows in the gradient of the weights first.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from benchmarks.workloads.common import SHAPE, SIZES
from rlhf_jax.config import ModelConfig

ROUNDS = 15


def matrices(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of each matrix that a token goes through."""
    c = config
    return {
        "q": (c.width, c.heads * c.head_size),
        "k": (c.width, c.kv_heads * c.head_size),
        "up": (c.width, c.mlp),
        "down": (c.mlp, c.width),
        "output": (c.width, c.vocab),
    }


def in_rows(x: jax.Array, w: jax.Array) -> jax.Array:
    return (x.reshape(-1, x.shape[-1]) @ w).reshape(*x.shape[:-1], w.shape[1])


def as_written(x: jax.Array, w: jax.Array) -> jax.Array:
    return x @ w


def parts(product: Callable[..., jax.Array]) -> dict[str, Callable[..., jax.Array]]:
    """The product and its two gradients, as functions of inputs, weights and the gradient of the outputs."""
    return {
        "forward": lambda x, w, dy: product(x, w),
        "inputs": lambda x, w, dy: jax.vjp(lambda x: product(x, w), x)[1](dy)[0],
        "weights": lambda x, w, dy: jax.vjp(lambda w: product(x, w), w)[1](dy)[0],
    }


def measure(inputs: int, outputs: int) -> dict[str, Any]:
    """GFLOP/s of each part in each form, by the median of calls that take turns."""
    draw = np.random.default_rng(0)
    shapes = (SHAPE.rows, SHAPE.length, inputs), (inputs, outputs), (SHAPE.rows, SHAPE.length, outputs)
    given = [jax.numpy.asarray(draw.normal(size=shape), jax.numpy.float32) for shape in shapes]
    forms = {"in_rows": in_rows, "as_written": as_written}
    programs = {(form, part): jax.jit(f) for form in forms for part, f in parts(forms[form]).items()}
    seconds: dict[tuple[str, str], list[float]] = {name: [] for name in programs}
    for _ in range(ROUNDS + 1):  # the first of which compiles
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(*given))
            seconds[name].append(time.perf_counter() - start)
    flops = 2 * SHAPE.rows * SHAPE.length * inputs * outputs
    rates = {name: round(flops / float(np.median(times[1:])) / 1e9) for name, times in seconds.items()}
    return {form: {part: rates[form, part] for part in parts(forms[form])} for form in forms}


def main() -> None:
    for size, config in SIZES.items():
        for name, (inputs, outputs) in matrices(config).items():
            told = {"size": size, "matrix": name, "inputs": inputs, "outputs": outputs}
            print(json.dumps(told | measure(inputs, outputs)), flush=True)


if __name__ == "__main__":
    main()
