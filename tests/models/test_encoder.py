"""Encoders without a checkpoint: what sees what, what is refused, and a reward model that learns through the loop of all."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import LLAMA, VOCAB, built, jitted, left_padded, lively, moved_left, right_padded

from rlhf_jax.config import ModelConfig, Optim
from rlhf_jax.loops.reward import make_reward_step, rescaled
from rlhf_jax.models.critics import build_critics
from rlhf_jax.models.visible import Visible
from rlhf_jax.train import init_state
from rlhf_jax.train.optimizer import make_optimizer
from rlhf_jax.types import PreferenceBatch, TokenBatch

MASKED = ModelConfig(
    vocab=VOCAB,
    width=16,
    layers=2,
    heads=4,
    kv_heads=4,
    mlp=24,
    max_length=32,
    norm="layer",
    norm_at="after",
    causal=False,
    embedding_norm=True,
    token_types=2,
    position="learned",
    activation="gelu_exact",
    bias=True,
)
SCORER = dataclasses.replace(MASKED, head="scalar")
CLASSIFIER = dataclasses.replace(MASKED, head="classes", classes=3)
# Not all encoders are BERT: rotary positions, norms before, an output layer of its own.
ROTARY = dataclasses.replace(LLAMA, causal=False, tied=False)
LENGTHS, WIDTH = [9, 4, 7], 9
OUTPUTS = {
    "masked": (MASKED, "logits"),
    "rotary": (ROTARY, "logits"),
    "score": (SCORER, "scores"),
    "classes": (CLASSIFIER, "class_logits"),
}
every_output = pytest.mark.parametrize(("config", "name"), OUTPUTS.values(), ids=OUTPUTS.keys())


def output(config: ModelConfig, name: str, batch: TokenBatch) -> np.ndarray:
    """What the head gives, of real tokens where it is per token."""
    found = np.asarray(jitted(getattr(built(config), name))(lively(config), batch))
    return found[np.asarray(batch.segments) != 0] if found.ndim == 3 else found


def test_a_token_sees_its_segment_and_nothing_else():
    segments = jnp.array([[0, 1, 1, 2]], jnp.int32)
    mask = np.asarray(Visible(segments, segments, causal=False).mask())[0]
    assert mask.tolist() == [
        [False, False, False, False],
        [False, True, True, False],
        [False, True, True, False],
        [False, False, False, True],
    ]


@every_output
def test_padding_on_either_side_and_what_stands_in_it_changes_nothing(config, name):
    right = right_padded(LENGTHS, WIDTH)
    padding = np.asarray(right.segments) == 0
    other = right.replace(tokens=jnp.where(padding, 7, right.tokens))
    np.testing.assert_array_equal(output(config, name, right), output(config, name, other))
    np.testing.assert_allclose(output(config, name, right), output(config, name, moved_left(right)), atol=1e-5)


@every_output
def test_every_token_is_seen_by_the_first(config, name):
    batch = left_padded(LENGTHS, WIDTH)
    changed = batch.replace(tokens=batch.tokens.at[:, -1].add(1) % config.vocab)
    one, other = output(config, name, batch), output(config, name, changed)
    firsts = np.cumsum([0, *LENGTHS[:-1]]) if len(one) == sum(LENGTHS) else range(3)
    assert np.abs(one - other).reshape(len(one), -1).max(axis=1)[list(firsts)].min() > 1e-3


def test_heads_by_the_formula():
    batch, params = right_padded(LENGTHS, WIDTH), lively(CLASSIFIER)
    first = np.asarray(jitted(built(CLASSIFIER).hidden)(params, batch))[:, 0]
    pooled = np.tanh(first @ np.asarray(params["pool"]["kernel"]) + np.asarray(params["pool"]["bias"])[None])
    logits = pooled @ np.asarray(params["classify"]["kernel"]) + np.asarray(params["classify"]["bias"])[None]
    np.testing.assert_allclose(output(CLASSIFIER, "class_logits", batch), logits, atol=1e-5)

    score = lively(SCORER)
    first = np.asarray(jitted(built(SCORER).hidden)(score, batch))[:, 0]
    pooled = np.tanh(first @ np.asarray(score["pool"]["kernel"]) + np.asarray(score["pool"]["bias"])[None])
    expected = pooled @ np.asarray(score["score"]["kernel"]) + float(score["score"]["bias"])
    np.testing.assert_allclose(output(SCORER, "scores", batch), expected, atol=1e-5)


def test_every_token_is_of_the_first_type():
    batch, params = right_padded(LENGTHS, WIDTH), lively(SCORER)
    table = params["types"]["embedding"]
    assert table.shape == (2, 16)
    run = jitted(built(SCORER).scores)
    one, other = (run(params | {"types": {"embedding": table.at[row, 0].add(1.0)}}, batch) for row in (0, 1))
    np.testing.assert_array_equal(other, run(params, batch))
    assert np.abs(one - other).min() > 1e-3


@pytest.mark.parametrize(
    "name",
    ["scalar", "logprobs", "token_stats", "token_logits", "token_scores", "values", "prefill", "decode"],
)
@pytest.mark.parametrize("config", [MASKED, SCORER], ids=["masked", "score"])
def test_what_asks_for_the_tokens_before_is_refused(config, name):
    with pytest.raises(ValueError, match=rf"{name} is of decoders; this model is an encoder \(causal=False\)"):
        getattr(built(config), name)(lively(config), right_padded(LENGTHS, WIDTH), 1.0)


def test_a_head_that_is_not_there_is_named():
    batch = right_padded(LENGTHS, WIDTH)
    for config, name in ((MASKED, "scores"), (MASKED, "class_logits"), (SCORER, "logits"), (CLASSIFIER, "scores")):
        with pytest.raises(ValueError, match=f"this encoder has head='{config.head}'; .* need head="):
            getattr(built(config), name)(lively(config), batch)
    with pytest.raises(ValueError, match="class logits are those of an encoder"):
        built(LLAMA).class_logits(lively(LLAMA), batch)
    with pytest.raises(ValueError, match=r"head='lm\+scalar' is for decoders"):
        build_critics(MASKED)


def test_a_new_model_has_every_head_at_unit_scale_and_zero_bias():
    for config, name in OUTPUTS.values():
        params = built(config).init(jax.random.key(0))
        assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, lively(config))
        outputs = np.asarray(jitted(getattr(built(config), name))(params, right_padded([16] * 8, 16)))
        assert 0.05 < outputs.std() < 3.0
    np.testing.assert_array_equal(built(CLASSIFIER).init(jax.random.key(0))["classify"]["bias"], 0.0)


def test_the_loop_of_reward_models_trains_an_encoder():
    """A reply is good when it holds token 5, anywhere: what the first token can know in an encoder only."""
    optim = Optim(lr=3e-3, steps=60, rows=16)
    model = built(SCORER)
    loss, update = make_reward_step(model, optim)
    clean = right_padded([8] * 16, 8)
    clean = clean.replace(tokens=6 + clean.tokens % (VOCAB - 6))
    places = np.random.default_rng(0).integers(1, 8, 16)
    marked = clean.replace(tokens=clean.tokens.at[np.arange(16), places].set(5))
    batch = PreferenceBatch(marked, clean, jnp.zeros(16), jnp.ones(16))
    state = init_state(model.init(jax.random.key(0)), make_optimizer(optim))
    step = jax.jit(update)
    for _ in range(optim.total):
        state, _ = step(state, batch)
    value, aux = loss(state.params, batch)
    assert float(value) < 0.1
    assert float(aux.metrics["accuracy"]) == 1.0
    scores = jitted(model.scores)(state.params, marked)
    np.testing.assert_allclose(
        jitted(model.scores)(rescaled(state.params, 2.0, -1.0), marked), 2 * scores - 1, atol=1e-5
    )
