"""`python -m benchmarks.tpu_attention`: what splash attention does for the memory of an SFT update on a TPU, from shapes alone.

The update of Llama 3.2 1B, one row to a chip, weights sharded over all of a v5e:4x4, activations in bfloat16, layers recomputed, is
compiled by the TPU's own compiler (package libtpu, `pip install -e '.[tpu]'`), with the kernel and without; no TPU is needed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from typing import Any

TOPOLOGY, CHIPS, PRESET = "v5e:4x4", 16, "llama-3.2-1b"
LENGTHS = (2048, 8192)


def compiled(length: int, kernel: bool) -> dict[str, Any]:
    """Seconds of compilation and memory per chip of an update on rows of this length."""
    from jax.experimental import topologies

    from rlhf_jax.compiled import compile_step
    from rlhf_jax.config import MeshConfig, Optim
    from rlhf_jax.loops.sft import make_sft_step
    from rlhf_jax.mesh import make_mesh
    from rlhf_jax.models import attention, build_model
    from rlhf_jax.models.presets import preset
    from rlhf_jax.plan.programs import state_shapes, token_shapes
    from rlhf_jax.sharding import batch_shapes

    devices = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY).devices
    mesh = make_mesh(MeshConfig(fsdp=CHIPS), devices)
    model = build_model(dataclasses.replace(preset(PRESET), dtype="bfloat16", remat="layers"))
    optim = Optim(lr=1e-4, rows=CHIPS, steps=1)
    _, update = make_sft_step(model, optim)
    usual = attention.platform
    try:
        if not kernel:
            attention.platform = lambda: "a platform without one"
        batch = batch_shapes(token_shapes(CHIPS, length), mesh)
        lowered = compile_step(update, mesh).lower(state_shapes(model, optim, mesh), batch)
    finally:
        attention.platform = usual
    started = time.perf_counter()
    program = lowered.compile()
    seconds, memory, text = time.perf_counter() - started, program.memory_analysis(), program.as_text()
    assert memory is not None and text is not None, "the TPU's compiler gives both"
    return {
        "length": length,
        "splash": "splash" in text,
        "compile_seconds": round(seconds, 1),
        "temporaries_gib": round(memory.temp_size_in_bytes / 2**30, 2),
        "arguments_gib": round(memory.argument_size_in_bytes / 2**30, 2),
    }


def main() -> int:
    """Prints one JSON line for each length, without the kernel and with it."""
    os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    for length in LENGTHS:
        for kernel in (False, True):
            print(json.dumps(compiled(length, kernel)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
