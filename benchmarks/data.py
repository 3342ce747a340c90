"""From files to batches: how fast, where the time goes, and how much memory.

python -m benchmarks.data [--data-root DIR] [--tokenizer PATH] [--source SPEC] [--length 256] [--profile]

Reads a source (Alpaca by default), writes its records by the template `alpaca`, tokenises and packs them, then goes through one epoch of
batches of 8 rows. Tokens are those of prompts and replies, padding not counted. Peaks are of the resident memory of this process.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from rlhf_jax.data.batching.batches import packed_batches
from rlhf_jax.data.batching.packing import Packing
from rlhf_jax.data.batching.table import TokenTable
from rlhf_jax.data.schema import Demonstration
from rlhf_jax.data.sources import find_data_root, load_source
from rlhf_jax.data.tokens.encode import encode_demonstration
from rlhf_jax.data.tokens.templates import get_template
from rlhf_jax.data.tokens.tokenizer import Tokenizer, load_tokenizer

ALPACA = "alpaca:instructions/alpaca-en/*.json.gz"
TOKENIZERS = ("tokenizers/mistral-v1/tokenizer.model", "tokenizers/gpt2")
ROWS = 8


def peak() -> float:
    """MiB of resident memory at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def open_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer as the library reads it; the published files of GPT-2 under the names that transformers looks for."""
    if not (path / "encoder.json").is_file():
        return load_tokenizer(path)
    with tempfile.TemporaryDirectory() as folder:
        for theirs, ours in (("encoder.json", "vocab.json"), ("vocab.bpe", "merges.txt")):
            shutil.copyfile(path / theirs, Path(folder) / ours)
        special = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
        settings = {"tokenizer_class": "GPT2Tokenizer", **special}
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(settings))
        return load_tokenizer(Path(folder))


def measure(root: Path, source: str, tokenizer: Tokenizer, length: int, how: Packing) -> dict[str, Any]:
    """Seconds of each part, tokens per second of all of it, how full the rows are, and memory."""
    clock = time.perf_counter
    start, before = clock(), peak()
    records = [record for record in load_source(source, root).records if isinstance(record, Demonstration)]
    read = clock()
    template = get_template("alpaca")
    table = TokenTable(encode_demonstration(record, tokenizer, template, length // 2) for record in records)
    encoded = clock()
    batches = packed_batches(table, ROWS, length, tokenizer.pad, seed=0, longest=length, how=how)
    packed, tokens = clock(), int(table.sizes.sum())
    first, steps, seen, cells = peak(), 0, 0, 0
    while seen < tokens * 0.98:
        batch = batches[steps]
        steps, seen, cells = steps + 1, seen + int((batch.segments != 0).sum()), cells + batch.segments.size
    done = clock()
    return {
        "examples": len(table),
        "tokens": tokens,
        "read s": round(read - start, 2),
        "template and tokenise s": round(encoded - read, 2),
        "pack s": round(packed - encoded, 2),
        "batches s": round(done - packed, 2),
        "tokens/s": round(seen / (done - start)),
        "rows full": round(seen / cells, 4),
        "peak MiB before, at the first batch, behind the epoch": [round(before), round(first), round(peak())],
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__)
    parser.add_argument(
        "--data-root", type=Path, help="the folder of data sets; default: RLHF_JAX_DATA, ../shared/data"
    )
    parser.add_argument("--tokenizer", help=f"below the data root; default: {' and '.join(TOKENIZERS)}, in turn")
    parser.add_argument("--source", default=ALPACA)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    options = parser.parse_args(argv)
    root = find_data_root(options.data_root)
    for name in (options.tokenizer,) if options.tokenizer else TOKENIZERS:
        tokenizer = open_tokenizer(root / name)
        for how in ("first_fit", "best_fit"):
            profile = cProfile.Profile()
            if options.profile:
                profile.enable()
            figures = measure(root, options.source, tokenizer, options.length, how)
            profile.disable()
            print(json.dumps({"tokenizer": name, "packing": how, **figures}))
            if options.profile:
                pstats.Stats(profile).sort_stats("tottime").print_stats(12)


if __name__ == "__main__":
    main()
