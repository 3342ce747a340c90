"""How much a program of several seeds saves over as many programs of one: training in the exact world.

python -m benchmarks.seeds

One JSON line. Separate runs are what a loop over processes would do: each compiles its program and runs it.
"""

from __future__ import annotations

import dataclasses
import json
import time
from functools import partial

import jax
import jax.numpy as jnp

from experiments.algorithms import algorithm
from experiments.exact.setting import open_setting, seed_keys
from experiments.exact.training import train_on_policy
from experiments.registry import find

SEEDS, STEPS = 8, 100


def main() -> None:
    study = dataclasses.replace(find("exact/on_policy").experiment("cpu"), steps=STEPS)
    setting = open_setting(study)
    config = algorithm("rloo", new_tokens=study.world.length, kl_coef=study.beta)
    train = partial(train_on_policy, setting, study, config)
    keys = seed_keys(study, SEEDS)
    references = jax.jit(jax.vmap(setting.reference))(keys)
    arguments = (keys, references, jnp.full(SEEDS, study.beta), jnp.full(SEEDS, study.lr))
    first = jax.tree.map(lambda x: x[0], arguments)

    one, one_compile, one_run = timed(train, first)
    _, compile_seconds, run_seconds = timed(jax.vmap(train), arguments)
    separate = [seconds_of(one, jax.tree.map(lambda x, n=n: x[n], arguments)) for n in range(1, SEEDS)]
    runs = one_run + sum(separate)
    print(
        json.dumps(
            {
                "seeds": SEEDS,
                "steps": STEPS,
                "together_run_s": round(run_seconds, 2),
                "separate_run_s": round(runs, 2),
                "together_with_compile_s": round(run_seconds + compile_seconds, 2),
                "separate_with_compile_s": round(runs + SEEDS * one_compile, 2),
                "run_share": round(run_seconds / runs, 3),
                "with_compile_share": round((run_seconds + compile_seconds) / (runs + SEEDS * one_compile), 3),
            }
        )
    )


def timed(function, arguments):
    """(compiled function, seconds to compile it, seconds to run it)."""
    started = time.monotonic()
    compiled = jax.jit(function).lower(*arguments).compile()
    seconds = time.monotonic() - started
    return compiled, seconds, seconds_of(compiled, arguments)


def seconds_of(compiled, arguments) -> float:
    started = time.monotonic()
    jax.block_until_ready(compiled(*arguments))
    return time.monotonic() - started


if __name__ == "__main__":
    main()
