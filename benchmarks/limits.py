"""What this machine can do at most: `python -m benchmarks.limits` prints one JSON line.

Products of matrices in float32 (and bfloat16 where there is an accelerator), and how fast memory is read.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

SIZES = (1024, 2048, 4096)
ROUNDS = 7


def matmul_rate(dtype: str) -> float:
    """Operations per second of the best of some square products: two for each multiplication and addition."""
    return max(2 * size**3 / _seconds(jnp.matmul, *_squares(size, dtype)) for size in SIZES)


def read_rate(megabytes: int = 512) -> float:
    """Bytes per second at which a sum goes through an array that no cache holds."""
    array = jnp.ones((megabytes * 2**20 // 4,), jnp.float32)
    return array.nbytes / _seconds(jnp.sum, array)


def limits() -> dict[str, float]:
    """What `main` prints: operations per second by type, and bytes per second."""
    dtypes = ("float32",) if jax.default_backend() == "cpu" else ("float32", "bfloat16")
    return {f"{dtype}_flops": matmul_rate(dtype) for dtype in dtypes} | {"read_bytes": read_rate()}


def _squares(size: int, dtype: str) -> list[jax.Array]:
    return [jax.random.normal(key, (size, size), dtype) for key in jax.random.split(jax.random.key(0))]


def _seconds(function: Callable[..., jax.Array], *args: jax.Array) -> float:
    """Of the fastest of several calls: a limit is what the machine does when nobody disturbs it."""
    run = jax.jit(function)
    jax.block_until_ready(run(*args))
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        jax.block_until_ready(run(*args))
        times.append(time.perf_counter() - start)
    return float(np.min(times))


if __name__ == "__main__":
    print(json.dumps({name: float(f"{value:.4g}") for name, value in limits().items()}))
