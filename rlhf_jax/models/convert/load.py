"""A checkpoint folder or hub id -> a model's shape and its parameters, each device reading its own part only."""

from __future__ import annotations

import dataclasses
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from rlhf_jax.config import ONE_DEVICE, ModelConfig
from rlhf_jax.mesh import make_mesh
from rlhf_jax.models.build import build_model
from rlhf_jax.models.convert.families import FAMILIES
from rlhf_jax.models.convert.family import Family
from rlhf_jax.models.convert.fields import Fields
from rlhf_jax.models.convert.store import Store
from rlhf_jax.models.convert.table import Layout, Tensor, sizes_of
from rlhf_jax.sharding import tree_shardings
from rlhf_jax.types import Params

CONFIG = "config.json"
SCORE_BIAS = "rlhf_jax_score_bias"
"""Our field of config.json: what the scalar head of ours adds, which theirs has no room for."""
IGNORED = ("consolidated*", "original/*")  # the same weights in their makers' own layout
FETCHED = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.txt", "*.tiktoken")
SHOWN = 5  # faults of one kind that an error lists


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model that was read: its shape, its parameters on the mesh, its family, the folder that it came from, a classifier's names."""

    config: ModelConfig
    params: Params
    family: Family
    folder: Path
    labels: tuple[str, ...] = ()


