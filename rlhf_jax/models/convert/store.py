"""Safetensors files as one store of tensors, read box by box; and a writer that reads back what it wrote.

Only safetensors: the other formats are pickles, and reading a pickle runs what is in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from rlhf_jax.files import share
from rlhf_jax.models.convert.table import Ranges

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.msgpack", "*.h5")
DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F64": np.float64}


class Store:
    """The tensors of a checkpoint folder, by name. Files are mapped into memory, and closed with the store.

    `current` says what a tensor that has an old name is called today, and here.
    """

    def __init__(self, folder: Path, current: Callable[[str], str] = str):
        from safetensors import SafetensorError, safe_open

        self.folder = folder
        self._files: dict[Path, Any] = {}
        self._where: dict[str, Path] = {}
        self._stored: dict[str, str] = {}
        files, placed = _files(folder)
        for path in files:
            try:
                self._files[path] = safe_open(path, framework="np").__enter__()
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{path}: not a whole safetensors file ({error}); fetch it again") from error
            for stored in self._files[path].keys():  # noqa: SIM118  not a mapping
                name = current(stored)
                if name in self._where:
                    again = f", as {self._stored[name]!r}" if self._stored[name] != stored else ""
                    raise ValueError(f"{path}: tensor {stored!r} is in {self._where[name].name} too{again}")
                self._where[name], self._stored[name] = path, stored
        found = {self._stored[name]: path for name, path in self._where.items()}
        for name, file in placed.items():
            if found.get(name) != folder / str(file):
                raise ValueError(
                    f"{folder / INDEX}: tensor {name!r} should be in {file}, and is not; fetch the files again"
                )

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.__exit__(None, None, None)
        self._files.clear()

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def names(self) -> set[str]:
        """All tensors there are."""
        return set(self._where)

    def where(self, name: str) -> Path:
        """The file that a tensor is in."""
        return self._where[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape. Raises: ValueError for numbers of a kind that is no weight."""
        piece = self._piece(name)
        if piece.get_dtype() not in DTYPES:
            kinds = ", ".join(DTYPES)
            raise ValueError(f"{self._where[name]}: tensor {name!r} is {piece.get_dtype()}; expected one of {kinds}")
        return tuple(piece.get_shape())

    def read(self, name: str, ranges: Ranges) -> np.ndarray:
        """A box of a tensor."""
        return self._piece(name)[tuple(slice(start, stop) for start, stop in ranges)]

    def _piece(self, name: str) -> Any:
        return self._files[self._where[name]].get_slice(self._stored[name])


def _files(folder: Path) -> tuple[list[Path], dict[str, Any]]:
    """The safetensors files of a checkpoint, and what its index says where each tensor is; a single file goes first, as in transformers.

    Raises: FileNotFoundError naming what is there instead.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    if (folder / SINGLE).is_file():
        return [folder / SINGLE], {}
    index = folder / INDEX
    if index.is_file():
        placed = _weight_map(index)
        names = sorted({str(name) for name in placed.values()})
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(f"{index} names {', '.join(missing)}, which are not there; fetch them too")
        return [folder / name for name in names], placed
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found, {}
    if found:
        raise FileNotFoundError(f"{folder} has {len(found)} safetensors files but no {INDEX} to say what is in them")
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise FileNotFoundError(
            f"{folder} has {', '.join(pickles)} but no {SINGLE}: pickles run code when they are read, so they are not; "
            "convert it once, where you trust it, with transformers: "
            "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
        )
    raise FileNotFoundError(f"{folder} has no {SINGLE} and no {INDEX}")


def _weight_map(index: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{index}: not an index of tensors ({error!r}); expected an object with 'weight_map'"
        ) from error


def write_store(folder: Path, tensors: Iterable[tuple[str, tuple[int, ...], Any]], dtype: Any, limit: int) -> None:
    """Writes (name, shape, how to make it) as safetensors, no file above `limit` bytes but for a larger tensor; reads each file back.

    One file at a time is in memory. Several come with the index that transformers reads.
    Raises: OSError where a file does not hold what was written.
    """
    size = np.dtype(dtype).itemsize
    groups: list[list[tuple[str, Any]]] = [[]]
    filled = total = 0
    for name, shape, make in tensors:
        count = int(np.prod(shape, dtype=np.int64)) * size
        if groups[-1] and filled + count > limit:
            groups.append([])
            filled = 0
        groups[-1].append((name, make))
        filled, total = filled + count, total + count
    files = (
        [SINGLE]
        if len(groups) == 1
        else [f"model-{n + 1:05d}-of-{len(groups):05d}.safetensors" for n in range(len(groups))]
    )
    for file, group in zip(files, groups, strict=True):
        write_file(folder / file, {name: make() for name, make in group}, dtype)
    if len(files) > 1:
        weight_map = {name: file for file, group in zip(files, groups, strict=True) for name, _ in group}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_file(path: Path, arrays: Mapping[str, np.ndarray], dtype: Any) -> None:
    """Writes one safetensors file and reads it back. Raises: OSError where it does not hold what was written."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    # Contiguous: safetensors 0.8.0 writes the raw memory of any array, transposed or not.
    arrays = {name: np.ascontiguousarray(array, dtype=dtype) for name, array in arrays.items()}
    save_file(arrays, path, metadata={"format": "pt"})
    share(path)
    with safe_open(path, framework="np") as written:
        for name, array in arrays.items():
            found = written.get_tensor(name)
            if found.dtype != array.dtype or found.shape != array.shape or found.tobytes() != array.tobytes():
                raise OSError(f"{path}: tensor {name!r} does not read back as it was written")
