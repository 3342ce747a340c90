"""Numbers that lanes have each their own are computed with as those of Python are, and say when they cannot be."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax.config import PPO, Optim
from rlhf_jax.lanes.numbers import Decides, Number, with_numbers

VALUES = (0.5, 0.999, 3.0)


def of_each(function, values=VALUES):
    """The function of every lane's number, under one vmap."""
    return jax.vmap(lambda lane: function(Number(("x",), values, lane)))(jnp.arange(len(values)))


FUNCTIONS = {
    "1 - x": lambda x: 1 - x,
    "x / 3": lambda x: x / 3,
    "2 / x": lambda x: 2 / x,
    "x * x": lambda x: x * x,
    "-abs(x) + 1": lambda x: -abs(+x) + 1,
    "7 // x % 2": lambda x: 7 // x % 2,
    "x ** 2": lambda x: x**2,
    "2 ** x": lambda x: 2**x,
    "array * x": lambda x: jnp.float32(0.3) * x,
    "x * array": lambda x: x * jnp.float32(0.3),
    "x - array": lambda x: x - jnp.float32(0.3),
    "x ** array": lambda x: x ** jnp.int32(3),
    "clip": lambda x: jnp.clip(jnp.float32(0.9), 1 - x / 10, 1 + x),
    "maximum": lambda x: jnp.maximum(x, jnp.float32(0.7)),
    "where": lambda x: jnp.where(jnp.float32(0.6) < x, x, 0.0),
    "asarray": lambda x: jnp.asarray(x, jnp.float32),
    "under jit": lambda x: jax.jit(lambda y: 1 - y)(x) * jnp.float32(1),
    "Adam's correction": lambda x: optax.bias_correction(jnp.float32(0.2), x / 4, jnp.int32(3)),
    "a schedule": lambda x: optax.cosine_decay_schedule(x, 10, alpha=0.1)(jnp.int32(3)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_computed_is_what_each_lane_computes_from_its_own_number(name):
    alone = [FUNCTIONS[name](jnp.float32(value) if name == "under jit" else value) for value in VALUES]
    found = of_each(lambda x: jnp.asarray(FUNCTIONS[name](x)))
    np.testing.assert_allclose(found, np.array(alone, np.float32), rtol=2e-7)


def test_what_python_computes_is_rounded_once_as_in_a_run_alone():
    # In float32, 1 - 0.999 is 2 in 100,000 off.
    assert of_each(lambda x: jnp.asarray(1 - x))[1] == np.float32(1 - 0.999) != np.float32(1) - np.float32(0.999)


def test_a_number_is_as_weakly_typed_as_one_of_python():
    assert of_each(lambda x: jnp.bfloat16(2) * x).dtype == jnp.bfloat16


def test_python_may_ask_what_all_lanes_agree_on():
    number = Number(("x",), VALUES, jnp.int32(0))
    assert number and number > 0 and number >= 0.5 and number != 7 and not number < 0
    assert number is not None and number not in (1.0, 2.0) and number != "text"
    same = Number(("y",), (2.0, 2.0, 2.0), jnp.int32(0))
    assert float(same) == 2.0 == int(same) and 2 * number > same - 2
    with pytest.raises(Decides, match=r"x decides what is compiled, and lanes have 0\.5, 0\.999, 3\.0"):
        bool(number > 0.7)
    with pytest.raises(Decides, match="x and y"):
        bool(number < same)
    for ask in (float, int, math.log, np.asarray, hash):
        with pytest.raises(Decides):
            ask(number)


def test_a_config_has_numbers_where_lanes_differ_and_nothing_else():
    optims = [Optim(lr=lr, rows=8, max_grad_norm=norm) for lr, norm in ((0.1, 1.0), (0.2, 2.0))]
    made = [PPO(optim=o, value_optim=None, iterations=3, prompts=8, new_tokens=4, clip=0.2) for o in optims]
    merged = with_numbers(made, jnp.int32(0))
    assert merged.clip == 0.2 and merged.optim.rows == 8 and merged.value_optim is None
    assert merged.optim.lr.values == (0.1, 0.2) and merged.optim.lr.names == ("optim.lr",)
    assert merged.policy_optim.steps == 3  # which is checked again
    assert with_numbers(made[:1] * 2, jnp.int32(0)) == made[0]


@pytest.mark.parametrize("changes", [{"iterations": 4}, {"baseline": "none"}, {"value_clip": None}])
def test_where_lanes_differ_in_anything_else_they_cannot_share(changes):
    one = PPO(optim=Optim(lr=0.1, rows=8), value_optim=None, iterations=3, prompts=8, new_tokens=4)
    with pytest.raises(Decides, match=f"{next(iter(changes))} decides"):
        with_numbers([one, dataclasses.replace(one, **changes)], jnp.int32(0))
