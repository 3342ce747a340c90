from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from builders import GPT2, LLAMA, assert_trees_close, built, lively, right_padded
from jax.sharding import PartitionSpec

from rlhf_jax.compiled import compile_function, compile_step
from rlhf_jax.config import MeshConfig, Optim
from rlhf_jax.data.batching.batches import prompt_batches
from rlhf_jax.data.tokens.encode import Encoded
from rlhf_jax.mesh import AXES, compiler_options, device_order, make_mesh
from rlhf_jax.rollout.sampling import row_keys
from rlhf_jax.sharding import (
    batch_shardings,
    constrain,
    gathered,
    in_pieces,
    initialise,
    logical_axes,
    place,
    place_batch,
    spec_of,
    tree_shardings,
)
from rlhf_jax.train import init_state
from rlhf_jax.train.optimizer import make_optimizer

CUBE = MeshConfig(data=2, fsdp=2, tensor=2)


def test_a_mesh_bigger_than_the_machine_is_refused_with_its_sizes():
    with pytest.raises(ValueError, match=r"data=4, fsdp=2, tensor=2, context=1 needs 16 devices; there are 8"):
        make_mesh(MeshConfig(4, 2, 2))
    with pytest.raises(ValueError, match=r"needs 2 devices; there are 1"):
        make_mesh(MeshConfig(data=2), jax.devices()[:1])


def test_a_mesh_has_the_axes_asked_for_over_the_first_devices():
    mesh = make_mesh(MeshConfig(data=2, fsdp=1, tensor=3))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 1, "tensor": 3, "context": 1}
    assert mesh.axis_names == AXES
    assert mesh.devices.flatten().tolist() == jax.devices()[:6]
    assert all(kind == jax.sharding.AxisType.Auto for kind in mesh.axis_types)


@dataclasses.dataclass(frozen=True)
class Tpu:
    """What orders of devices are made from."""

    id: int
    coords: tuple[int, int, int]
    slice_index: int
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    core_on_chip: int = 0
    process_index: int = 0


def torus(slices: int, side: int = 4) -> list[Any]:
    places = [(number, x, y) for number in range(slices) for y in range(side) for x in range(side)]
    return [Tpu(place, (x, y, 0), number) for place, (number, x, y) in enumerate(places)]


def test_slices_are_crossed_by_data_alone_whatever_order_the_devices_come_in():
    devices = torus(2)
    mixed = [devices[place] for place in np.random.default_rng(0).permutation(len(devices))]
    order = device_order(MeshConfig(data=4, fsdp=4, tensor=2, slices=2), mixed)
    assert order.shape == (4, 4, 2, 1)
    assert len(set(order.flatten().tolist())) == 32
    assert [{device.slice_index for device in half.flatten()} for half in (order[:2], order[2:])] == [{0}, {1}]


def test_neighbours_along_an_axis_are_neighbours_in_the_torus():
    mixed = [torus(1)[place] for place in np.random.default_rng(0).permutation(16)]
    order = device_order(MeshConfig(fsdp=4, tensor=4), mixed)[0, :, :, 0]
    for line in (*order, *order.T):
        steps = [np.abs(np.subtract(a.coords, b.coords)).sum() for a, b in itertools.pairwise(line)]
        assert steps == [1, 1, 1]
    # Axes of the mesh may be pieces of those of the torus.
    assert len(set(device_order(MeshConfig(fsdp=8, tensor=2), mixed).flatten().tolist())) == 16


def test_a_mesh_for_two_slices_fits_one_as_well():
    two, one = MeshConfig(data=4, fsdp=4, slices=2), MeshConfig(data=4, fsdp=4)
    assert (device_order(two, torus(1)) == device_order(one, torus(1))).all()


def test_a_part_of_a_torus_and_other_devices_stand_as_they_come():
    assert device_order(MeshConfig(fsdp=6), torus(1)).flatten().tolist() == torus(1)[:6]
    mesh = make_mesh(MeshConfig(data=4, fsdp=2, slices=2))
    assert mesh.devices.flatten().tolist() == jax.devices()


