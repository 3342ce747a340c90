"""How much a program of several seeds saves over as many programs of one: training in the exact world.

python -m benchmarks.seeds

One JSON line. Separate runs are what a loop over processes would do: each compiles its program and runs it. Together, the devices share
the seeds; of a CPU there is one per core.
"""

from __future__ import annotations

import dataclasses
import json
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments.algorithms import algorithm
from experiments.exact.setting import open_setting, over_seeds, seed_keys
from experiments.exact.training import train_on_policy
from experiments.registry import find
from rlhf_jax.report.environment import cores

SEEDS, STEPS, ROUNDS = 8, 100, 3


def main() -> None:
    jax.config.update("jax_num_cpu_devices", cores())  # as `experiments.run` does for studies
    study = dataclasses.replace(find("exact/on_policy").experiment("cpu"), steps=STEPS)
    setting = open_setting(study)
    config = algorithm("rloo", new_tokens=study.world.length, kl_coef=study.beta)
    train = partial(train_on_policy, setting, study, config)
    keys = seed_keys(study, SEEDS)
    references = jax.jit(jax.vmap(setting.reference))(keys)
    arguments = (keys, references, jnp.full(SEEDS, study.beta), jnp.full(SEEDS, study.lr))
    first = jax.tree.map(lambda x: x[0], arguments)

    one, one_compile = compiled(train, first)
    together, compile_seconds = compiled(over_seeds(train), arguments)
    rounds = [(seconds_of(together, arguments), SEEDS * seconds_of(one, first)) for _ in range(ROUNDS + 1)][1:]
    run_seconds, runs = np.median(rounds, axis=0)  # in turns, as the speed of a shared machine drifts
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


def compiled(function, arguments):
    """(compiled function, seconds to compile it)."""
    started = time.monotonic()
    program = jax.jit(function).lower(*arguments).compile()
    return program, time.monotonic() - started


def seconds_of(compiled, arguments) -> float:
    started = time.monotonic()
    jax.block_until_ready(compiled(*arguments))
    return time.monotonic() - started


if __name__ == "__main__":
    main()
