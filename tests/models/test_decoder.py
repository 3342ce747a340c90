from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import (
    GPT2,
    LLAMA,
    SHAPES,
    assert_trees_close,
    built,
    jitted,
    left_padded,
    lively,
    moved_left,
    right_padded,
)
from checkpoints import SMALL

from rlhf_jax.config import ModelConfig
from rlhf_jax.models import layers
from rlhf_jax.models.cache import empty_cache
from rlhf_jax.models.decoder import ScalarHead
from rlhf_jax.models.params import carry_over, count_parameters
from rlhf_jax.plan.flops import matmul_flops
from rlhf_jax.types import Params, TokenBatch

LENGTHS, WIDTH = [9, 4, 7], 9
every_shape = pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES.keys())


def by_hand(config: ModelConfig, params: Params, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Hidden states [T, D] of one unpadded row, in numpy and float64, one head of one query at a time."""
    c = config
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(x, weights):
        x = x - x.mean(-1, keepdims=True) if c.norm == "layer" else x
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + c.norm_eps)
        return x * weights["scale"] + weights.get("bias", 0.0)

    def project(x, weights):
        return np.tensordot(x, weights["kernel"], weights["kernel"].ndim - 1) + weights.get("bias", 0.0)

    def turn(x):  # [T, H, K] as complex numbers, each turned by its angle
        half = c.head_size // 2
        angles = positions[:, None] * c.rope_base ** (-np.arange(half) / half)
        turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)[:, None]
        return np.concatenate([turned.real, turned.imag], -1)

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    x = p["tokens"]["embedding"][tokens]
    if c.position == "learned":
        x = x + p["places"]["embedding"][positions]
    for number in range(c.layers):
        layer = jax.tree.map(lambda w, n=number: w[n], p["layers"])
        h = norm(x, layer["attention_norm"])
        q, k, v = (
            np.tensordot(h, layer["attention"][n]["kernel"], 1) + layer["attention"][n].get("bias", 0.0) for n in "qkv"
        )
        if c.position == "rope":
            q, k = turn(q), turn(k)
        heads = np.zeros_like(q)
        for t in range(len(tokens)):
            for head in range(c.heads):
                group = head * c.kv_heads // c.heads
                scores = np.array([q[t, head] @ k[s, group] / math.sqrt(c.head_size) for s in range(t + 1)])
                weights = np.exp(scores - scores.max())
                heads[t, head] = (weights / weights.sum()) @ v[: t + 1, group]
        output = layer["attention"]["o"]
        x = x + np.tensordot(heads, output["kernel"], 2) + output.get("bias", 0.0)
        h, mlp = norm(x, layer["mlp_norm"]), layer["mlp"]
        up = project(h, mlp["up"])
        if c.activation == "swiglu":
            gate = project(h, mlp["gate"])
            up = gate / (1 + np.exp(-gate)) * up
        else:
            up = gelu(up)
        x = x + project(up, mlp["down"])
    return norm(x, p["final_norm"])


def logits_by_hand(config: ModelConfig, params: Params, tokens: np.ndarray) -> np.ndarray:
    out = np.asarray(params["tokens"]["embedding"]).T if config.tied else np.asarray(params["unembed"]["kernel"])
    return by_hand(config, params, tokens, np.arange(len(tokens))) @ out


def real_rows(x: jax.Array, batch: TokenBatch) -> list[np.ndarray]:
    """What stands at the real tokens, row by row."""
    return [np.asarray(row)[np.asarray(segments) != 0] for row, segments in zip(x, batch.segments, strict=True)]


@every_shape
def test_logits_are_those_of_the_formulas(config):
    batch = right_padded(LENGTHS, WIDTH)
    logits = jitted(built(config).logits)(lively(config), batch)
    for row, tokens in zip(real_rows(logits, batch), real_rows(batch.tokens, batch), strict=True):
        np.testing.assert_allclose(row, logits_by_hand(config, lively(config), tokens), atol=5e-5)


@every_shape
def test_padding_on_the_left_and_on_the_right_gives_the_same_logits(config):
    right = right_padded(LENGTHS, WIDTH)
    left = moved_left(right)
    run = jitted(built(config).logits)
    one, other = run(lively(config), right), run(lively(config), left)
    for a, b in zip(real_rows(one, right), real_rows(other, left), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@every_shape
def test_packed_rows_are_the_separate_ones(config):
    separate = right_padded([5, 4, 9], 9)
    first, second, third = np.asarray(separate.tokens)
    packed = TokenBatch(
        tokens=jnp.array([[*first[:5], *second[:4]], third, third], jnp.int32),
        positions=jnp.array([[0, 1, 2, 3, 4, 0, 1, 2, 3], range(9), range(9)], jnp.int32),
        segments=jnp.array([[1, 1, 1, 1, 1, 2, 2, 2, 2], [1] * 9, [3] * 9], jnp.int32),
        loss_mask=jnp.ones((3, 9), bool),
    )
    for function, more in ((built(config).logits, ()), (built(config).logprobs, (1.0,))):
        apart = real_rows(jitted(function)(lively(config), separate, *more), separate)
        together = jitted(function)(lively(config), packed, *more)
        np.testing.assert_allclose(together[0], np.concatenate(apart[:2]), atol=1e-5)
        np.testing.assert_allclose(together[2], apart[2], atol=1e-5)


def test_what_stands_in_the_padding_changes_nothing():
    batch = left_padded(LENGTHS, WIDTH, seed=0)
    padding = np.asarray(batch.segments) == 0
    other = batch.replace(tokens=jnp.where(padding, 7, batch.tokens))
    model = built(dataclasses.replace(LLAMA, head="lm+scalar"))
    params = lively(model.config)
    for function in (model.logprobs, model.values, model.scores):
        arguments = (1.0,) if function is model.logprobs else ()
        np.testing.assert_array_equal(
            jitted(function)(params, batch, *arguments), jitted(function)(params, other, *arguments)
        )


@every_shape
def test_no_token_sees_a_later_one(config):
    batch = right_padded([9, 9, 9], 9)
    changed = batch.replace(tokens=batch.tokens.at[0, 6].add(1) % config.vocab)
    run = jitted(built(config).logits)
    one, other = run(lively(config), batch), run(lively(config), changed)
    np.testing.assert_array_equal(one[0, :6], other[0, :6])
    assert float(jnp.abs(one[0, 6:] - other[0, 6:]).min(axis=0).max()) > 1e-3


@every_shape
def test_reading_with_the_cache_gives_the_logits_of_the_whole_forward_pass(config):
    model, params = built(config), lively(config)
    prompts = left_padded([3, 5, 1], 5, seed=1)
    more = np.random.default_rng(2).integers(0, config.vocab, (4, 3))
    prefill, decode = jax.jit(model.prefill, static_argnums=2), jitted(model.decode)
    hidden, cache = prefill(params, prompts, 9)
    seen = [model.unembed(params, hidden)]
    for column, tokens in enumerate(more):
        positions = jnp.array([3, 5, 1], jnp.int32) + column
        hidden, cache = decode(params, jnp.asarray(tokens, jnp.int32), positions, 5 + column, jnp.ones(3, bool), cache)
        seen.append(model.unembed(params, hidden))
    for row, prompt in enumerate(real_rows(prompts.tokens, prompts)):
        expected = logits_by_hand(config, params, np.concatenate([prompt, more[:, row]]))[len(prompt) - 1 :]
        np.testing.assert_allclose(np.stack(seen)[:, row], expected, atol=5e-5)


def test_a_row_that_has_ended_leaves_nothing_to_attend_to():
    model, params = built(LLAMA), lively(LLAMA)
    prompts = left_padded([3, 5], 5)
    _, cache = jax.jit(model.prefill, static_argnums=2)(params, prompts, 7)
    alive = jnp.array([True, False])
    _, cache = jitted(model.decode)(params, jnp.array([4, 4], jnp.int32), jnp.array([3, 5], jnp.int32), 5, alive, cache)
    expected = np.pad(np.asarray(prompts.segments) != 0, ((0, 0), (0, 2)))
    expected[0, 5] = True
    np.testing.assert_array_equal(cache.filled, expected)


@pytest.mark.parametrize(
    "how",
    [
        {"remat": "products"},
        {"remat": "layers"},
        {"unroll": True},
        {"remat": "products", "unroll": True},
        {"remat": "layers", "unroll": True},
    ],
)
def test_recomputing_layers_and_doing_without_a_loop_changes_no_gradient(how):
    batch = right_padded(LENGTHS, WIDTH)

    def gradient(config):
        return jax.jit(jax.grad(lambda params: jnp.sum(built(config).logprobs(params, batch, 1.0))))(lively(LLAMA))

    assert_trees_close(gradient(LLAMA), gradient(dataclasses.replace(LLAMA, **how)), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("unroll", [False, True])
def test_the_backward_pass_makes_again_what_it_is_told_to(unroll):
    batch = right_padded(LENGTHS, WIDTH)
    policy = dataclasses.replace(LLAMA, unroll=unroll)

    def operations(remat):
        model = built(dataclasses.replace(policy, remat=remat))
        loss = jax.grad(lambda params: jnp.sum(model.hidden(params, batch)))
        return matmul_flops(jax.make_jaxpr(loss)(lively(LLAMA)))

    c, tokens = policy, len(LENGTHS) * WIDTH
    weights = 2 * c.width * c.head_size * (c.heads + c.kv_heads) + 3 * c.width * c.mlp
    attention = 4 * c.heads * c.head_size * tokens * WIDTH
    plain, products, layers = (operations(remat) for remat in ("none", "products", "layers"))
    assert products - plain == c.layers * attention
    # The last product of a layer is not made again: nothing needs it.
    assert layers - products == c.layers * 2 * tokens * (weights - c.width * c.mlp)


def test_without_a_loop_there_is_none():
    batch = right_padded(LENGTHS, WIDTH)
    for unroll in (False, True):
        hidden = built(dataclasses.replace(LLAMA, unroll=unroll)).hidden
        text = jax.jit(hidden).lower(lively(LLAMA), batch).as_text()
        assert ("stablehlo.while" in text) != unroll


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_bfloat16_is_close_and_its_probabilities_are_float32(config):
    batch = right_padded(LENGTHS, WIDTH)
    half = built(dataclasses.replace(config, dtype="bfloat16"))
    shapes = jax.eval_shape(half.init, jax.random.key(0))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))
    params = jax.tree.map(lambda x: 0.5 * x, lively(config))
    assert empty_cache(half.config, 1, 2).layers[0][0].dtype == jnp.bfloat16
    rough = jitted(half.logprobs)(params, batch, 1.0)
    assert rough.dtype == jnp.float32
    difference = np.abs(rough - jitted(built(config).logprobs)(params, batch, 1.0))
    assert 0 < difference.max() < 0.02


@pytest.mark.parametrize("unroll", [False, True])
def test_keys_and_values_are_kept_in_the_dtype_of_the_cache(unroll):
    config = dataclasses.replace(LLAMA, unroll=unroll)
    full, half = built(config), built(dataclasses.replace(config, cache_dtype="bfloat16"))
    params, prompts = jax.tree.map(lambda x: 0.5 * x, lively(config)), left_padded([3, 5, 1], 5, seed=1)
    read = []
    for model in (full, half):
        hidden, cache = jax.jit(model.prefill, static_argnums=2)(params, prompts, 6)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(cache.layers)} == {model.config.kept_dtype}
        tokens, positions = jnp.array([1, 2, 3], jnp.int32), jnp.array([3, 5, 1], jnp.int32)
        after, cache = jitted(model.decode)(params, tokens, positions, 5, jnp.ones(3, bool), cache)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(cache.layers)} == {model.config.kept_dtype}
        assert after.dtype == jnp.float32
        read.append((hidden, after))
    (before, exact), (same, rounded) = read
    np.testing.assert_allclose(before, same, atol=1e-6)  # prompts are read as they are, and kept rounded
    assert 1e-4 < np.abs(exact - rounded).max() < 0.02


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3_text"])
def test_cosines_from_a_table_are_those_of_the_angles(name, monkeypatch):
    frequencies = layers.rotary_frequencies(SMALL[name])
    positions = jnp.array([[0, 1, 2, 511], [5, 4095, 77, 0]])
    table = layers.rotary_turns(positions, frequencies, 4096)
    monkeypatch.setattr(layers, "TABLE", 0)
    computed = layers.rotary_turns(positions, frequencies, 4096)
    assert_trees_close(table, computed, atol=2e-6)
    exact = np.cos(np.asarray(positions, np.float64)[:, :, None] * np.asarray(frequencies, np.float64))
    np.testing.assert_allclose(table[0][:, :, 0], exact, atol=3e-4)  # an angle of 4095 in float32


def test_rotary_positions_are_relative_and_learned_ones_are_not():
    batch = right_padded([8], 8)
    later = batch.replace(positions=batch.positions + 5)
    for config, moves in ((LLAMA, False), (GPT2, True)):
        one, other = (jitted(built(config).logits)(lively(config), b) for b in (batch, later))
        assert (float(jnp.abs(one - other).max()) > 1e-3) == moves


def test_layers_start_with_weights_of_their_own_and_biases_at_zero():
    # Compiling the random numbers of a whole model takes seconds; what is not returned is not compiled.
    up = jax.jit(lambda key: built(GPT2).init(key)["layers"]["mlp"]["up"])
    kernel, other = up(jax.random.key(0))["kernel"], up(jax.random.key(1))["kernel"]
    assert kernel.shape == (2, 16, 24)
    assert float(jnp.abs(kernel[0] - kernel[1]).max()) > 0.1
    assert float(jnp.abs(kernel - other).max()) > 0.1
    np.testing.assert_array_equal(up(jax.random.key(0))["bias"], 0.0)


def test_a_reward_head_starts_with_variance_one_over_width_plus_one():
    head = ScalarHead(zero=False)
    keys = jax.random.split(jax.random.key(0), 100)
    params = jax.jit(jax.vmap(lambda key: head.init(key, jnp.zeros((1, 1, 1023)))))(keys)["params"]
    np.testing.assert_allclose(np.std(params["kernel"]), 0.03125, rtol=0.03)
    np.testing.assert_array_equal(params["bias"], 0.0)


def test_a_value_head_beside_a_language_model_starts_at_zero():
    config = dataclasses.replace(LLAMA, head="lm+scalar")
    score = jax.jit(lambda key: built(config).init(key)["score"])(jax.random.key(0))
    values = jitted(built(config).values)({**lively(config), "score": score}, right_padded(LENGTHS, WIDTH))
    np.testing.assert_array_equal(values, 0.0)


def test_a_value_model_that_starts_as_the_reward_model_gives_its_outputs_one_token_later():
    config = dataclasses.replace(LLAMA, head="scalar")
    model, params, batch = built(config), lively(config), right_padded([9, 6], 9)
    values = np.asarray(jitted(model.values)(params, batch))
    head = {name: np.asarray(x, np.float64) for name, x in params["score"].items()}
    for row, tokens in enumerate(real_rows(batch.tokens, batch)):
        per_token = by_hand(config, params, tokens, np.arange(len(tokens))) @ head["kernel"] + head["bias"]
        np.testing.assert_allclose(values[row, 1 : len(tokens)], per_token[:-1], atol=2e-5)
        np.testing.assert_allclose(jitted(model.scores)(params, batch)[row], per_token[-1], atol=2e-5)
    np.testing.assert_array_equal(values[:, 0], 0.0)
    np.testing.assert_array_equal(values[1, 6:], 0.0)


def test_a_score_reads_the_whole_text_and_is_the_same_on_either_side_of_the_padding():
    config = dataclasses.replace(LLAMA, head="scalar")
    model, params, batch = built(config), lively(config), right_padded(LENGTHS, WIDTH)
    scores = jitted(model.scores)(params, batch)
    np.testing.assert_allclose(jitted(model.scores)(params, moved_left(batch)), scores, atol=1e-5)
    question = batch.replace(tokens=batch.tokens.at[:, 0].add(1) % config.vocab)
    assert float(jnp.abs(jitted(model.scores)(params, question) - scores).min()) > 1e-4


def test_a_head_that_is_not_there_is_named():
    batch = right_padded(LENGTHS, WIDTH)
    with pytest.raises(ValueError, match=r"head='lm'; scores and values need a scalar head"):
        built(LLAMA).scores(lively(LLAMA), batch)
    config = dataclasses.replace(LLAMA, head="scalar")
    with pytest.raises(ValueError, match="scalar head only"):
        built(config).logprobs(lively(config), batch, 1.0)


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_gradients_are_finite_with_padded_and_empty_rows(config):
    config = dataclasses.replace(config, head="lm+scalar")
    model, batch = built(config), right_padded([9, 1, 0], WIDTH)

    def loss(params):
        return jnp.sum(model.logprobs(params, batch, 0.7)) + jnp.sum(model.values(params, batch))

    for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(lively(config))):
        assert np.isfinite(leaf).all()


def test_a_trunk_is_carried_over_and_the_head_is_not():
    reward = dataclasses.replace(LLAMA, head="scalar")
    source, target = lively(LLAMA), lively(reward, seed=1)
    carried = carry_over(source, target)
    assert carried["tokens"] is source["tokens"]
    assert carried["layers"] is source["layers"]
    assert carried["score"] is target["score"]
    assert set(carried) == set(target)
    with pytest.raises(ValueError, match=r"'layers' has shapes"):
        carry_over(source, lively(dataclasses.replace(LLAMA, mlp=20)))
    with pytest.raises(KeyError, match="share no part"):
        carry_over({"a": jnp.ones(())}, target)


def test_parameters_are_counted_by_hand():
    # embedding 32 x 16; per layer: q, o 16 x 16, k, v 16 x 8, three of 16 x 24, two norms; a final norm
    expected = 32 * 16 + 2 * (2 * 256 + 2 * 128 + 3 * 384 + 2 * 16) + 16
    assert count_parameters(jax.eval_shape(built(LLAMA).init, jax.random.key(0))) == expected


def test_a_seed_gives_the_parameters_that_it_gave_when_figures_were_published():
    params = built(LLAMA).init(jax.random.key(0))
    first, last = params["layers"]["attention"]["q"]["kernel"], params["layers"]["mlp"]["down"]["kernel"]
    ends = [(x.ravel()[0], x.ravel()[-1]) for x in (params["tokens"]["embedding"], first, last)]
    np.testing.assert_allclose(
        ends, [(-0.208982, -0.196457), (-0.268414, -0.031682), (-0.184358, -0.185630)], atol=1e-5
    )
