"""A program is compiled once, or an error says what changed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rlhf_jax.compiled import Recompiled, compile_function, compile_step
from rlhf_jax.config import MeshConfig
from rlhf_jax.mesh import make_mesh
from rlhf_jax.sharding import in_host_memory, place


def test_a_step_that_would_be_compiled_again_names_what_changed():
    step = compile_step(lambda state, batch: (state + batch["x"].sum(), {}), make_mesh(MeshConfig()))
    state = place(jnp.zeros(()), make_mesh(MeshConfig()))
    for _ in range(3):
        state, _ = step(state, {"x": jnp.ones((4, 8)), "y": jnp.ones(3)})
    with pytest.raises(
        Recompiled, match=r"2 kinds of arguments, and 1 expected: 2/x: float32\[4, 8\].* -> float32\[4, 9\]"
    ):
        step(state, {"x": jnp.ones((4, 9)), "y": jnp.ones(3)})


def test_batches_of_several_lengths_have_as_many_programs_and_no_more():
    step = compile_step(lambda state, x: (state + x.sum(), {}), make_mesh(MeshConfig()), 2)
    state = place(jnp.zeros(()), make_mesh(MeshConfig()))
    for length in (4, 8, 4, 8):
        state, _ = step(state, jnp.ones((2, length)))
    with pytest.raises(Recompiled, match=r"2: float32\[2, 4\] anywhere -> float32\[2, 16\]"):
        step(state, jnp.ones((2, 16)))


def test_a_function_may_be_compiled_for_anything_unless_it_is_told_otherwise():
    free, held = (compile_function(jnp.sum, make_mesh(MeshConfig()), programs) for programs in (None, 1))
    assert [float(free(jnp.ones(n))) for n in (1, 2, 3)] == [1, 2, 3]
    held(jnp.ones(1))
    with pytest.raises(Recompiled, match=r"0: float32\[1\].* -> int32\[1\]"):
        held(jnp.ones(1, jnp.int32))


def test_a_state_that_was_put_nowhere_is_laid_out_before_the_first_step_and_a_fresh_one_after_it():
    mesh = make_mesh(MeshConfig(fsdp=8))
    step = compile_step(lambda state, x: ({"up": {"kernel": state["up"]["kernel"] + x}}, {}), mesh)
    for _ in range(2):
        state = {"up": {"kernel": jnp.zeros((16, 4))}}
        for _ in range(3):
            state, _ = step(state, jnp.ones((16, 4)))
        assert state["up"]["kernel"].sharding.spec == PartitionSpec("fsdp")
        assert float(state["up"]["kernel"].sum()) == 3 * 64


@pytest.fixture
def pool():
    with ThreadPoolExecutor(2) as pool:
        yield pool


def counted(function):
    """(the function, what it was traced for)."""
    traced = []

    def counting(*args):
        traced.append(jax.tree.map(jnp.shape, args))
        return function(*args)

    return counting, traced


def test_what_was_compiled_ahead_is_what_calls_take(pool):
    add, traced = counted(lambda x, y: x + y)
    program = compile_function(add, make_mesh(MeshConfig()), 1)
    shapes, compiled = program.ahead(pool, jax.ShapeDtypeStruct((4,), jnp.float32), 2.0)
    assert shapes.shape == (4,) and traced == [((4,), ())]
    for _ in range(2):
        assert program(jnp.ones(4), 2.0).tolist() == [3.0] * 4
    assert compiled.done() and len(traced) == 1
    with pytest.raises(Recompiled, match=r"0: float32\[4\].* -> float32\[5\]"):
        program(jnp.ones(5), 2.0)


def test_a_step_compiled_ahead_reuses_the_memory_of_its_state(pool):
    mesh = make_mesh(MeshConfig(fsdp=8))
    add, traced = counted(lambda state, x: ({"up": {"kernel": state["up"]["kernel"] + x}}, {"sum": x.sum()}))
    step, state = compile_step(add, mesh), place({"up": {"kernel": jnp.zeros((16, 4))}}, mesh)
    (new, metrics), _ = step.ahead(pool, state, jnp.ones((16, 4)))
    assert new["up"]["kernel"].shape == (16, 4) and metrics["sum"].shape == ()
    first = state
    for _ in range(3):
        state, _ = step(state, jnp.ones((16, 4)))
    assert len(traced) == 1 and first["up"]["kernel"].is_deleted()
    assert float(state["up"]["kernel"].sum()) == 3 * 64


def test_arguments_that_lie_elsewhere_than_was_foreseen_are_served_all_the_same(pool):
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    double, _ = counted(lambda x: 2 * x)

    def laid(*axes):
        return jax.device_put(jnp.ones((8, 2)), NamedSharding(mesh, PartitionSpec(*axes)))

    program = compile_function(double, mesh)
    program.ahead(pool, laid(("data", "fsdp")))
    for axes in ((("data", "fsdp"),), ("fsdp",), (("data", "fsdp"),)):
        assert float(program(laid(*axes)).sum()) == 32


def test_a_program_compiled_ahead_takes_what_waits_in_host_memory(pool):
    mesh = make_mesh(MeshConfig(fsdp=8))
    double, traced = counted(lambda params: 2 * params["up"]["kernel"])
    params = in_host_memory(place({"up": {"kernel": jnp.ones((16, 4))}}, mesh))
    program = compile_function(double, mesh)
    program.ahead(pool, params)
    assert float(program(params).sum()) == 128 and len(traced) == 1
    assert program._early, "it was foreseen where they come to lie"


def test_a_search_for_nan_passes_by_what_was_compiled_ahead(pool):
    program = compile_function(jnp.log, make_mesh(MeshConfig()), 1)
    program.ahead(pool, jax.ShapeDtypeStruct((4,), jnp.float32))
    assert float(program(jnp.ones(4)).sum()) == 0
    with jax.debug_nans(True), pytest.raises(FloatingPointError, match="nan"):
        program(-jnp.ones(4))
    assert float(program(jnp.ones(4)).sum()) == 0
