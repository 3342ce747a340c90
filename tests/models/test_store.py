"""The files of a checkpoint: damaged, missing, pickled, and in several pieces with an index."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import jax
import pytest
from builders import lively
from checkpoints import LLAMA, SINGLE, assert_same, edit_tensors, saved
from safetensors.numpy import load_file, save_file

from rlhf_jax.models.convert.load import load_pretrained
from rlhf_jax.models.convert.store import INDEX, Store

Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize("damage", ["cut", "cut in the header", "a bit of the header", "longer header", "empty"])
def test_a_damaged_file_is_named(tmp_path, damage):
    path = saved(tmp_path / "a") / SINGLE
    whole = path.read_bytes()
    flipped = whole.replace(b'"shape":[', b'"shape"\x00[', 1)
    content = {
        "cut": whole[:-100],
        "cut in the header": whole[:100],
        "a bit of the header": flipped,
        "longer header": b"\xff" * 8 + whole[8:],
        "empty": b"",
    }[damage]
    assert content != whole
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors: not a whole safetensors file .*; fetch it again"):
        load_pretrained(path.parent)


class Trap:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_pickle_is_never_read(tmp_path):
    folder = saved(tmp_path / "a")
    (folder / SINGLE).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(
        FileNotFoundError,
        match=r"pytorch_model\.bin but no model\.safetensors: .* once, .*save_pretrained\(NEW_FOLDER\)",
    ):
        load_pretrained(folder)
    assert not (tmp_path / "sprung").exists()


def test_files_that_are_not_there_are_named(tmp_path):
    folder = saved(tmp_path / "a")
    (folder / SINGLE).rename(folder / "one.safetensors")
    assert_same(load_pretrained(folder).params, lively(LLAMA))  # the only one there is
    (folder / "two.safetensors").write_bytes((folder / "one.safetensors").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"has 2 safetensors files but no model\.safetensors\.index\.json"):
        load_pretrained(folder)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors and no model\.safetensors\.index\.json"):
        load_pretrained(folder)
    with pytest.raises(FileNotFoundError, match="no folder"):
        Store(tmp_path / "absent")


def sharded(folder: Path) -> tuple[Path, dict[str, str]]:
    """A checkpoint in several files, and what its index says."""
    saved(folder, limit=3000)
    return folder, json.loads((folder / INDEX).read_text())["weight_map"]


def test_a_single_file_goes_before_an_index_as_in_transformers(tmp_path):
    folder, _ = sharded(tmp_path / "a")
    save_file(load_file(saved(tmp_path / "b") / SINGLE), folder / SINGLE)
    edit_tensors(folder, lambda w: {name: 2 * x for name, x in w.items()})
    assert_same(load_pretrained(folder).params, jax.tree.map(lambda x: 2 * x, lively(LLAMA)))


def test_a_file_of_the_index_that_is_not_there_is_named(tmp_path):
    folder, placed = sharded(tmp_path / "a")
    (folder / placed[Q]).unlink()
    with pytest.raises(FileNotFoundError, match=f"{INDEX} names {placed[Q]}, which are not there"):
        load_pretrained(folder)


def test_an_index_that_disagrees_with_the_files_is_refused(tmp_path):
    folder, placed = sharded(tmp_path / "a")
    other = next(file for file in placed.values() if file != placed[Q])
    (folder / INDEX).write_text(json.dumps({"weight_map": placed | {Q: other}}))
    with pytest.raises(ValueError, match=f"tensor '{Q}' should be in {other}, and is not"):
        load_pretrained(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": placed | {"more": other}}))
    with pytest.raises(ValueError, match=f"tensor 'more' should be in {other}"):
        load_pretrained(folder)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": null}', "null"])
def test_an_index_that_is_none_is_refused(tmp_path, text):
    folder, _ = sharded(tmp_path / "a")
    (folder / INDEX).write_text(text)
    with pytest.raises(
        ValueError, match=r"index\.json: not an index of tensors .*; expected an object with 'weight_map'"
    ):
        load_pretrained(folder)


def test_a_tensor_in_two_files_is_refused(tmp_path):
    folder, placed = sharded(tmp_path / "a")
    other = next(file for file in placed.values() if file != placed[Q])
    save_file(load_file(folder / other) | {Q: load_file(folder / placed[Q])[Q]}, folder / other)
    with pytest.raises(ValueError, match=rf"tensor '{Q}' is in \S+ too"):
        load_pretrained(folder)