@pytest.mark.parametrize(("slices", "there"), [(1, 2), (4, 2)])
def test_tpus_of_other_slices_than_the_mesh_says_are_refused(slices, there):
    with pytest.raises(ValueError, match=rf"slices={slices}: these devices are of {there} slices"):
        make_mesh(MeshConfig(data=4, fsdp=4 * there, slices=slices), torus(there))


@pytest.mark.parametrize(
    ("names", "shape", "config", "expected"),
    [
        (("embed", "heads", "head_dim"), (16, 4, 4), CUBE, (("fsdp",), ("tensor",))),
        (("batch", "length", None), (8, 5, 16), CUBE, (("data", "fsdp"),)),
        (("batch",), (8,), MeshConfig(data=8), (("data",),)),
        (("batch", "length", None), (4, 6, 16), MeshConfig(fsdp=4, context=2), (("fsdp",), ("context",))),
        (("batch", "length", None), (4, 5, 16), MeshConfig(fsdp=4, context=2), (("fsdp",),)),
        (("embed", "mlp"), (16, 24), MeshConfig(fsdp=4, context=2), (("fsdp", "context"),)),
        (("vocab", "embed"), (31, 16), CUBE, (None, ("fsdp",))),
        (("embed", "kv", "head_dim"), (16, 1, 4), CUBE, (("fsdp",),)),
        (("batch",), (2,), CUBE, ()),
        (("embed", "mlp"), (16, 24), MeshConfig(), ()),
        ((), (), CUBE, ()),
    ],
)
def test_a_dimension_is_split_where_its_axes_divide_it_and_replicated_elsewhere(names, shape, config, expected):
    assert spec_of(names, shape, make_mesh(config)) == PartitionSpec(*expected)


def test_names_and_dimensions_must_match():
    with pytest.raises(ValueError, match=r"zip\(\)"):
        spec_of(("embed",), (4, 4), make_mesh(CUBE))
    with pytest.raises(KeyError, match="embeds"):
        spec_of(("embeds",), (4,), make_mesh(CUBE))


def test_constrain_does_nothing_without_a_mesh_and_splits_rows_with_one():
    x = jnp.ones((8, 3))
    assert constrain(x, "batch", None) is x
    mesh = make_mesh(CUBE)
    out = compile_function(lambda x: constrain(x * 2.0, "batch", None), mesh)(x)
    assert out.addressable_shards[0].data.shape == (2, 3)
    np.testing.assert_array_equal(out, 2.0 * np.ones((8, 3)))


def test_a_gathered_parameter_is_whole_but_for_the_tensor_axis_and_its_gradient_in_pieces():
    mesh = make_mesh(CUBE)
    kernel = jax.device_put(
        jnp.arange(32.0).reshape(4, 8), tree_shardings({"up": {"kernel": jnp.ones((4, 8))}}, mesh)["up"]["kernel"]
    )
    assert kernel.sharding.spec == PartitionSpec("fsdp", "tensor")

    def run(kernel):
        return jax.value_and_grad(lambda k: jnp.sum(gathered(k, "embed", "mlp") ** 2))(kernel)

    assert gathered(kernel, "embed", "mlp") is kernel and not in_pieces()
    with jax.set_mesh(mesh):
        assert in_pieces()
        assert jax.jit(lambda k: gathered(k, "embed", "mlp"))(kernel).sharding.spec == PartitionSpec(None, "tensor")
        value, gradient = jax.jit(run)(kernel)
    assert gradient.sharding.spec == PartitionSpec("fsdp", "tensor")
    assert float(value) == float(jnp.sum(kernel**2))
    np.testing.assert_array_equal(gradient, 2 * kernel)
    with jax.set_mesh(make_mesh(MeshConfig(data=2, tensor=2))):
        assert not in_pieces(), "without fsdp parameters are split over the tensor axis alone"


