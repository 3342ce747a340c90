"""A policy guided by critics: its logits by hand, and one distribution for sampling and for log-probs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import LLAMA, SHAPES, STOPS, built, critics_of, left_padded, lively, lively_critics, right_padded

from rlhf_jax.loops.ilql import guidance
from rlhf_jax.rollout.generate import generate
from rlhf_jax.rollout.guided import guided
from rlhf_jax.rollout.sampling import greedy_tokens

WIDER = SHAPES["all key-value heads, wide head"]


def params_of(config, beta):
    return guidance(lively(config), lively_critics(config), beta)


def test_the_logits_are_the_policys_and_beta_times_the_lesser_advantage():
    policy, critics, batch = built(LLAMA), critics_of(LLAMA), right_padded([7, 4], 7)
    params = params_of(LLAMA, 1.5)
    found = jax.jit(guided(policy, critics).logits)(params, batch)
    q1, q2, v = critics.heads(params["critics"], critics.trunk.hidden(params["critics"]["trunk"], batch))
    expected = policy.logits(params["policy"], batch) + 1.5 * (jnp.minimum(q1, q2) - v[..., None])
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert float(jnp.abs(found - policy.logits(params["policy"], batch)).max()) > 1


def test_without_weight_it_is_the_policy():
    policy, batch = built(LLAMA), right_padded([7, 4], 7)
    found = jax.jit(guided(policy, critics_of(LLAMA)).logprobs)(params_of(LLAMA, 0.0), batch, 0.7)
    np.testing.assert_allclose(found, policy.logprobs(lively(LLAMA), batch, 0.7), atol=1e-6)


@pytest.mark.parametrize("config", [LLAMA, WIDER], ids=["llama", "wide"])
def test_what_is_sampled_has_the_log_probs_of_the_whole_forward_pass(config):
    model, params = guided(built(config), critics_of(config)), params_of(config, 0.7)
    prompts, keys = left_padded([1, 4, 2, 3], 4, seed=7), jax.random.split(jax.random.key(5), 4)
    rollout = jax.jit(partial(generate, model=model, new_tokens=6, stop=STOPS[:2]))(params, prompts, keys, 0.7)
    again = jax.jit(model.logprobs)(params, rollout.batch, 0.7)
    mask = np.asarray(rollout.batch.loss_mask)
    np.testing.assert_allclose(np.asarray(again)[mask], np.asarray(rollout.logprobs)[mask], atol=1e-5)
    alone = built(config).logprobs(lively(config), rollout.batch, 0.7)
    assert float(jnp.abs(again - alone)[mask].max()) > 0.1, "the critics changed nothing"


def test_with_much_weight_the_critics_choose():
    model, params = guided(built(LLAMA), critics_of(LLAMA)), params_of(LLAMA, 1e4)
    prompts = left_padded([4, 4], 4, seed=7)
    write = partial(generate, model=model, new_tokens=1, choose=greedy_tokens)
    rollout = jax.jit(write)(params, prompts, jax.random.split(jax.random.key(0), 2), 1.0)
    hidden = critics_of(LLAMA).trunk.hidden(params["critics"]["trunk"], prompts)
    q1, q2, _ = critics_of(LLAMA).heads(params["critics"], hidden[:, -1])
    np.testing.assert_array_equal(rollout.batch.tokens[:, 4], jnp.argmax(jnp.minimum(q1, q2), axis=-1))
