from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax.config import Optim
from rlhf_jax.train.optimizer import (
    is_matrix,
    learning_rate,
    make_optimizer,
    scale_by_adam_tf1,
    stochastic_bfloat16,
    with_bfloat16_moments,
)


def rates(**how):
    schedule = learning_rate(Optim(rows=1, **how))
    return [float(schedule(step)) for step in range(how["steps"])]


def test_the_linear_schedule_falls_to_nothing_after_the_last_update():
    assert rates(lr=1.0, steps=4, schedule="linear") == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_the_other_schedules_by_hand():
    assert rates(lr=2.0, steps=3, schedule="constant") == [2.0, 2.0, 2.0]
    expected = [0.5 * (1 + math.cos(math.pi * n / 4)) for n in range(4)]
    assert rates(lr=1.0, steps=4, schedule="cosine") == pytest.approx(expected)
    assert rates(lr=2.0, steps=4, schedule="linear", final_lr=0.5) == pytest.approx([2.0, 1.75, 1.5, 1.25])
    assert learning_rate(Optim(lr=2.0, rows=1, steps=4, final_lr=0.1))(4) == pytest.approx(0.2)


def test_warm_up_wastes_no_update_and_leads_into_the_decay():
    warm = rates(lr=1.0, steps=8, warmup=4, schedule="linear")
    assert warm[0] == pytest.approx(0.25)
    assert all(a < b for a, b in itertools.pairwise(warm[:5]))
    assert warm[4:] == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_a_schedule_without_an_end_is_refused():
    with pytest.raises(ValueError, match=r"optim.steps is not set"):
        learning_rate(Optim(lr=1.0, rows=1))


def one_update(config: Optim, params, grads, times: int = 1):
    tx = make_optimizer(config)
    state = tx.init(params)
    for _ in range(times):
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize(
    ("adam", "gradient", "expected"),
    [("torch", 1e-5, 0.5), ("torch", 1e-3, 0.990099), ("tf1", 1e-5, 0.030655), ("tf1", 1e-3, 0.759747)],
)
def test_eps_stands_beside_the_root_of_the_corrected_moment_or_of_the_raw_one(adam, gradient, expected):
    config = Optim(lr=1.0, rows=1, steps=10, schedule="constant", b2=0.999, eps=1e-5, max_grad_norm=None, adam=adam)
    params = one_update(config, {"x": jnp.zeros(())}, {"x": jnp.float32(gradient)})
    np.testing.assert_allclose(params["x"], -expected, rtol=1e-4)


def test_three_updates_of_tensorflows_adam_by_its_formula_and_its_state_is_that_of_optax():
    gradients, b1, b2, eps, m, v, x = [0.3, -0.1, 0.2], 0.8, 0.9, 0.1, 0.0, 0.0, 0.0
    for t, g in enumerate(gradients, start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        x += m * math.sqrt(1 - b2**t) / (1 - b1**t) / (math.sqrt(v) + eps)
    tx, params = scale_by_adam_tf1(b1, b2, eps), {"x": jnp.zeros(())}
    state = tx.init(params)
    assert jax.tree.structure(state) == jax.tree.structure(optax.scale_by_adam(b1, b2).init(params))
    for g in gradients:
        updates, state = tx.update({"x": jnp.float32(g)}, state)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["x"], x, rtol=1e-5)


def test_without_eps_both_adams_are_one_and_parameters_keep_their_dtype():
    grads = [{"x": jnp.array([0.3, -2.0])}, {"x": jnp.array([0.1, 0.5])}]
    first, second = optax.scale_by_adam(0.9, 0.95, 0.0), scale_by_adam_tf1(0.9, 0.95, 0.0)
    one, other = first.init(grads[0]), second.init(grads[0])
    for g in grads:
        (a, one), (b, other) = first.update(g, one), second.update(g, other)
        np.testing.assert_allclose(a["x"], b["x"], rtol=1e-5)
    half = {"x": jnp.ones(2, jnp.bfloat16)}
    assert second.update(half, second.init(half))[0]["x"].dtype == jnp.bfloat16


def test_two_updates_of_adam_by_hand():
    config = Optim(lr=0.1, rows=1, steps=2, schedule="linear", b1=0.5, b2=0.75, eps=1e-8, max_grad_norm=None)
    params = one_update(config, {"x": jnp.zeros(())}, {"x": jnp.float32(3.0)}, times=2)
    # A constant gradient moves by the learning rate: .1, then .05.
    np.testing.assert_allclose(params["x"], -0.15, rtol=1e-5)


def test_gradients_are_clipped_by_their_norm_over_all_leaves():
    grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    config = Optim(lr=1.0, rows=1, steps=9, schedule="constant", b1=0.0, b2=0.0, eps=1e3, max_grad_norm=1.0)
    params = one_update(config, {"a": jnp.zeros(1), "b": jnp.zeros(1)}, grads)
    # With eps >> |g| Adam is a small multiple of the gradient.
    np.testing.assert_allclose([params["a"][0], params["b"][0]], [-0.6e-3, -0.8e-3], rtol=2e-3)
    small = jax.tree.map(lambda g: g / 10, grads)
    params = one_update(config, {"a": jnp.zeros(1), "b": jnp.zeros(1)}, small)
    np.testing.assert_allclose([params["a"][0], params["b"][0]], [-0.3e-3, -0.4e-3], rtol=2e-3)


