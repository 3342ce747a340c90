"""A compiled program's text: loops count as often as they run, a collective counts once however many pieces it has."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from rlhf_jax.config import MeshConfig
from rlhf_jax.mesh import make_mesh
from rlhf_jax.plan.hlo import Program

TEXT = """HloModule m, entry_computation_layout={...}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%piece (p: bf16[2,8]) -> bf16[8,8] {
  %p = bf16[2,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %g1 = bf16[8,8]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, replica_groups=mesh['x'=4,'y'=2] {'x'}, dimensions={0}
}

%sliced (s: f32[6,4,4], i: s32[]) -> f32[4,4] {
  %s = f32[6,4,4]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %d = f32[1,4,4]{2,1,0} dynamic-slice(%s, %i, %zero, %zero), dynamic_slice_sizes={1,4,4}
  ROOT %r = f32[4,4]{1,0} bitcast(%d)
}

%body (t: (s32[], f32[6,4,4], f32[4,4])) -> (s32[], f32[6,4,4], f32[4,4]) {
  %t = (s32[], f32[6,4,4], f32[4,4]) parameter(0)
  %n = s32[] get-tuple-element(%t), index=0
  %stack = f32[6,4,4]{2,1,0} get-tuple-element(%t), index=1
  %x = f32[4,4]{1,0} get-tuple-element(%t), index=2
  %w = f32[4,4]{1,0} fusion(%stack, %n), kind=kLoop, calls=%sliced
  %splash_mha.3 = bf16[2,8]{1,0:T(8,128)(2,1)S(1)} custom-call(%w), custom_call_target="tpu_custom_call"
  %start = bf16[8,8]{1,0:T(8,128)(2,1)S(1)} fusion(%splash_mha.3), kind=kCustom, calls=%piece
  %done = bf16[8,8]{1,0:T(8,128)(2,1)S(1)} fusion(%splash_mha.3), kind=kCustom, calls=%piece
  %all = f32[4,4]{1,0} all-reduce(%w), channel_id=9, replica_groups=[2,4]<=[8], to_apply=%add, metadata={op_name="mlp/down"}
  ROOT %out = (s32[], f32[6,4,4], f32[4,4]) tuple(%n, %stack, %all)
}

%turns (t: (s32[], f32[6,4,4], f32[4,4])) -> pred[] {
  %t = (s32[], f32[6,4,4], f32[4,4]) parameter(0)
  %n = s32[] get-tuple-element(%t), index=0
  %last = s32[] constant(6)
  ROOT %more = pred[] compare(%n, %last), direction=LT
}

ENTRY %main (stack: f32[6,4,4], x: f32[4,4]) -> f32[4,4] {
  %stack = f32[6,4,4]{2,1,0} parameter(0)
  %x = f32[4,4]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %begin = (s32[], f32[6,4,4], f32[4,4]) tuple(%zero, %stack, %x)
  %end = (s32[], f32[6,4,4], f32[4,4]) while(%begin), condition=%turns, body=%body
  %y = f32[4,4]{1,0} get-tuple-element(%end), index=2
  ROOT %part = f32[1,4]{1,0} reduce-scatter(%y), channel_id=11, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}, to_apply=%add
}
"""


def test_loops_count_as_often_as_they_run_and_pieces_of_one_collective_once():
    found = {(each.kind, each.group): each for each in Program(TEXT).collectives}
    assert set(found) == {("all-gather", 4), ("all-reduce", 4), ("reduce-scatter", 4)}
    gathered, summed, scattered = (found[key] for key in sorted(found))
    assert (gathered.times, gathered.bytes) == (6, 8 * 8 * 2)
    assert (summed.times, summed.bytes, summed.where) == (6, 4 * 4 * 4, "mlp/down")
    assert (scattered.times, scattered.bytes) == (1, 4 * 4 * 4)
    # Rings: a chip receives three quarters of what comes out, twice that for a sum that all get.
    assert gathered.moved == 6 * 128 * 3 / 4
    assert summed.moved == 6 * 64 * 2 * 3 / 4
    assert scattered.moved == 64 * 3 / 4


def test_traffic_is_slices_where_slices_are_read_and_nothing_of_what_stays_near():
    body = 2 * 64 + 4 + 64 + 2 * 64  # the slice in and out with its number; to the kernel; the sum in and out
    assert Program(TEXT).traffic == 6 * body + 64 + 16
    assert Program(TEXT).kernels == ("splash_mha",)
    assert Program(TEXT).instructions == 3 + 2 + 5 + 10 + 4 + 7


INSIDE = """HloModule m

%one (s: bf16[6,4,4], i: s32[]) -> bf16[4,4] {
  %s = bf16[6,4,4]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %d = bf16[1,4,4]{2,1,0} dynamic-slice(%s, %i, %zero, %zero), dynamic_slice_sizes={1,4,4}
  ROOT %r = bf16[4,4]{1,0} bitcast(%d)
}

