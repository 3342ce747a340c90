"""A model's shape and parameters -> a folder that transformers reads."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import ml_dtypes
import numpy as np

from rlhf_jax.config import ModelConfig
from rlhf_jax.files import whole_folder
from rlhf_jax.models.convert.families import FAMILIES
from rlhf_jax.models.convert.family import Family
from rlhf_jax.models.convert.fields import Fields
from rlhf_jax.models.convert.load import CONFIG, SCORE_BIAS
from rlhf_jax.models.convert.store import write_store
from rlhf_jax.models.convert.table import Layout, Tensor, sizes_of
from rlhf_jax.types import Params

FREE = ("head", "classes", "dtype", "cache_dtype", "remat", "unroll", "logit_chunk", "gather_once")
"""How a model is computed, or which head it has; config.json says nothing of these."""
LIMIT = 5 * 2**30
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}


def family_of(config: ModelConfig) -> Family:
    """The first family that can say exactly this shape.

    Raises: ValueError naming, for the family that comes nearest, the fields that it cannot say.
    """
    faults: dict[str, list[str]] = {}
    for family in FAMILIES:
        faults[family.model_type] = wrong = lost_fields(config, family)
        if not wrong:
            return family
    nearest = min(faults, key=lambda name: len(faults[name]))
    raise ValueError(
        f"no family of {', '.join(faults)} is a model of this shape; the nearest is {nearest}, which is not "
        f"{', '.join(faults[nearest])}"
    )


def lost_fields(config: ModelConfig, family: Family) -> list[str]:
    """The fields of a shape that a family's config.json would not give back."""
    try:
        written = json.loads(json.dumps(family.write(config)))
        back = family.read(Fields(written, Path(CONFIG)))
    except (ValueError, TypeError, ZeroDivisionError) as error:
        return [str(error)]
    return [f"{name}={here!r}" for name, (here, _) in shape_difference(config, back).items()]


def shape_difference(one: ModelConfig, other: ModelConfig) -> dict[str, tuple[Any, Any]]:
    """The fields in which two configs are different functions, with both values."""
    here, there = _plain(one), _plain(other)
    return {name: (here[name], there[name]) for name in here if name not in FREE and here[name] != there[name]}


def _plain(config: ModelConfig) -> dict[str, Any]:
    """The fields, with what None stands for."""
    scale = config.head_size**-0.5 if config.query_scale is None else config.query_scale
    filled = dataclasses.replace(config, head_dim=config.head_size, query_scale=scale)
    return {field.name: getattr(filled, field.name) for field in dataclasses.fields(filled)}


def save_pretrained(
    folder: Path,
    config: ModelConfig,
    params: Params,
    *,
    family: Family | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    limit: int = LIMIT,
    ids: Mapping[str, int | None] | None = None,
    labels: Sequence[str] = (),
    beside: Callable[[Path], None] = lambda folder: None,
) -> Family:
    """Writes a model as transformers does, whole or not at all: config.json, safetensors of at most `limit` bytes, generation_config.json.

    `family` is by default the first that says this shape; give the one that was read where several do.
    `ids` are bos_token_id, eos_token_id and pad_token_id, `labels` the names of the classes; `beside` writes more files into the folder,
    such as the tokenizer's. A reward model (head "scalar") becomes a sequence classifier of one label; a decoder's lacks the bias of our
    scores: transformers has none.
    Raises: ValueError where no family says this shape, FileExistsError where the folder is there and not empty, OSError where what was
    written does not read back.
    """
    if family is None:
        family = family_of(config)
    elif lost := lost_fields(config, family):
        raise ValueError(f"a {family.model_type} of this shape is not written: it cannot say {', '.join(lost)}")
    if config.head == "lm+scalar":
        raise ValueError("a policy with a value head has no form in transformers; save it with head 'lm' or 'scalar'")
    if config.head == "none":
        raise ValueError("an encoder without a head is not written; save it with head 'lm', 'scalar' or 'classes'")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already; choose another")
    fields = {"model_type": family.model_type, **family.write(config)}
    for name, value in (ids or {}).items():
        if fields.setdefault(name, value) != value:
            raise ValueError(
                f"{name} is {value}; a {family.model_type} computes something else with any but {fields[name]}"
            )
    fields |= {"architectures": [family.architecture if config.lm_head else family.scorer], "dtype": dtype}
    if not config.lm_head:
        fields |= _label_fields(labels, config.classes)
    if config.head == "scalar" and "score/bias" not in family.tensors(config):
        fields[SCORE_BIAS] = float(np.asarray(params["score"]["bias"]))
    with whole_folder(folder) as written:
        write_store(written, stored_tensors(config, params, family), DTYPES[dtype], limit)
        (written / CONFIG).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        if config.lm_head and config.causal:
            start = {name: fields[name] for name in ("decoder_start_token_id",) if name in fields}
            text = json.dumps({"_from_model_config": True, **(ids or {}), **start}, indent=2) + "\n"
            (written / "generation_config.json").write_text(text, encoding="utf-8")
        beside(written)
    return family


