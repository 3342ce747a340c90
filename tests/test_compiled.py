"""A program is compiled once, or an error says what changed."""

from __future__ import annotations

import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from rlhf_jax.compiled import Recompiled, compile_function, compile_step
from rlhf_jax.config import MeshConfig
from rlhf_jax.mesh import make_mesh
from rlhf_jax.sharding import place


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
