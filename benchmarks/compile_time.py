"""`python -m benchmarks.compile_time`: what depth costs in compilation, one JSON line.

The SFT update of size S (8 rows of 256 tokens) with 4 layers and with 48 is compiled for the CPU from shapes alone, in turns, each in a
process of its own without the persistent cache. Layers are a loop, so that the program is as long for either.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from typing import Any

DEPTHS = (4, 48)


def compiled(layers: int) -> dict[str, Any]:
    """Seconds to trace and lower an update of so many layers, and to compile it; instructions of the program."""
    import jax

    from benchmarks.workloads import OPTIM, SIZES
    from rlhf_jax.compiled import compile_step
    from rlhf_jax.config import ONE_DEVICE
    from rlhf_jax.loops.sft import make_sft_step
    from rlhf_jax.mesh import make_mesh
    from rlhf_jax.models import build_model
    from rlhf_jax.plan.hlo import Program
    from rlhf_jax.plan.programs import state_shapes, token_shapes
    from rlhf_jax.sharding import batch_shapes

    settings: Any = jax.config
    settings.update("jax_enable_compilation_cache", False)
    mesh = make_mesh(ONE_DEVICE)
    model = build_model(dataclasses.replace(SIZES["S"], layers=layers, unroll=False))
    _, update = make_sft_step(model, OPTIM)
    state, batch = state_shapes(model, OPTIM, mesh), batch_shapes(token_shapes(OPTIM.rows, 256), mesh)
    started = time.perf_counter()
    lowered = compile_step(update, mesh).lower(state, batch)
    traced = time.perf_counter()
    text = lowered.compile().as_text()
    done = time.perf_counter()
    assert text is not None, "the CPU's compiler gives it"
    return {
        "layers": layers,
        "trace_seconds": traced - started,
        "compile_seconds": done - traced,
        "instructions": Program(text).instructions,
    }


def main(argv: list[str] | None = None) -> int:
    """Prints the line: for each depth the median of the runs, and how much longer the deeper one takes."""
    from statistics import median

    parser = argparse.ArgumentParser(prog="python -m benchmarks.compile_time", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="of each depth; default 5")
    parser.add_argument("--here", type=int, metavar="LAYERS", help="in this process: one run of so many layers")
    options = parser.parse_args(argv)
    if options.runs < 1:
        parser.error(f"--runs {options.runs}: at least 1")
    if options.here is not None:
        print(json.dumps(compiled(options.here)), flush=True)
        return 0
    found: dict[int, list[dict[str, Any]]] = {layers: [] for layers in DEPTHS}
    for _ in range(options.runs):
        for layers in DEPTHS:
            command = [sys.executable, "-m", "benchmarks.compile_time", "--here", str(layers)]
            found[layers].append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    few, many = (
        {
            "layers": layers,
            "instructions": runs[0]["instructions"],
            **{name: round(median(run[name] for run in runs), 2) for name in ("trace_seconds", "compile_seconds")},
        }
        for layers, runs in found.items()
    )
    ratio = {name: round(many[name] / few[name], 3) for name in ("instructions", "trace_seconds", "compile_seconds")}
    print(json.dumps({"runs": options.runs, "depths": [few, many], "ratio": ratio}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