@pytest.mark.parametrize("config", [LLAMA, dataclasses.replace(GPT2, tied=False)])
def test_every_matrix_of_a_model_has_named_dimensions(config):
    params = jax.eval_shape(built(dataclasses.replace(config, head="lm+scalar")).init, jax.random.key(0))
    for (path, names), leaf in zip(
        jax.tree_util.tree_leaves_with_path(logical_axes(params), is_leaf=lambda x: isinstance(x, tuple)),
        jax.tree.leaves(params),
        strict=True,
    ):
        keys = [entry.key for entry in path]
        assert len(names) == leaf.ndim
        assert (names[:1] == ("layers",)) == (keys[0] == "layers" and any(names)), keys
        if keys[-1] in ("kernel", "embedding") and keys[0] != "score":
            assert any(name not in (None, "layers") for name in names), keys


def test_the_layout_of_the_paths_by_hand():
    params = jax.eval_shape(built(dataclasses.replace(LLAMA, tied=False)).init, jax.random.key(0))
    axes = logical_axes(params)
    assert axes["tokens"]["embedding"] == ("vocab", "embed")
    assert axes["unembed"]["kernel"] == ("embed", "vocab")
    assert axes["layers"]["attention"]["o"]["kernel"] == ("layers", "heads", "head_dim", "embed")
    assert axes["layers"]["mlp"]["down"]["kernel"] == ("layers", "mlp", "embed")
    assert axes["final_norm"]["scale"] == (None,)


def test_moments_of_the_optimiser_live_where_their_parameters_do():
    tx = make_optimizer(Optim(lr=1.0, rows=4, steps=2))
    axes = logical_axes(init_state(lively(LLAMA), tx, ema=True))
    for name in ("mu", "nu"):
        assert optax.tree_utils.tree_get(axes.opt_state, name) == axes.params
    assert axes.ema == axes.params
    assert axes.step == ()


def test_what_adafactor_keeps_of_a_matrix_lies_where_its_inputs_and_outputs_do():
    tx = make_optimizer(Optim(lr=1.0, rows=4, steps=2, kind="adafactor"))
    params = lively(dataclasses.replace(GPT2, tied=False))
    nu = optax.tree_utils.tree_get(logical_axes(tx.init(params)), "nu")
    attention, mlp = nu["layers"]["attention"], nu["layers"]["mlp"]
    assert (attention["q"]["kernel"].row, attention["q"]["kernel"].col) == (
        ("layers", "embed"),
        ("layers", "heads", "head_dim"),
    )
    assert (attention["o"]["kernel"].row, attention["o"]["kernel"].col) == (
        ("layers", "heads", "head_dim"),
        ("layers", "embed"),
    )
    assert attention["q"]["bias"] == ("layers", "heads", "head_dim")
    assert (mlp["down"]["kernel"].row, mlp["down"]["kernel"].col) == (("layers", "mlp"), ("layers", "embed"))
    assert (nu["unembed"]["kernel"].row, nu["tokens"]["embedding"].row) == (("embed",), ("vocab",))
    assert (nu["places"]["embedding"].row, nu["places"]["embedding"].col) == ((None,), ("embed",))


STATES = [{"kind": "adafactor"}, {"moments": "bfloat16", "eps": 1e-2}]