def load_pretrained(
    source: str | Path,
    mesh: Mesh | None = None,
    *,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> Pretrained:
    """The model in a folder as transformers saves it, or of a hub id (`ORG/NAME`, `ORG/NAME@REVISION`, also with `hf:` before it).

    Files are mapped, and every device of the mesh (default: the first device) gets its own part of each parameter straight from them, so
    that beside the model itself no more than one part of one parameter is in memory. Parameters become `dtype`.
    Raises: FileNotFoundError for what is not there, ValueError naming file and field or tensor for what is not as it should be.
    """
    folder = find_folder(source)
    family, config, raw = read_config(folder)
    mesh = make_mesh(ONE_DEVICE) if mesh is None else mesh
    shapes = jax.eval_shape(build_model(config).init, jax.random.key(0))
    with Store(folder, family.current) as store:
        tensors = matched(store, family, config)
        sizes = sizes_of(config)

        def leaf(keys: Any, shape: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.Array:
            path = "/".join(key.key for key in keys)
            if path == "score/bias" and path not in tensors:
                bias = np.asarray(raw.get(SCORE_BIAS, 0.0), np.dtype(dtype))
                return jax.device_put(bias, sharding)
            return _placed(store, tensors[path], Layout(tensors[path], sizes), shape.shape, sharding, np.dtype(dtype))

        params = jax.tree_util.tree_map_with_path(leaf, shapes, tree_shardings(shapes, mesh))
    return Pretrained(config, params, family, folder, _labels(raw, config.classes or int(config.scalar_head)))


def check_folder(folder: Path) -> None:
    """Looks at a checkpoint without reading its numbers. Raises: what `load_pretrained` raises."""
    family, config, _ = read_config(folder)
    with Store(folder, family.current) as store:
        matched(store, family, config)


def find_folder(source: str | Path) -> Path:
    """The folder of a checkpoint; that of a hub id is fetched, or found where it was fetched before.

    Raises: FileNotFoundError for what is neither a folder nor a hub id that can be had.
    """
    if Path(source).is_dir():
        return Path(source)
    name, _, revision = str(source).removeprefix("hf:").partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or isinstance(source, Path):
        raise FileNotFoundError(f"{source} is no folder, and no hub id ORG/NAME")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                name, revision=revision or None, allow_patterns=list(FETCHED), ignore_patterns=list(IGNORED)
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        how = f"hf download {name}" + (f" --revision {revision}" if revision else "")
        raise FileNotFoundError(
            f"{source} is no folder here, and the hub does not give it ({reason}); fetch it once with `{how}`"
        ) from error


def read_config(folder: Path) -> tuple[Family, ModelConfig, Mapping[str, Any]]:
    """(family, shape, config.json as it stands). Raises: ValueError for a family or a field that is not supported here."""
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {CONFIG}; expected a folder as transformers saves a model")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: a {type(raw).__name__}; expected an object")
    by_type = {family.model_type: family for family in FAMILIES}
    family = by_type.get(str(raw.get("model_type")))
    if family is None:
        raise ValueError(
            f"{path}: model_type {raw.get('model_type')!r} is not supported; these are: {', '.join(by_type)}"
        )
    if raw.get("quantization_config") is not None:
        raise ValueError(f"{path}: quantized weights; expected a checkpoint in float32, float16 or bfloat16")
    fields = Fields(raw, path)
    try:
        config = family.read(fields)
    except ValueError as error:
        raise error if str(path) in str(error) else ValueError(f"{path}: {error}") from error
    fields.get(SCORE_BIAS, None)
    config = dataclasses.replace(config, **_head(raw, family, config, path))
    fields.done()
    if family.own_output and config.lm_head:
        with Store(folder, family.current) as store:
            config = dataclasses.replace(config, tied=_tied(store, family, config))
    return family, config, raw


def _tied(store: Store, family: Family, config: ModelConfig) -> bool:
    """Whether a checkpoint has no output layer of its own, where config.json does not tell: none, or a copy of the table of tokens."""
    embedding = family.tensors(config)["tokens/embedding"].name
    if family.head not in store or embedding not in store:
        return True
    return config.tied and _same(store, family.head, embedding)


def _head(raw: Mapping[str, Any], family: Family, config: ModelConfig, path: Path) -> dict[str, Any]:
    """Which head the checkpoint has, from `architectures`, as fields of a shape."""
    given = raw.get("architectures") or [family.architecture]
    if not isinstance(given, list) or len(given) != 1 or not isinstance(given[0], str):
        raise ValueError(f"{path}: architectures {given}; expected one, by its name")
    (named,) = given
    if not isinstance(raw.get("id2label") or {}, dict):
        raise ValueError(f"{path}: field 'id2label' is {raw['id2label']!r}; expected an object")
    if named.endswith("ForSequenceClassification"):
        labels = raw.get("num_labels", len((0, 1) if raw.get("id2label") is None else raw["id2label"]))
        if labels == 1:
            return {"head": "scalar"}
        if config.causal:
            raise ValueError(f"{path}: a classifier of {labels} labels; expected 1, the score of a reward model")
        if not isinstance(labels, int) or labels < 1:
            raise ValueError(f"{path}: a classifier of {labels!r} labels; expected 1 or more")
        return {"head": "classes", "classes": labels}
    # A decoder's embedding is its output layer, where it is tied; an encoder has none without what stands before it.
    if named.endswith("Model"):
        return {"head": "lm" if config.causal else "none"}
    # What BERT was pretrained with: the masked language model beside a classifier of pairs of sentences.
    pretraining = not config.causal and named == f"{family.stem}ForPreTraining"
    if named != family.architecture and not pretraining:
        raise ValueError(
            f"{path}: architecture {named!r} is not supported; of {family.model_type} these are: "
            f"{family.architecture}, {family.scorer}"
        )
    return {"head": "lm"}


def _labels(raw: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """The names of this many outputs of a classifier, in order."""
    given = raw.get("id2label") or {}
    return tuple(str(given.get(str(place), f"LABEL_{place}")) for place in range(count))


def matched(store: Store, family: Family, config: ModelConfig) -> dict[str, Tensor]:
    """Our parameters' tensors by path, by the names that they have in this store.

    Raises: ValueError naming tensors that are missing, that nobody asked for, and those of another shape.
    """
    tensors, found = family.tensors(config), store.names()
    parts = family.prefix.split(".")
    prefix = next(
        (p for n in range(len(parts)) if any(name.startswith(p := ".".join(parts[n:])) for name in found)), ""
    )
    for path, tensor in tensors.items():
        if tensor.name.startswith(family.prefix):
            tensors[path] = dataclasses.replace(tensor, name=prefix + tensor.name.removeprefix(family.prefix))
    sizes = sizes_of(config)
    expected = {name: Layout(tensor, sizes).shape for tensor in tensors.values() for name in tensor.names}
    faults = [f"missing: {_some([repr(name) for name in expected if name not in found])}"]
    buffers = re.compile("|".join(family.buffers) or r"(?!)")
    extra = sorted(name for name in found - expected.keys() if not buffers.fullmatch(name))
    copies = dict(family.copies) | ({family.head: tensors["tokens/embedding"].name} if config.tied else {})
    for name, original in copies.items():
        if name in extra and original in found:
            extra.remove(name)
            _warn_of_another(store, name, original)
    faults.append(f"unexpected: {_some([repr(name) for name in extra])}")
    wrong = [
        f"{name!r} is {list(store.shape(name))} in {store.where(name).name}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in found and store.shape(name) != shape
    ]
    faults.append(f"of another shape: {_some(wrong)}")
    faults = [fault for fault in faults if not fault.endswith(": ")]
    if faults:
        raise ValueError(
            f"{store.folder}: tensors are not those of a {family.model_type} of this shape; {'; '.join(faults)}"
        )
    return tensors


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _warn_of_another(store: Store, copy: str, original: str) -> None:
    """Warns where a tensor that should repeat another, as a tied output layer does, is not it: transformers does not use it."""
    if not _same(store, copy, original):
        warnings.warn(
            f"{store.folder}: {copy!r} differs from {original!r}, and is ignored: config.json ties them", stacklevel=2
        )


def _same(store: Store, copy: str, original: str) -> bool:
    """Whether two tensors are the same numbers."""
    rows, *rest = store.shape(copy)
    same = store.shape(original) == (rows, *rest)
    for start in range(0, rows if same else 0, 4096):
        box = ((start, min(start + 4096, rows)), *((0, size) for size in rest))
        same = same and np.array_equal(store.read(copy, box), store.read(original, box))
    return same


def _placed(
    store: Store, tensor: Tensor, layout: Layout, shape: tuple[int, ...], sharding: Any, dtype: np.dtype
) -> jax.Array:
    """One of our parameters on its devices. Those that hold the same part read it once, and one part is read after the other."""
    holders: dict[Any, list[Any]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        ends = tuple(place.indices(size) for place, size in zip(index, shape, strict=True))
        holders.setdefault(ends, []).append(device)
    pieces: list[jax.Array] = []
    for ends, devices in holders.items():
        part = _part(store, tensor, layout, [slice(*end) for end in ends], dtype)
        pieces += jax.block_until_ready([jax.device_put(part, device) for device in devices])
    return jax.make_array_from_single_device_arrays(shape, sharding, pieces)


def _part(store: Store, tensor: Tensor, layout: Layout, index: list[slice], dtype: np.dtype) -> np.ndarray:
    """A part of one of our parameters, layers in front where it has them."""
    whole = np.empty([place.stop - place.start for place in index], dtype)
    if tensor.per_layer:
        layers, *rest = index
        for place, layer in enumerate(range(layers.start, layers.stop)):
            whole[place] = layout.read(partial(store.read, tensor.name.format(layer)), rest)
    else:
        whole[...] = layout.read(partial(store.read, tensor.name), index)
    return whole
