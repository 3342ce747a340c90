"""Sampled comparisons are what the policy wrote, and held-out ones are of prompts that training never sees."""

from functools import partial

import jax
import numpy as np
import pytest

from experiments.smoke import smoke_reward
from rlhf_jax.data.schema import Comparison, LabelledReply, Provenance, user_prompt
from rlhf_jax.data.tokens.encode import encode_comparison
from rlhf_jax.feedback.simulated import bayes_agreement
from rlhf_jax.loops import collect
from rlhf_jax.loops.collect import sampled_comparisons, sampler_of
from rlhf_jax.loops.ilql import rated_of
from rlhf_jax.loops.run import open_run
from rlhf_jax.loops.sources import open_texts, policy_prompts
from rlhf_jax.models import build_model
from rlhf_jax.rollout.replies import Sampler


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return open_run(smoke_reward("cpu"), tmp_path_factory.mktemp("collect"))


def test_what_the_template_writes_around_a_reply_is_not_written_twice(run):
    # The policy wrote " black" after a template whose replies start with a blank: the reward model must read " black" too.
    texts = open_texts(run)
    wrote = texts.tokenizer.encode(" black")

    class Fixed(Sampler):
        def replies(self, params, prompts, key, **how):
            return [texts.tokenizer.decode(wrote if how["sample"] % 2 == 0 else [])] * len(prompts)

    prompts = collect.world_of(run.experiment).prompts("train", 3)
    judged = collect.sample_pairs(run, object.__new__(Fixed), None, texts, prompts, temperature=1.0, offset=0)
    for comparison in judged.comparisons:
        pair = encode_comparison(comparison, texts.tokenizer, texts.template)
        replies = {pair.chosen.reply, pair.rejected.reply}
        assert (*wrote, texts.tokenizer.eos) in replies


def test_no_prompt_of_a_held_out_pair_is_trained_on(run):
    model = build_model(run.experiment.policy)
    prompts, _ = policy_prompts(run)
    train, held_out = sampled_comparisons(
        run, run.experiment.reward, model, model.init(jax.random.key(0)), open_texts(run), prompts
    )
    asked = {comparison.prompt.turns for comparison in held_out.comparisons}
    assert asked and asked.isdisjoint(comparison.prompt.turns for comparison in train.comparisons)


def test_agreement_is_the_probability_that_the_order_of_the_scores_is_labelled():
    judged = collect.Judged(comparisons=(), probability=np.array([0.9, 0.2, 0.7]))
    # Right way round: .9; the wrong way round: 1 - .2; a tie: .5.
    scores = np.array([2.0, 0.0, 1.0]), np.array([1.0, 1.0, 1.0])
    np.testing.assert_allclose(judged.agreement(*scores), [0.9, 0.8, 0.5])
    np.testing.assert_allclose(bayes_agreement(judged.probability), [0.9, 0.8, 0.7])


def test_replies_of_comparisons_and_labelled_ones_are_worth_1_or_0():
    prompt = user_prompt("2 + 2?", Provenance("made up", "CC0"))
    records = [Comparison(prompt, "4", "5"), LabelledReply(prompt, "four", True), LabelledReply(prompt, "vier", False)]
    rated = rated_of(records)
    assert [(record.reply, record.reward) for record in rated] == [("4", 1.0), ("5", 0.0), ("four", 1.0), ("vier", 0.0)]
    assert {record.prompt for record in rated} == {prompt}


def test_sampled_replies_carry_the_reward_of_the_world(run):
    model, texts = build_model(run.experiment.policy), open_texts(run)
    world = collect.world_of(run.experiment)
    prompts = world.prompts("train", 5)
    params = model.init(jax.random.key(0))
    draw = partial(collect.sample_replies, run, sampler_of(run, model, texts), params, texts, prompts, temperature=1.0)
    replies = draw(sample=0)
    rated = collect.rate(run, prompts, replies)
    assert [record.reply for record in rated] == replies
    assert [record.reward for record in rated] == [world.gold(record.prompt.key, record.reply) for record in rated]
    assert [record.prompt for record in rated] == list(prompts)
    assert draw(sample=0) == replies and draw(sample=1) != replies
