"""llama2.c `.bin` checkpoints, version 0: seven int32 of header, then float32 weights in one order.

Source: the layout of karpathy/llama2.c (`export.py`, `run.c`), as stated in its documentation.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rlhf_jax.config import ModelConfig
from rlhf_jax.types import Params


def load_llama2c(path: Path) -> tuple[ModelConfig, Params]:
    """Config and float32 parameters of a llama2.c version-0 file.

    Rotary pairs are adjacent there and half a head apart here: query and key rows are permuted once, on reading.
    Raises: ValueError where header and file size disagree, or the header makes no sense.
    """
    raw = np.fromfile(path, dtype="<i4", count=7)
    if raw.size < 7 or raw[:5].min() <= 0 or raw[5] == 0 or raw[6] <= 0:
        raise ValueError(f"{path}: not a llama2.c checkpoint: header {raw.tolist()}, expected seven counts above 0")
    width, mlp, layers, heads, kv_heads, vocab, length = (int(value) for value in raw)
    tied, vocab = vocab > 0, abs(vocab)
    if width % heads or heads % kv_heads:
        raise ValueError(
            f"{path}: header has width {width}, {heads} heads, {kv_heads} key-value heads: they do not divide"
        )
    size = width // heads
    shapes = {
        "embedding": (vocab, width),
        "attention_norm": (layers, width),
        "q": (layers, heads, size, width),
        "k": (layers, kv_heads, size, width),
        "v": (layers, kv_heads, size, width),
        "o": (layers, width, heads, size),
        "mlp_norm": (layers, width),
        "gate": (layers, mlp, width),
        "down": (layers, width, mlp),
        "up": (layers, mlp, width),
        "final_norm": (width,),
        "rotary": (2, length, size // 2),
    }
    if not tied:
        shapes["unembed"] = (vocab, width)
    counts = {name: int(np.prod(shape)) for name, shape in shapes.items()}
    expected = 28 + 4 * sum(counts.values())
    if path.stat().st_size != expected:
        raise ValueError(
            f"{path}: {path.stat().st_size} bytes, but its header (width {width}, {layers} layers, vocabulary {vocab}) "
            f"asks for {expected}; the file is cut short or of another version"
        )
    flat = np.fromfile(path, dtype="<f4", offset=28)
    w, start = {}, 0
    for name, shape in shapes.items():
        w[name] = flat[start : start + counts[name]].reshape(shape)
        start += counts[name]

    config = ModelConfig(
        vocab=vocab,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        mlp=mlp,
        max_length=length,
        tied=tied,
    )
    params = {
        "tokens": {"embedding": w["embedding"]},
        "layers": {
            "attention_norm": {"scale": w["attention_norm"]},
            "attention": {
                "q": {"kernel": _halves(w["q"]).transpose(0, 3, 1, 2)},
                "k": {"kernel": _halves(w["k"]).transpose(0, 3, 1, 2)},
                "v": {"kernel": w["v"].transpose(0, 3, 1, 2)},
                "o": {"kernel": w["o"].transpose(0, 2, 3, 1)},
            },
            "mlp_norm": {"scale": w["mlp_norm"]},
            "mlp": {name: {"kernel": w[name].swapaxes(1, 2)} for name in ("gate", "up", "down")},
        },
        "final_norm": {"scale": w["final_norm"]},
    }
    if not tied:
        params["unembed"] = {"kernel": w["unembed"].T}
    return config, params


def _halves(x: np.ndarray) -> np.ndarray:
    """[N, heads, K, D] with adjacent rotary pairs -> pairs (i, i + K/2)."""
    return np.concatenate([x[:, :, 0::2], x[:, :, 1::2]], axis=2)
