"""Checkpoints of other formats: one file per family, each a reader that gives (ModelConfig, params), and a writer that takes them."""

from __future__ import annotations

from pathlib import Path

from rlhf_jax.config import ModelConfig
from rlhf_jax.models.convert.llama2c import load_llama2c
from rlhf_jax.types import Params


def find_checkpoint(folder: Path) -> tuple[Path, ModelConfig, Params]:
    """The one checkpoint of a folder that a reader here understands: its file, shape and parameters.

    Raises: FileNotFoundError where there is none to try, ValueError where none can be read, saying why, or several can.
    """
    candidates = sorted(folder.glob("*.bin"))
    if not candidates:
        raise FileNotFoundError(f"{folder} has no checkpoint: expected a llama2.c file, *.bin")
    found, faults = [], []
    for path in candidates:
        try:
            found.append((path, *load_llama2c(path)))
        except ValueError as error:
            faults.append(str(error))
    if len(found) != 1:
        listed = "; ".join(faults) if not found else ", ".join(path.name for path, *_ in found)
        raise ValueError(f"{folder}: expected one llama2.c checkpoint, found {len(found)}: {listed}")
    return found[0]