def test_only_matrices_decay_and_in_step_with_the_learning_rate():
    params = {
        "q": {"kernel": jnp.ones(2), "bias": jnp.ones(2)},
        "norm": {"scale": jnp.ones(2)},
        "t": {"embedding": jnp.ones(2)},
    }
    config = Optim(lr=0.5, rows=1, steps=9, schedule="constant", weight_decay=0.1)
    after = one_update(config, params, jax.tree.map(jnp.zeros_like, params))
    np.testing.assert_allclose(after["q"]["kernel"], 1 - 0.5 * 0.1)
    np.testing.assert_allclose(after["t"]["embedding"], 1 - 0.5 * 0.1)
    np.testing.assert_array_equal(after["q"]["bias"], 1.0)
    np.testing.assert_array_equal(after["norm"]["scale"], 1.0)


@pytest.mark.parametrize("params", [jnp.ones(2), [jnp.ones(2)], (jnp.ones(1), {"kernel": jnp.ones(1)})])
def test_parameter_trees_of_other_people_can_be_lists_or_single_arrays(params):
    marked = jax.tree.leaves(is_matrix(params))
    assert sum(marked) == (isinstance(params, tuple))
    after = one_update(Optim(lr=0.1, rows=1, steps=1), params, jax.tree.map(jnp.ones_like, params))
    assert all(np.all(leaf < 1.0) for leaf in jax.tree.leaves(after))


def test_rounding_by_chance_is_right_in_the_mean_leaves_what_fits_and_passes_on_what_is_not_finite():
    x = jnp.full(20_000, 1.0 + 0.3 / 128, jnp.float32)  # three tenths of the way from 1 to the next bfloat16
    rounded = np.asarray(stochastic_bfloat16(x, jax.random.key(0)).astype(jnp.float32))
    assert set(rounded.tolist()) == {1.0, 1.0 + 1 / 128}
    np.testing.assert_allclose((rounded > 1.0).mean(), 0.3, atol=0.015)
    exact = jnp.array([0.0, -1.5, 2.0**-130, jnp.inf, -jnp.inf], jnp.float32)
    np.testing.assert_array_equal(stochastic_bfloat16(exact, jax.random.key(1)).astype(jnp.float32), exact)
    assert jnp.isnan(stochastic_bfloat16(jnp.float32(jnp.nan), jax.random.key(2)))


def second_moment(tx: optax.GradientTransformation, gradients) -> np.ndarray:
    """What the optimiser keeps of the second moment of many parameters that all get the same gradients."""

    def one(state, gradient):
        return tx.update({"x": jnp.full(256, gradient)}, state)[1], None

    start = tx.init({"x": jnp.zeros(256)})
    state: optax.ScaleByAdamState = jax.jit(lambda: jax.lax.scan(one, start, gradients)[0])()
    return np.asarray(state.nu["x"].astype(jnp.float32))


def test_second_moments_in_bfloat16_follow_gradients_that_fall_where_rounding_to_the_nearest_would_not():
    gradients = jnp.array([1.0] * 50 + [0.1] * 2000)
    adam = optax.scale_by_adam(0.9, 0.999)

    def nearest(updates, state, params=None):
        updates, state = adam.update(updates, state, params)
        return updates, state._replace(nu=jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(x.dtype), state.nu))

    exact = second_moment(adam, gradients)[0]
    stuck = second_moment(optax.GradientTransformation(adam.init, nearest), gradients)
    kept = second_moment(with_bfloat16_moments(adam), gradients)
    assert stuck.min() > 2 * exact, "rounded to the nearest it stays where the large gradients left it"
    np.testing.assert_allclose(kept.mean(), exact, rtol=0.01)
    assert 0.01 < kept.std() / exact < 0.08, "the price: noise of a few percent, whose root is in the step"


@pytest.mark.parametrize("adam", ["torch", "tf1"])
def test_moments_in_bfloat16_are_half_as_large_and_steps_those_of_float32_but_for_rounding(adam):
    params = {"q": {"kernel": jnp.linspace(-1.0, 1.0, 64).reshape(8, 8)}}
    steps, sizes = {}, {}
    for moments in ("float32", "bfloat16"):
        tx = make_optimizer(Optim(lr=0.1, rows=1, steps=9, schedule="constant", adam=adam, moments=moments))
        state, after = tx.init(params), params
        for number in range(4):
            grads = jax.tree.map(lambda x, n=number: jnp.cos(7 * x + n), params)
            updates, state = tx.update(grads, state, after)
            after = optax.apply_updates(after, updates)
        steps[moments] = after["q"]["kernel"] - params["q"]["kernel"]
        sizes[moments] = sum(leaf.nbytes for leaf in jax.tree.leaves(state) if leaf.ndim)
    assert sizes == {"float32": 64 * 8, "bfloat16": 64 * 4}
    apart = jnp.abs(steps["bfloat16"] - steps["float32"])
    assert 0 < apart.max() < 0.02 * jnp.abs(steps["float32"]).max()


def test_the_noise_of_rounding_is_another_at_every_update_and_the_same_when_that_is_done_again():
    tx = with_bfloat16_moments(optax.scale_by_adam(0.9, 0.5))
    grads = {"x": jnp.full(512, 1.03), "y": jnp.full(512, 1.03)}
    once = tx.update(grads, tx.init(grads))[1]
    again = tx.update(grads, tx.init(grads))[1]
    np.testing.assert_array_equal(once.nu["x"], again.nu["x"])
    assert jnp.any(once.nu["x"] != once.nu["y"])
    later = tx.update(grads, tx.init(grads)._replace(count=jnp.int32(1)))[1]
    assert jnp.any(once.nu["x"] != later.nu["x"])
