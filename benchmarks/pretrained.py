"""`python -m benchmarks.pretrained`: writes a checkpoint of 1.2 billion random parameters, and reads it onto eight devices.

Sizes are those of Llama 3.2 1B, weights in bfloat16 in files of at most 500 MB. Prints seconds, and the most memory of its own (not that of
mapped files) that the reading process had beyond the model itself. Both are done in processes of their own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

DEVICES = 8


def shape():
    """Llama 3.2 1B."""
    from rlhf_jax.config import ModelConfig

    return ModelConfig(
        vocab=128_256, width=2048, layers=16, heads=32, kv_heads=8, mlp=8192, max_length=131_072, rope_base=500_000.0
    )


def write(folder: Path) -> dict:
    """A checkpoint of random numbers."""
    import jax
    import ml_dtypes
    import numpy as np

    from rlhf_jax.models import build_model
    from rlhf_jax.models.convert.save import save_pretrained

    config, noise = shape(), np.random.default_rng(0)
    shapes = jax.eval_shape(build_model(config).init, jax.random.key(0))

    def random(leaf) -> np.ndarray:
        # Bits of small numbers: drawing a billion of normal ones would take longer than all else.
        bits = noise.integers(0, 2**15, leaf.shape, np.uint16) & 0x3C7F
        return bits.view(ml_dtypes.bfloat16)

    params = jax.tree.map(random, shapes)
    start = time.perf_counter()
    save_pretrained(folder, config, params, dtype="bfloat16", limit=500 * 10**6)
    return {"write_seconds": round(time.perf_counter() - start, 1), "files": len(list(folder.glob("*.safetensors")))}


def read(folder: Path) -> dict:
    """The model on eight devices, fully sharded, and what it took."""
    import jax

    from rlhf_jax.config import MeshConfig
    from rlhf_jax.mesh import make_mesh, split_cpu
    from rlhf_jax.models.convert.load import load_pretrained

    split_cpu(DEVICES)
    mesh = make_mesh(MeshConfig(fsdp=DEVICES))
    before, highest, done = own_memory(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            highest[0] = max(highest[0], own_memory())

    thread = threading.Thread(target=watch)
    thread.start()
    start = time.perf_counter()
    found = load_pretrained(folder, mesh, dtype="bfloat16")
    seconds = time.perf_counter() - start
    done.set()
    thread.join()
    leaves = jax.tree.leaves(found.params)
    model = sum(leaf.nbytes for leaf in leaves)
    largest = 2 * found.config.vocab * found.config.width  # bytes of the embedding
    return {
        "parameters": sum(leaf.size for leaf in leaves),
        "read_seconds": round(seconds, 1),
        "model_mib": round(model / 2**20),
        "beyond_the_model_mib": round((highest[0] - before - model) / 2**20),
        "largest_tensor_mib": round(largest / 2**20),
        "devices": jax.device_count(),
    }


def own_memory() -> int:
    """Bytes of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def main(arguments: list[str]) -> int:
    if arguments:
        print(json.dumps({"write": write, "read": read}[arguments[0]](Path(arguments[1]))))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        found: dict = {}
        for part in ("write", "read"):
            command = [sys.executable, "-m", "benchmarks.pretrained", part, f"{scratch}/model"]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found |= json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
