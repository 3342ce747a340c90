"""Critics: two Q and a V of one trunk, each of the state before its token."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from builders import LLAMA, built, critics_of, jitted, lively, lively_critics, right_padded

from rlhf_jax.models.critics import build_critics

LENGTHS, WIDTH = [9, 5, 3], 9


def test_q_and_v_of_a_token_are_those_of_the_state_before_it():
    critics, params, batch = critics_of(LLAMA), lively_critics(LLAMA), right_padded(LENGTHS, WIDTH)
    found = jitted(critics.values)(params, batch)
    hidden = jitted(critics.trunk.hidden)(params["trunk"], batch)
    q1, q2, v = critics.heads(params, hidden)
    for row, length in enumerate(LENGTHS):
        for t in range(1, length):
            token = int(batch.tokens[row, t])
            before = q1[row, t - 1], q2[row, t - 1]
            expected = [*(q[token] for q in before), *(jax.nn.logsumexp(q) for q in before), v[row, t - 1]]
            at = [float(x[row, t]) for x in (found.q1, found.q2, found.norm1, found.norm2, found.v)]
            np.testing.assert_allclose(at, expected, atol=1e-5)
        for x in jax.tree.leaves(found):
            assert float(x[row, 0]) == 0 and not x[row, length:].any()


def test_the_heads_are_the_critics_own_where_the_policy_ties_its_own():
    assert LLAMA.tied
    params = lively_critics(LLAMA)
    assert sorted(params) == ["q1", "q2", "trunk", "v"]
    assert sorted(params["trunk"]) == sorted(name for name in lively(LLAMA) if name != "unembed")


def test_fresh_critics_expect_nothing_and_differ():
    critics = build_critics(dataclasses.replace(LLAMA, dtype="bfloat16"))
    params = jax.jit(critics.init)(jax.random.key(0))
    seen = jax.jit(critics.values)(params, right_padded(LENGTHS, WIDTH))
    assert not seen.v.any()
    assert float(jnp.abs(seen.q1).max()) < 1 and float(jnp.abs(seen.q1 - seen.q2).max()) > 1e-3
    assert seen.q1.dtype == jnp.float32
    fresh = jax.jit(built(LLAMA).init)(jax.random.key(0))
    assert jax.tree.structure(params["trunk"]) == jax.tree.structure(fresh)