@pytest.mark.parametrize("how", STATES, ids=str)
@pytest.mark.parametrize("config", [CUBE, MeshConfig(1, 4, 2)], ids=str)
def test_two_updates_of_small_states_on_eight_devices_are_those_on_one(how, config):
    lr = 0.1
    tx = make_optimizer(Optim(lr=lr, rows=4, steps=4, weight_decay=0.01, **how))

    def update(state):
        params, kept = state
        grads = jax.tree.map(lambda x: jnp.cos(7.0 * x) + x, params)
        updates, kept = tx.update(grads, kept, params)
        return (optax.apply_updates(params, updates), kept), {}

    whole = lively(GPT2)
    attention, norm = whole["layers"]["attention"], whole["layers"]["mlp_norm"]
    start = {"layers": {"q": attention["q"], "o": attention["o"], "mlp_norm": norm}, "tokens": whole["tokens"]}
    runs = []
    for mesh in (make_mesh(MeshConfig()), make_mesh(config)):
        step, state = compile_step(update, mesh), place((jax.tree.map(jnp.copy, start), tx.init(start)), mesh)
        runs.append([])
        for _ in range(2):
            state, _ = step(state)
            runs[-1].append(jax.tree.map(np.asarray, state))
    exact, beside = "kind" in how, jax.tree.map(lambda x: np.zeros(x.shape, bool), start)
    for one, other in zip(*runs, strict=True):
        # Rounded by chance, a moment may come out as the bfloat16 beside it where sums are added up in another order: up to 2^-7 of
        # itself away, and the update of its parameter with it. All others are the same.
        assert_trees_close(one[1], other[1], **({"atol": 1e-5} if exact else {"atol": 0.0, "rtol": 2**-7}))
        for name in () if exact else ("mu", "nu"):
            moments = (optax.tree_utils.tree_get(kept, name) for _, kept in (one, other))
            beside = jax.tree.map(lambda before, x, y: before | (x != y), beside, *moments)
        assert_trees_close(one[0], other[0], atol=1e-5 if exact else lr * 2**-7)
        same = jax.tree.map(lambda x, y, apart: np.where(apart, x, y), one[0], other[0], beside)
        assert_trees_close(one[0], same, atol=1e-5)
    assert np.concatenate([x.ravel() for x in jax.tree.leaves(beside)]).mean() < 0.01
    eight = state
    kept = jax.tree.leaves(optax.tree_utils.tree_get(eight[1], "nu"))
    split = [x.addressable_shards[0].data.size < x.size for x in kept]
    assert sum(split) >= len(split) / 2


def test_parameters_and_moments_are_really_split():
    mesh = make_mesh(CUBE)
    tx = make_optimizer(Optim(lr=1.0, rows=4, steps=2))
    state = place(init_state(lively(LLAMA), tx), mesh)
    moments = optax.tree_utils.tree_get(state.opt_state, "mu")
    for tree in (state.params, moments):
        shard = {
            "q": tree["layers"]["attention"]["q"]["kernel"],
            "k": tree["layers"]["attention"]["k"]["kernel"],
            "embedding": tree["tokens"]["embedding"],
            "norm": tree["final_norm"]["scale"],
        }
        assert {name: x.addressable_shards[0].data.shape for name, x in shard.items()} == {
            "q": (2, 8, 2, 4),  # layers, width / fsdp, heads / tensor, head
            "k": (2, 8, 1, 4),
            "embedding": (16, 8),
            "norm": (16,),
        }


def test_one_key_value_head_on_two_tensor_devices_is_replicated():
    params = place(lively(dataclasses.replace(LLAMA, kv_heads=1)), make_mesh(CUBE))
    assert params["layers"]["attention"]["k"]["kernel"].addressable_shards[0].data.shape == (2, 8, 1, 4)


def test_rows_of_a_batch_are_dealt_and_scalars_stay():
    mesh = make_mesh(CUBE)
    batch = {"tokens": np.arange(24).reshape(8, 3), "temperature": np.float32(0.7)}
    placed = place_batch(batch, mesh)
    assert placed["tokens"].addressable_shards[0].data.shape == (2, 3)
    assert placed["temperature"].sharding.is_fully_replicated
    np.testing.assert_array_equal(placed["tokens"], batch["tokens"])
    assert batch_shardings(batch, mesh)["tokens"].spec == PartitionSpec(("data", "fsdp"))


def test_devices_share_an_epoch_out_every_prompt_once_and_no_two_samples_share_their_noise():
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    batches = prompt_batches([Encoded((1, 10 + n), head=1) for n in range(32)], rows=8, length=3, pad=0, seed=1)
    seen, noise = [], []
    for step in range(4):
        index = np.repeat(np.asarray(batches[step].index), 2)
        sample = np.tile(np.arange(2, dtype=np.int32), 8)
        keys = row_keys(jax.random.key(1), step, index, sample)
        rows, keys = place_batch((index, jax.random.key_data(keys)), mesh)
        # What one device has: its own two rows of this step, the two samples of one prompt.
        parts = [np.unique(shard.data).tolist() for shard in rows.addressable_shards]
        assert [len(part) for part in parts] == [1] * 8
        seen += [place for part in parts for place in part]
        noise += [tuple(row) for shard in keys.addressable_shards for row in np.asarray(shard.data).tolist()]
    assert sorted(seen) == list(range(32))
    assert seen != sorted(seen)
    assert len(set(noise)) == 64


