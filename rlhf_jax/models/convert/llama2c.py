"""llama2.c `.bin` checkpoints, version 0, read and written: seven int32 of header, then float32 weights in one order.

Source: the layout of karpathy/llama2.c (`export.py`, `run.c`), as stated in its documentation.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np

from rlhf_jax.config import ModelConfig
from rlhf_jax.files import replacing
from rlhf_jax.models.build import build_model
from rlhf_jax.types import Params

WRITTEN = ("vocab", "width", "layers", "heads", "kv_heads", "mlp", "max_length", "tied")
# How a model is computed, not which function it is: a file says nothing of these.
FREE = ("dtype", "cache_dtype", "remat", "unroll", "logit_chunk", "gather_once")


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
    if width % (2 * heads) or heads % kv_heads:  # rotary positions turn pairs
        raise ValueError(
            f"{path}: header has width {width}, {heads} heads, {kv_heads} key-value heads: they do not divide"
        )
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
    shapes = _shapes(config)
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


def save_llama2c(path: Path, config: ModelConfig, params: Params) -> None:
    """Writes what `load_llama2c` reads, bit for bit, whole or not at all.

    The tables of cosines and sines that version 0 has room for are filled in; no reader uses them.
    Raises: ValueError for a model that the format cannot express, naming the field, or parameters of another shape than the config's.
    """
    check_llama2c(config)
    _check_params(config, params)
    layers, c = params["layers"], config
    attention, mlp = layers["attention"], layers["mlp"]
    arrays = {
        "embedding": params["tokens"]["embedding"],
        "attention_norm": layers["attention_norm"]["scale"],
        "q": _adjacent(np.asarray(attention["q"]["kernel"]).transpose(0, 2, 3, 1)),
        "k": _adjacent(np.asarray(attention["k"]["kernel"]).transpose(0, 2, 3, 1)),
        "v": np.asarray(attention["v"]["kernel"]).transpose(0, 2, 3, 1),
        "o": np.asarray(attention["o"]["kernel"]).transpose(0, 3, 1, 2),
        "mlp_norm": layers["mlp_norm"]["scale"],
        **{name: np.asarray(mlp[name]["kernel"]).swapaxes(1, 2) for name in ("gate", "down", "up")},
        "final_norm": params["final_norm"]["scale"],
        "rotary": _rotary(config),
    }
    if not c.tied:
        arrays["unembed"] = np.asarray(params["unembed"]["kernel"]).T
    header = (c.width, c.mlp, c.layers, c.heads, c.kv_heads, c.vocab if c.tied else -c.vocab, c.max_length)
    with replacing(path) as file:
        file.write(np.array(header, "<i4").tobytes())
        for name in _shapes(config):
            file.write(np.ascontiguousarray(arrays[name], dtype="<f4").data)


def check_llama2c(config: ModelConfig) -> None:
    """Raises: ValueError naming every field in which a model is not what a reader of the format takes it for."""
    wrong = []
    for field in dataclasses.fields(config):
        value, even = getattr(config, field.name), config.head_size * config.heads == config.width
        if field.name in (*WRITTEN, *FREE) or (field.name == "head_dim" and even) or value == field.default:
            continue
        only = "width / heads" if field.name == "head_dim" else repr(field.default)
        wrong.append(f"{field.name}={value!r} (only {only})")
    if wrong:
        raise ValueError(f"the llama2.c format cannot express a model with {', '.join(wrong)}")


def _check_params(config: ModelConfig, params: Params) -> None:
    """Raises: ValueError naming the first parameter that a model of this config does not have, lacks, or has in another shape."""

    def described(tree) -> dict[str, str]:
        leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
        return {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}

    expected = described(jax.eval_shape(build_model(config).init, jax.random.key(0)))
    found = described(params)
    for name in [*expected, *found]:
        if expected.get(name) != found.get(name):
            raise ValueError(f"params{name} is {found.get(name)}; a model of this config has {expected.get(name)}")


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The arrays of a file, in their order."""
    c, size = config, config.head_size
    shapes: dict[str, tuple[int, ...]] = {
        "embedding": (c.vocab, c.width),
        "attention_norm": (c.layers, c.width),
        "q": (c.layers, c.heads, size, c.width),
        "k": (c.layers, c.kv_heads, size, c.width),
        "v": (c.layers, c.kv_heads, size, c.width),
        "o": (c.layers, c.width, c.heads, size),
        "mlp_norm": (c.layers, c.width),
        "gate": (c.layers, c.mlp, c.width),
        "down": (c.layers, c.width, c.mlp),
        "up": (c.layers, c.mlp, c.width),
        "final_norm": (c.width,),
        "rotary": (2, c.max_length, size // 2),
    }
    return shapes if c.tied else {**shapes, "unembed": (c.vocab, c.width)}


def _rotary(config: ModelConfig) -> np.ndarray:
    """Cosines, then sines, of position m and pair i: m / base^(2 i / K); [2, length, K / 2]."""
    frequencies = config.rope_base ** -(np.arange(0, config.head_size, 2) / config.head_size)
    angles = np.arange(config.max_length)[:, None] * frequencies[None, :]
    return np.stack([np.cos(angles), np.sin(angles)])


def _halves(x: np.ndarray) -> np.ndarray:
    """[N, heads, K, D] with adjacent rotary pairs -> pairs (i, i + K/2)."""
    return np.concatenate([x[:, :, 0::2], x[:, :, 1::2]], axis=2)


def _adjacent(x: np.ndarray) -> np.ndarray:
    """The inverse of `_halves`."""
    return np.stack(np.split(x, 2, axis=2), axis=3).reshape(x.shape)