%product (x: bf16[4,4], stack: bf16[6,4,4], i: s32[]) -> f32[4,4] {
  %x = bf16[4,4]{1,0} parameter(0)
  %stack = bf16[6,4,4]{2,1,0} parameter(1)
  %i = s32[] parameter(2)
  %w = bf16[4,4]{1,0} fusion(%stack, %i), kind=kLoop, calls=%one
  ROOT %y = f32[4,4]{1,0} convolution(%x, %w), dim_labels=bf_io->bf
}

%whole (s: bf16[6,4,4], i: s32[]) -> bf16[4,4] {
  %s = bf16[6,4,4]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %d = bf16[1,4,4]{2,1,0} dynamic-slice(%s, %i, %zero, %zero), dynamic_slice_sizes={1,4,4}
  %sum = bf16[4,4]{1,0} reduce(%s, %zero), dimensions={0}, to_apply=%add
  %r = bf16[4,4]{1,0} bitcast(%d)
  ROOT %both = bf16[4,4]{1,0} add(%r, %sum)
}

%put (t: f32[6,4,4], x: f32[4,4], i: s32[]) -> f32[6,4,4] {
  %t = f32[6,4,4]{2,1,0} parameter(0)
  %x = f32[4,4]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  %u = f32[1,4,4]{2,1,0} bitcast(%x)
  ROOT %d = f32[6,4,4]{2,1,0} dynamic-update-slice(%t, %u, %i, %zero, %zero)
}

%kept (t: f32[6,4,4], x: f32[4,4], i: s32[]) -> f32[6,4,4] {
  %t = f32[6,4,4]{2,1,0} parameter(0)
  %x = f32[4,4]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %p = f32[6,4,4]{2,1,0} fusion(%t, %x, %i), kind=kLoop, calls=%put
}

ENTRY %main (x: bf16[4,4], stack: bf16[6,4,4], all: f32[6,4,4], i: s32[]) -> f32[6,4,4] {
  %x = bf16[4,4]{1,0} parameter(0)
  %stack = bf16[6,4,4]{2,1,0} parameter(1)
  %all = f32[6,4,4]{2,1,0} parameter(2)
  %i = s32[] parameter(3)
  %y = f32[4,4]{1,0} fusion(%x, %stack, %i), kind=kOutput, calls=%product
  %z = bf16[4,4]{1,0} fusion(%stack, %i), kind=kLoop, calls=%whole
  ROOT %out = f32[6,4,4]{2,1,0} fusion(%all, %y, %i), kind=kLoop, calls=%kept
}
"""


def test_traffic_is_slices_where_a_fusion_inside_a_fusion_takes_them():
    product = 32 + 32 + 4 + 64  # the operand, the slice of the stack, its number, and what comes out
    whole = 192 + 4 + 32  # a stack that is added up as well is read whole
    kept = 64 + 4 + 64  # the new part, its number, and the part of the old that it takes the place of
    assert Program(INSIDE).traffic == product + whole + kept


def test_a_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="it has no ENTRY"):
        Program("HloModule m")


def test_it_reads_what_this_machine_compiles():
    mesh = make_mesh(MeshConfig(fsdp=8))
    rows, whole = (NamedSharding(mesh, spec) for spec in (PartitionSpec(("data", "fsdp")), PartitionSpec()))

    def run(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0].sum()

    x, w = jax.ShapeDtypeStruct((16, 32), jnp.float32), jax.ShapeDtypeStruct((5, 32, 32), jnp.float32)
    with jax.set_mesh(mesh):
        weights = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
        text = jax.jit(run, in_shardings=(rows, weights), out_shardings=whole).lower(x, w).compile().as_text()
    assert text is not None
    found = {each.kind: each for each in Program(text).collectives}
    assert found["all-gather"].group == 8 and found["all-gather"].times * found["all-gather"].bytes == 5 * 32 * 32 * 4
    assert found["all-reduce"].times == 1


@pytest.mark.parametrize("swapped", [False, True])
def test_of_the_branches_of_a_condition_the_one_that_touches_most_counts(swapped):
    def much(x):
        return jnp.cumsum(x[::-1] * 2.0)

    branches = (much, lambda x: x)
    both = jax.jit(lambda p, x: jax.lax.cond(p, *(branches[::-1] if swapped else branches), x))
    x, p = jax.ShapeDtypeStruct((4096,), jnp.float32), jax.ShapeDtypeStruct((), jnp.bool_)
    one, other = (Program(jax.jit(each).lower(x).compile().as_text()).traffic for each in branches)
    found = Program(both.lower(p, x).compile().as_text()).traffic
    assert one > 2 * other and one <= found <= one + 2 * x.size * 4 + 8, (one, other, found)
