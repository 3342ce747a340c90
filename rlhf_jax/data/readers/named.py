"""Data sets that go by a name instead of a path: those of TensorFlow Datasets, and of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_jax.data.readers.rows import Row
from rlhf_jax.files import SUMS, check_sums

INFO = "dataset_info.json"


def read_tfds(name: str, split: str, folder: Path, prepared: Path) -> Iterator[tuple[str, Row]]:
    """("NAME:SPLIT[N]", field -> value) for every example of a prepared data set, by random access; TensorFlow is not needed.

    `name` is a folder with a dataset_info.json, below `folder` or by itself; else a set below `prepared`, by its name or NAME/CONFIG.
    Texts are str, and a sequence of records is a list of them.
    Raises: FileNotFoundError where there is no such set; ValueError for an unknown split, files of another format than
    ArrayRecord, and files of a prepared set that are not what was written.
    """
    for number, example in enumerate(tfds_source(name, split, folder, prepared)):
        yield f"{name}:{split}[{number}]", _plain(example)


def tfds_source(name: str, split: str, folder: Path, prepared: Path) -> Sequence[Any]:
    """The examples as TFDS gives them, by random access. Raises: as `read_tfds`."""
    import tensorflow_datasets as tfds

    builders: Any = tfds
    named = sorted((prepared / name).glob("*"), key=lambda path: [int(n) for n in path.name.split(".") if n.isdigit()])
    places = [path for path in (folder / name, Path(name), *reversed(named)) if (path / INFO).is_file()]
    if not places:
        raise FileNotFoundError(
            f"no data set {name!r}: neither a folder with {INFO} below {folder}, nor one of a version below {prepared}"
        )
    if (places[0] / SUMS).is_file():
        check_sums(places[0])
    builder = builders.builder_from_directory(str(places[0]))
    if split not in builder.info.splits:
        raise ValueError(f"{name} has no split {split!r}; it has {', '.join(builder.info.splits)}")
    try:
        return builder.as_data_source(split)
    except NotImplementedError as error:
        raise ValueError(f"{name}: {error}; only ArrayRecord files are read without TensorFlow") from error


def read_hub(name: str, split: str, folder: Path) -> Iterator[tuple[str, Row]]:
    """("NAME:SPLIT[N]", field -> value) for every row of a data set of the Hugging Face hub, or of a folder in its layout.

    `name` is ORG/NAME or ORG/NAME/CONFIG. Raises: ValueError where `datasets` is not installed, or finds no such set or split.
    """
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"hf:{name}: needs the package datasets; pip install 'rlhf_jax[data]'") from error
    here = folder / name
    organisation, *rest = name.split("/")
    asked = [str(here)] if here.is_dir() else ["/".join([organisation, *rest[:1]]), *rest[1:]]
    try:
        rows: Any = datasets.load_dataset(*asked, split=split)
    except Exception as error:  # of the network, of the hub, of the files, of the split's name
        said = " ".join(str(error).split())[:300]
        raise ValueError(f"hf:{name}:{split}: datasets cannot load it ({type(error).__name__}: {said})") from error
    for number, row in enumerate(rows):
        yield f"{name}:{split}[{number}]", dict(row)


def _plain(value: Any) -> Any:
    """Numpy as Python has it: bytes as text, arrays as lists, and a record of equally long arrays inside a row as a list of records."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, Mapping):
        return {name: _records(_plain(part)) for name, part in value.items()}
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value


def _records(value: Any) -> Any:
    """TFDS writes a sequence of records as a record of sequences."""
    if not isinstance(value, dict) or not value or not all(isinstance(part, list) for part in value.values()):
        return value
    lengths = {len(part) for part in value.values()}
    if len(lengths) != 1:
        return value
    return [dict(zip(value, parts, strict=True)) for parts in zip(*value.values(), strict=True)]
