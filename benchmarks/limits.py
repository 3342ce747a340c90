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

SIZES, LARGE = (1024, 2048, 4096), (8192, 16_384)  # of matrices; the larger for accelerators
ROUNDS = 7


def matmul_rate(dtype: str) -> float:
    """Operations per second of the best of some square products: two for each multiplication and addition."""
    sizes = SIZES if _on_cpu() else (*SIZES, *LARGE)
    return max(2 * size**3 / _seconds(jnp.matmul, *_squares(size, dtype)) for size in sizes)


def read_rate() -> float:
    """Bytes per second at which a sum goes through an array that no cache holds."""
    array = jnp.ones(((512 if _on_cpu() else 4096) * 2**20 // 4,), jnp.float32)
    return array.nbytes / _seconds(jnp.sum, array)


def limits() -> dict[str, float]:
    """What `main` prints: operations per second by type, and bytes per second."""
    dtypes = ("float32",) if _on_cpu() else ("float32", "bfloat16")
    return {f"{dtype}_flops": matmul_rate(dtype) for dtype in dtypes} | {"read_bytes": read_rate()}


def _squares(size: int, dtype: str) -> list[jax.Array]:
    return [jax.random.normal(key, (size, size), dtype) for key in jax.random.split(jax.random.key(0))]


def _seconds(function: Callable[..., jax.Array], *args: jax.Array) -> float:
    """Of a call, in the fastest of several rounds: a limit is what the machine does when nobody disturbs it. An accelerator is given
    several calls at once, so that none waits for the host."""
    run, calls = jax.jit(function), 1 if _on_cpu() else 10
    jax.block_until_ready(run(*args))
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        jax.block_until_ready([run(*args) for _ in range(calls)])
        times.append(time.perf_counter() - start)
    return float(np.min(times)) / calls


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


if __name__ == "__main__":
    print(json.dumps({name: float(f"{value:.4g}") for name, value in limits().items()}))
