"""`python -m benchmarks.output_layer`: what log-probs in chunks do for the memory of an SFT update, from shapes alone; a JSON line each.

The update of size S on 8 rows of 256 tokens, with a vocabulary of 151,936 (that of Qwen 3), is compiled for the CPU with its logits kept
for the backward pass, and with chunks of columns whose logits are made again there. Nothing is run.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from typing import Any

VOCAB, ROWS, LENGTH = 151_936, 8, 256
CHUNKS = (None, 128, 32)


def compiled(chunk: int | None) -> dict[str, Any]:
    """GiB of all logits, and of the temporaries of an update."""
    from benchmarks.workloads import OPTIM, SIZES
    from rlhf_jax.compiled import compile_step
    from rlhf_jax.config import ONE_DEVICE
    from rlhf_jax.loops.sft import make_sft_step
    from rlhf_jax.mesh import make_mesh
    from rlhf_jax.models import build_model
    from rlhf_jax.plan.programs import state_shapes, token_shapes
    from rlhf_jax.sharding import batch_shapes

    mesh = make_mesh(ONE_DEVICE)
    model = build_model(dataclasses.replace(SIZES["S"], vocab=VOCAB, logit_chunk=chunk))
    _, update = make_sft_step(model, OPTIM)
    batch = batch_shapes(token_shapes(ROWS, LENGTH), mesh)
    memory = compile_step(update, mesh).lower(state_shapes(model, OPTIM, mesh), batch).compile().memory_analysis()
    assert memory is not None, "the CPU's compiler tells it"
    return {
        "logit_chunk": chunk,
        "logits_gib": round(4 * ROWS * LENGTH * VOCAB / 2**30, 2),
        "temporaries_gib": round(memory.temp_size_in_bytes / 2**30, 2),
    }


def main() -> int:
    """Prints a line for each size of chunks."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    for chunk in CHUNKS:
        print(json.dumps(compiled(chunk)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
