"""Adapters in the folder layout of the library PEFT: adapter_config.json and adapter_model.safetensors.

A is stored as [rank, inputs], B as [outputs, rank], per layer and module, and counts lora_alpha / r times, as here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlhf_jax.config import LoRA, ModelConfig
from rlhf_jax.files import whole_folder
from rlhf_jax.models.build import build_model
from rlhf_jax.models.convert.family import Family
from rlhf_jax.models.convert.store import Store, write_file
from rlhf_jax.models.convert.table import Tensor
from rlhf_jax.models.lora import LAYERS, LORA
from rlhf_jax.models.params import INPUTS
from rlhf_jax.types import Params

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
SIDES = {"lora_a": "lora_A", "lora_b": "lora_B"}
# What would make the function another one, and the value with which it does not.
ONLY = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False,),
    "use_rslora": (False,),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": (None, []),
    "layers_to_transform": (None,),
    "layer_replication": (None,),
    "target_parameters": (None, []),
    "trainable_token_indices": (None,),
    "lora_bias": (False,),
}


def save_adapters(folder: Path, params: Params, lora: LoRA, config: ModelConfig, family: Family, base: str) -> None:
    """Writes the adapters of an adapted policy, whole or not at all; `base` is the checkpoint that they are adapters of.

    Raises: ValueError for adapters of a projection that the family stores together with others.
    """
    adapters = {path: node for path, node in _nodes(params[LORA])}
    modules = {path: _module(family, config, path) for path in adapters}
    written = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if config.kind == "decoder" else "SEQ_2_SEQ_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(not _transposed(family, config, path) for path in adapters),
        "inference_mode": True,
        "target_modules": _targets(family, config, modules),
    }
    arrays = {
        _name(modules[path], side, layer): _matrix(node[side][layer], side, lora.rank).T
        for path, node in adapters.items()
        for side in SIDES
        for layer in range(len(node[side]))
    }
    with whole_folder(folder) as scratch:
        write_file(scratch / WEIGHTS, arrays, np.float32)
        (scratch / CONFIG).write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def read_adapter_config(folder: Path) -> tuple[LoRA, str]:
    """(rank and alpha, the checkpoint that the adapters are for). Raises: ValueError for a field that is not computed here."""
    path = folder / CONFIG
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        lora, base = LoRA(int(raw["r"]), float(raw["lora_alpha"])), raw["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the config of an adapter ({error!r})") from error
    for name, values in ONLY.items():
        if raw.get(name, values[0]) not in values:
            raise ValueError(f"{path}: field {name!r} is {raw[name]!r}; this library computes {values[0]!r} only")
    if not isinstance(base, str) or not base:
        raise ValueError(
            f"{path}: base_model_name_or_path is {base!r}; expected the checkpoint that the adapters are for"
        )
    return lora, base


def load_adapters(folder: Path, lora: LoRA, config: ModelConfig, family: Family) -> Params:
    """The adapters of a folder as the part of an adapted model's tree that stands under "lora".

    Raises: ValueError naming tensors that are missing, belong to no kernel of such a model, or are of another shape.
    """
    shapes = jax.eval_shape(build_model(config).init, jax.random.key(0))
    found: Params = {}
    with Store(folder) as store:
        rest = store.names()
        for path, node in _nodes(shapes, "kernel"):
            if not _tensor(family, config, path).per_layer or _together(family, config, path):
                continue  # a tensor for it is left over below
            module, count = _module(family, config, path), INPUTS.get(path.rpartition("/")[2], 1)
            if _name(module, "lora_a", 0) not in store:
                continue
            inputs, outputs = node["kernel"].shape[1 : 1 + count], node["kernel"].shape[1 + count :]
            shape = {"lora_a": (*inputs, lora.rank), "lora_b": (lora.rank, *outputs)}
            names = {side: [_name(module, side, layer) for layer in range(len(node["kernel"]))] for side in SIDES}
            sides = {side: np.stack([_read(store, name, shape[side], side) for name in names[side]]) for side in SIDES}
            rest -= {name for side in SIDES for name in names[side]}
            found = _placed(found, path.split("/"), sides)
    if rest or not found:
        named = ", ".join(sorted(rest)[:5]) or "none at all"
        raise ValueError(f"{folder / WEIGHTS}: tensors that are no adapters of a {family.model_type} here: {named}")
    return found


def _targets(family: Family, config: ModelConfig, modules: Mapping[str, str]) -> list[str]:
    """What PEFT finds the modules of these paths by: what their names end with behind the layer, or, where others end alike, the names."""
    kernels = {
        path.removesuffix("/kernel"): tensor
        for path, tensor in family.tensors(config).items()
        if tensor.per_layer and path.endswith("/kernel")
    }
    # More than the last name: GPT-2 calls two modules c_proj.
    ends = {module.partition("{}.")[2] for module in modules.values()}
    others = [tensor.name.removesuffix(".weight") for path, tensor in kernels.items() if path not in modules]
    if any(other.endswith(f".{end}") for other in others for end in ends):
        return sorted(name.removesuffix(".weight") for path in modules for name in kernels[path].names)
    return sorted(ends)


def _nodes(tree: Params, leaf: str = "lora_a", path: str = "") -> Iterator[tuple[str, Params]]:
    """(path, node) of all nodes with a leaf of this name."""
    if leaf in tree:
        yield path.removeprefix("/"), tree
        return
    for name, part in tree.items():
        if isinstance(part, dict):
            yield from _nodes(part, leaf, f"{path}/{name}")


def _tensor(family: Family, config: ModelConfig, path: str) -> Tensor:
    return family.tensors(config)[f"{path}/kernel"]


def _together(family: Family, config: ModelConfig, path: str) -> bool:
    """Whether a kernel is stored in one tensor with others."""
    return any(letter.isdigit() for letter in _tensor(family, config, path).pattern)


def _module(family: Family, config: ModelConfig, path: str) -> str:
    """The module whose weight a kernel is, `{}` being the number of the layer."""
    if _together(family, config, path):
        named = path.replace(f"{LAYERS}/", "")
        raise ValueError(
            f"a {family.model_type} stores {named} in one tensor with others, of which PEFT has one adapter: export the policy merged, or "
            f"leave {named} out of lora.targets"
        )
    return _tensor(family, config, path).name.removesuffix(".weight")


def _transposed(family: Family, config: ModelConfig, path: str) -> bool:
    """Whether a weight is stored outputs first, as torch's linear layers do; GPT-2 does not."""
    left, right = _tensor(family, config, path).pattern.split("->")
    return left.replace("(", " ").split()[0] != right.split()[0]


def _name(module: str, side: str, layer: int) -> str:
    return f"{PREFIX}{module.format(layer)}.{SIDES[side]}.weight"


def _matrix(array: Any, side: str, rank: int) -> np.ndarray:
    """A as [inputs, rank], B as [rank, outputs]."""
    return np.asarray(array).reshape((-1, rank) if side == "lora_a" else (rank, -1))


def _read(store: Store, name: str, shape: tuple[int, ...], side: str) -> np.ndarray:
    """A or B of a layer in our shape."""
    rank = shape[-1] if side == "lora_a" else shape[0]
    expected = _matrix(np.empty(shape), side, rank).T.shape
    if name not in store:
        raise ValueError(f"{store.folder / WEIGHTS}: no tensor {name!r}")
    if store.shape(name) != expected:
        raise ValueError(f"{store.folder / WEIGHTS}: {name!r} is {list(store.shape(name))}, expected {list(expected)}")
    return np.asarray(store.read(name, tuple((0, size) for size in expected)), np.float32).T.reshape(shape)


def _placed(tree: Params, path: list[str], node: Params) -> Params:
    if not path:
        return node
    return {**tree, path[0]: _placed(tree.get(path[0], {}), path[1:], node)}
