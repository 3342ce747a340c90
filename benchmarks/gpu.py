"""The workloads at the size that an accelerator is bought for: a Llama of 1.1 billion parameters in bfloat16, on one device.

python -m benchmarks.gpu

Prints what the device can do at most, and a JSON line for each workload: SFT on rows of 2,048 tokens; 512 tokens to each of 64 and of 256
prompts of 512; an iteration of PPO on 4 responses to each of 64 prompts, with a value network and a reward model of the same size. With
`--small` it is a model that any CPU runs, to see that all of it works.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable
from functools import partial

from benchmarks.run import measure, one_by_one
from benchmarks.workloads import SIZES, Shape, Workload
from benchmarks.workloads.learning import ppo
from benchmarks.workloads.sampling import generation
from benchmarks.workloads.training import sft
from rlhf_jax.config import ModelConfig

# The shape of TinyLlama 1.1B (Zhang et al. 2024, arXiv:2401.02385).
LLAMA = ModelConfig(
    vocab=32_000,
    width=2048,
    layers=22,
    heads=32,
    kv_heads=4,
    mlp=5632,
    max_length=2048,
    tied=False,
    dtype="bfloat16",
    logit_chunk=256,
)
SMALL = dataclasses.replace(
    SIZES["S"], vocab=256, width=64, layers=2, mlp=128, unroll=False, logit_chunk=128, dtype="bfloat16"
)
LARGE_SHAPES = {
    "sft": Shape(rows=8, length=2048),
    "decode_64": Shape(prompts=64, prompt_length=512, new_tokens=512),
    "decode_256": Shape(prompts=256, prompt_length=512, new_tokens=512),
    "ppo": Shape(rows=64, microbatches=2, prompts=64, samples=4, prompt_length=512, new_tokens=512),
}
SMALL_SHAPES = {
    "sft": Shape(rows=2, length=64),
    "decode_64": Shape(prompts=4, prompt_length=16, new_tokens=16),
    "decode_256": Shape(prompts=8, prompt_length=16, new_tokens=16),
    "ppo": Shape(rows=8, microbatches=2, prompts=4, samples=4, prompt_length=16, new_tokens=16),
}
# SFT has the room to keep everything for its backward pass; decoding has each layer's weights and cache in arrays of their own.
HOW = {
    "sft": {},
    "decode_64": {"unroll": True},
    "decode_256": {"unroll": True},
    "ppo": {"remat": "layers", "logit_chunk": 64},
}
KINDS: dict[str, Callable[[ModelConfig, Shape], Workload]] = {
    "sft": sft,
    "decode_64": generation,
    "decode_256": generation,
    "ppo": ppo,
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--workload", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--steps", type=int, default=3, help="counted steps after the first, which compiles")
    parser.add_argument("--small", action="store_true", help="a small model and little of everything")
    # In this process, which was started then: for the one workload given.
    parser.add_argument("--began", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.steps < 1:
        parser.error(f"--steps {options.steps}: at least 1")
    if options.began is not None:
        (name,) = options.workload
        config, shapes = (SMALL, SMALL_SHAPES) if options.small else (LLAMA, LARGE_SHAPES)
        make = partial(KINDS[name], dataclasses.replace(config, **HOW[name]), shapes[name])
        named = {"workload": name, "size": "small" if options.small else "1.1B"}
        print(json.dumps(measure(make, named, options.steps, options.began)))
        return 0
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")  # of the device's memory, for each process
    how = ["--steps", str(options.steps), *(["--small"] if options.small else [])]
    return one_by_one("benchmarks.gpu", (["--workload", name, *how] for name in options.workload))


if __name__ == "__main__":
    sys.exit(main())