def test_parameters_made_on_a_mesh_are_those_made_on_one_device():
    model, mesh, key = built(LLAMA), make_mesh(CUBE), jax.random.key(3)
    made = initialise(model.init, key, mesh=mesh)
    assert made["tokens"]["embedding"].addressable_shards[0].data.shape == (16, 8)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), made, jax.jit(model.init)(key))


def test_a_compiled_step_keeps_the_layout_and_gives_the_memory_of_the_state_back():
    mesh = make_mesh(CUBE)
    state = place(jax.tree.map(jnp.copy, lively(LLAMA)), mesh)
    step = compile_step(lambda state, x: (jax.tree.map(lambda leaf: leaf + x, state), {"x": x}), mesh)
    new, metrics = step(state, jnp.float32(1.0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert float(metrics["x"]) == 1.0
    for leaf, sharding in zip(jax.tree.leaves(new), jax.tree.leaves(tree_shardings(new, mesh)), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    np.testing.assert_allclose(new["tokens"]["embedding"], lively(LLAMA)["tokens"]["embedding"] + 1.0)


def test_a_new_state_is_laid_out_like_the_old_even_where_the_step_says_nothing_of_it():
    mesh = make_mesh(CUBE)
    step = compile_step(lambda state, x: (jax.tree.map(lambda leaf: jnp.full(leaf.shape, x), state), {}), mesh)
    new, _ = step(place({"q": {"kernel": jnp.ones((16, 4, 4))}}, mesh), jnp.float32(2.0))
    assert new["q"]["kernel"].addressable_shards[0].data.shape == (8, 2, 4)


def test_a_compiled_function_leaves_its_arguments_alive():
    mesh = make_mesh(MeshConfig(data=2))
    params, batch = place(lively(LLAMA), mesh), place_batch(right_padded([4, 5], 6), mesh)
    compile_function(built(LLAMA).logprobs, mesh)(params, batch, 1.0)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((params, batch)))


def test_a_step_can_be_lowered_from_shapes_alone():
    mesh = make_mesh(MeshConfig(fsdp=2))
    shapes = jax.eval_shape(built(LLAMA).init, jax.random.key(0))
    lowered = compile_step(lambda state: (state, {}), mesh).lower(shapes)
    assert "stablehlo" in lowered.as_text()


def test_a_step_is_compiled_once_whatever_layout_its_results_say_they_have(caplog):
    mesh = make_mesh(MeshConfig(fsdp=2))
    step = compile_step(lambda state, x: (jax.tree.map(lambda p: p + jnp.mean(x), state), {}), mesh)
    state = place({"up": {"kernel": jnp.ones((4, 4))}, "count": jnp.zeros(())}, mesh)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        for _ in range(3):
            state, _ = step(state, place_batch(np.ones((2, 3), np.float32), mesh))
    compiled = [record for record in caplog.records if "XLA compilation of jit(laid_out)" in record.getMessage()]
    assert len(compiled) == 1


@pytest.mark.parametrize(("devices", "expected"), [(1, False), (8, True)])
def test_only_a_cpu_that_stands_for_several_devices_runs_its_collectives_one_by_one(devices, expected):
    mesh = make_mesh(MeshConfig(devices, 1, 1))
    assert (compiler_options(mesh) is not None) == expected
    # XLA knows the option: a name of its own it would refuse here.
    np.testing.assert_array_equal(compile_function(lambda x: 2 * x, mesh)(jnp.arange(8.0)), 2 * jnp.arange(8.0))
