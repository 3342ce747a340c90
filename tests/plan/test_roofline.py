"""Topologies, operations and times by hand."""

import jax
import jax.numpy as jnp
import pytest

from rlhf_jax.plan.chips import CHIPS, parse_topology
from rlhf_jax.plan.flops import matmul_flops
from rlhf_jax.plan.hlo import Collective
from rlhf_jax.plan.roofline import Cost
from rlhf_jax.plan.table import as_json, table, verdict


def test_topologies_are_read_and_others_refused():
    topology = parse_topology("v5p:4x4x4")
    assert (topology.chips, topology.chip, topology.name) == (64, CHIPS["v5p"], "v5p:4x4x4")
    with pytest.raises(KeyError, match="no chip 'v5x'; did you mean v5p or v5e"):
        parse_topology("v5x:4x4")
    for text in ("v5e", "v5e:4x", "4x4", "v5e:"):
        with pytest.raises(ValueError, match="expected CHIP:SHAPE, such as v5e:4x4"):
            parse_topology(text)
    for text, axes in {"v5e:4": 2, "v5p:4x4": 3, "h200:2x8": 1, "v5e:0x4": 2}.items():
        with pytest.raises(ValueError, match=f"has {axes} axes"):
            parse_topology(text)


def test_links_bring_more_where_a_torus_is_closed_and_all_of_it_takes_part():
    assert parse_topology("v5e:4x4").bandwidth(16) == 2 * 45e9  # two lines: one side each
    assert parse_topology("v5e:16x16").bandwidth(256) == 4 * 45e9  # two rings
    assert parse_topology("v5p:4x4x4").bandwidth(64) == 6 * 90e9
    assert parse_topology("v5p:4x4x4").bandwidth(4) == 2 * 90e9


def test_operations_are_counted_in_loops_branches_and_both_passes():
    x, w = jnp.ones((8, 16)), jnp.ones((3, 16, 16))
    one = 2 * 8 * 16 * 16

    def layers(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0].sum()

    assert matmul_flops(jax.make_jaxpr(layers)(x, w)) == 3 * one
    assert matmul_flops(jax.make_jaxpr(jax.grad(layers, (0, 1)))(x, w)) == 9 * one
    again = jax.grad(lambda x, w: jax.checkpoint(layers)(x, w), (0, 1))
    assert matmul_flops(jax.make_jaxpr(again)(x, w)) == 12 * one

    def decode(x, w):
        return jax.lax.while_loop(lambda s: s[0] < 7, lambda s: (s[0] + 1, s[1] @ w[0]), (0, x))[1]

    assert matmul_flops(jax.make_jaxpr(decode)(x, w), turns=7) == 7 * one
    either = jax.make_jaxpr(lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda: x @ w[0] @ w[1], lambda: x @ w[0]))(x, w)
    assert matmul_flops(either) == 2 * one
    grouped = jax.make_jaxpr(lambda a, b: jnp.einsum("bgqk,bgsk->bgqs", a, b))(
        jnp.ones((2, 3, 4, 5)), jnp.ones((2, 3, 6, 5))
    )
    assert matmul_flops(grouped) == 2 * 2 * 3 * 4 * 6 * 5


def cost(**changed) -> Cost:
    topology = parse_topology("v5e:2x2")
    known = {
        "name": "sft",
        "topology": topology,
        "flops": 4 * 197e12,
        "model_flops": 3 * 197e12,
        "arguments": 2**30,
        "peak": 2**33,
        "traffic": int(819e9 / 2),
        "collectives": (Collective("all-gather", int(60e9), 4, 4, "mlp"),),
        "kernels": ("splash_mha",),
        "compile_seconds": 1.0,
    }
    return Cost(**{**known, **changed})


def test_the_least_time_is_that_of_what_takes_longest():
    one = cost()
    # A second of computing, half a second of memory; 4 x 60 GB x 3/4 over two lines of 45 GB/s.
    assert (one.compute_seconds, one.link_seconds) == (1.0, 2.0)
    assert one.memory_seconds == pytest.approx(0.5)
    assert (one.seconds, one.serial_seconds, one.bound) == (2.0, 3.0, "links")
    assert one.utilisation == pytest.approx(3 / 4 / 2)
    assert cost(collectives=()).bound == "compute" and cost(collectives=()).utilisation == pytest.approx(0.75)


def test_the_table_says_what_fits():
    assert verdict([cost()]) == "fits: the largest needs 8.00 GiB of 16.00 GiB a chip"
    large = cost(peak=2**35, traffic=None, collectives=(), kernels=())
    assert verdict([cost(), large]) == "does not fit: sft needs 32.00 GiB of 16.00 GiB a chip"
    text = table([cost(), large])
    assert "| sft | 8.00 GiB | 1.00 GiB | 788 TFLOP | 1.00 s | 500 ms | 2.00 s | 2.00 s | 38 % | links |" in text
    assert "| does not fit |" in text and "4 all-gather (167.64 GiB); kernels splash_mha" in text
    told = as_json("any", [cost(), large])
    assert not told["fits"] and told["programs"][0]["collectives"]["all-gather"]["count"] == 4
