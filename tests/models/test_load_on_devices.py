"""A checkpoint read onto many devices: the values of one, and each device reads its own part only."""

from __future__ import annotations

import dataclasses

import jax
import pytest
from builders import lively
from checkpoints import LLAMA, SMALL, assert_same, saved

from rlhf_jax.config import MeshConfig
from rlhf_jax.mesh import make_mesh
from rlhf_jax.models.convert import load as loading
from rlhf_jax.models.convert.load import load_pretrained
from rlhf_jax.models.convert.store import Store
from rlhf_jax.sharding import tree_shardings

WIDE = {
    "llama": dataclasses.replace(LLAMA, vocab=32, width=32, mlp=48),
    "gpt2": dataclasses.replace(SMALL["gpt2"], vocab=32, width=32, mlp=48),
    "gpt_neox": dataclasses.replace(SMALL["gpt_neox"], vocab=32, width=32, mlp=48),
    "opt": dataclasses.replace(SMALL["opt"], vocab=32, width=32, mlp=48),
}


class Spied(Store):
    """Counts the numbers that are read."""

    total = 0

    def read(self, name, ranges):
        box = super().read(name, ranges)
        Spied.total += box.size
        return box


@pytest.fixture
def spied(monkeypatch):
    monkeypatch.setattr(loading, "Store", Spied)
    monkeypatch.setattr(Spied, "total", 0)
    return Spied


@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize("mesh", [MeshConfig(2, 2, 2), MeshConfig(1, 8, 1), MeshConfig(1, 1, 4)])
def test_many_devices_get_the_values_of_one_each_its_part(tmp_path, name, mesh):
    folder, there = saved(tmp_path / "a", name, WIDE[name]), make_mesh(mesh)
    found = load_pretrained(folder, there).params
    assert_same(found, lively(WIDE[name]))
    shardings = tree_shardings(found, there)
    assert jax.tree.map(lambda x: x.sharding, found) == shardings
    for leaf, sharding in zip(jax.tree.leaves(found), jax.tree.leaves(shardings), strict=True):
        assert len(leaf.addressable_shards) == mesh.devices
        assert {shard.data.shape for shard in leaf.addressable_shards} == {sharding.shard_shape(leaf.shape)}
    kernel = found["layers"]["mlp"]["up"]["kernel"].addressable_shards[0].data
    assert kernel.shape == (2, 32 // mesh.fsdp, 48 // mesh.tensor)


@pytest.mark.parametrize("mesh", [MeshConfig(1, 1, 1), MeshConfig(2, 2, 2), MeshConfig(1, 4, 2), MeshConfig(8, 1, 1)])
def test_every_number_of_a_llama_is_read_once_on_any_mesh(tmp_path, spied, mesh):
    found = load_pretrained(saved(tmp_path / "a", "llama", WIDE["llama"]), make_mesh(mesh))
    count = sum(leaf.size for leaf in jax.tree.leaves(found.params))
    assert count <= spied.total <= 1.1 * count


@pytest.mark.parametrize(("name", "times"), [("gpt2", 1.0), ("opt", 1.0), ("gpt_neox", 3.0)])
def test_a_tensor_of_three_parts_is_read_part_by_part_where_it_can(tmp_path, spied, name, times):
    """In GPT-NeoX's the parts stand head by head, so that each is read with the others between."""
    found = load_pretrained(saved(tmp_path / "a", name, WIDE[name]), make_mesh(MeshConfig(1, 4, 2)))
    attention = found.params["layers"]["attention"]
    fused = sum(leaf.size for part in "qkv" for leaf in jax.tree.leaves(attention[part]))
    rest = sum(leaf.size for leaf in jax.tree.leaves(found.params)) - fused
    assert spied.total == rest + times * fused