def _label_fields(labels: Sequence[str], classes: int | None) -> dict[str, Any]:
    """The names of a classifier's outputs. Raises: ValueError for another number of names than of classes."""
    names = list(labels) or (["score"] if classes is None else [f"LABEL_{place}" for place in range(classes)])
    if len(names) != (classes or 1):
        raise ValueError(f"{len(names)} labels, {names}, for {classes or 1} classes")
    return {
        "id2label": {str(place): name for place, name in enumerate(names)},
        "label2id": {name: place for place, name in enumerate(names)},
    }


def stored_tensors(
    config: ModelConfig, params: Params, family: Family
) -> Iterator[tuple[str, tuple[int, ...], Callable[[], np.ndarray]]]:
    """(name, shape, how to make it) of every tensor of the checkpoint, layer by layer.

    Raises: ValueError for parameters that are not those of a model of this shape.
    """
    leaves = {
        "/".join(str(getattr(key, "key", key)) for key in keys): leaf
        for keys, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    tensors, sizes = family.tensors(config), sizes_of(config)
    if "score/bias" not in tensors:
        leaves.pop("score/bias", None)
    if leaves.keys() != tensors.keys():
        raise ValueError(f"parameters {sorted(leaves.keys() ^ tensors.keys())} are of the tree or the shape only")
    layouts = {path: Layout(tensor, sizes) for path, tensor in tensors.items()}
    for path, layout in layouts.items():
        front = (tensors[path].layers,) if tensors[path].per_layer else ()
        if leaves[path].shape != front + layout.own_shape:
            raise ValueError(f"parameter {path} is {list(leaves[path].shape)}; expected {[*front, *layout.own_shape]}")
    sharing: dict[str, list[str]] = {}
    for path, tensor in tensors.items():
        sharing.setdefault(tensor.name, []).append(path)
    whole = [paths for paths in sharing.values() if not tensors[paths[0]].per_layer]
    layered = [paths for paths in sharing.values() if tensors[paths[0]].per_layer]

    def made(paths: list[str], layer: int | None) -> tuple[str, tuple[int, ...], Callable[[], np.ndarray]]:
        tensor: Tensor = tensors[paths[0]]
        name = tensor.name if layer is None else tensor.name.format(layer)
        parts = [(layouts[path], leaves[path]) for path in paths]
        return name, layouts[paths[0]].shape, partial(_filled, parts, layer)

    yield from (made(paths, None) for paths in whole)
    deepest = max(tensor.layers for tensor in tensors.values())
    yield from (made(paths, layer) for layer in range(deepest) for paths in layered if layer < tensors[paths[0]].layers)


def _filled(parts: list[tuple[Layout, Any]], layer: int | None) -> np.ndarray:
    """A stored tensor from the parameters that are in it; what is none of ours is 0."""
    layout, leaf = parts[0]
    whole = np.zeros(layout.shape, leaf.dtype)
    for layout, leaf in parts:
        layout.view(whole)[...] = np.asarray(leaf if layer is None else leaf[layer])
    return whole
