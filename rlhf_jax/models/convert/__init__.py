"""Checkpoints of other formats, in and out.

table.py     a family's table: where each parameter stands in a checkpoint, read in both directions
fields.py    config.json, field by field
family.py    what a family is
families.py  which there are: gpt2.py, llama.py, gemma.py, neox.py, opt.py, bert.py
store.py     safetensors files
load.py      a folder or hub id -> shape and parameters, each device its own part
save.py      shape and parameters -> a folder that transformers reads
llama2c.py   the .bin files of llama2.c
"""

from __future__ import annotations

from pathlib import Path

from rlhf_jax.config import ModelConfig
from rlhf_jax.models.convert.llama2c import load_llama2c
from rlhf_jax.models.convert.load import CONFIG, load_pretrained
from rlhf_jax.types import Params


def find_checkpoint(folder: Path) -> tuple[Path, ModelConfig, Params]:
    """The one checkpoint of a folder that a reader here understands: where it is, its shape and its parameters.

    Raises: FileNotFoundError where there is none to try, ValueError where none can be read, saying why, or several can.
    """
    if (folder / CONFIG).is_file():
        found = load_pretrained(folder)
        return folder, found.config, found.params
    candidates = sorted(folder.glob("*.bin"))
    if not candidates:
        raise FileNotFoundError(
            f"{folder} has no checkpoint: expected {CONFIG} with safetensors, or a llama2.c file, *.bin"
        )
    read, faults = [], []
    for path in candidates:
        try:
            read.append((path, *load_llama2c(path)))
        except ValueError as error:
            faults.append(str(error))
    if len(read) != 1:
        listed = "; ".join(faults) if not read else ", ".join(path.name for path, *_ in read)
        raise ValueError(f"{folder}: expected one llama2.c checkpoint, found {len(read)}: {listed}")
    return read[0]
