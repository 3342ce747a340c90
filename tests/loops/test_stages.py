"""The loop that every stage goes through: what it times, and how the replies of an experiment end."""

import dataclasses
import io
import time

import jax
import jax.numpy as jnp
import pytest
import sentencepiece
from builders import LLAMA, VALUE, assert_trees_close, built, lively, played

from experiments.smoke import smoke_dapo, smoke_ppo, smoke_reward, smoke_sft
from rlhf_jax.config import EVERYTHING, PPO, Optim, Sampling
from rlhf_jax.data.tokens.templates import get_template
from rlhf_jax.data.tokens.texts import Texts
from rlhf_jax.data.tokens.tokenizer import SentencePieceTokenizer
from rlhf_jax.doctor.subjects import largest_difference
from rlhf_jax.loops import collect, evaluate
from rlhf_jax.loops.pipeline import run_experiment
from rlhf_jax.loops.rlhf import ending_of, make_update
from rlhf_jax.loops.run import Advanced, open_run, run_stage
from rlhf_jax.loops.sources import open_texts, policy_prompts
from rlhf_jax.models import build_model
from rlhf_jax.rollout.generate import Ending
from rlhf_jax.train import init_state
from rlhf_jax.train.optimizer import make_optimizer
from rlhf_jax.train.ppo import start_ppo

SLOW = 0.3  # seconds


def test_the_seconds_of_the_steps_leave_out_the_first_and_the_evaluation(tmp_path):
    run = open_run(smoke_sft("cpu"), tmp_path)

    def advance(state, step):
        time.sleep(SLOW if step == 0 else SLOW / 20)
        return Advanced(state, {"loss": 1.0}, None)

    def evaluate(state):
        time.sleep(SLOW)
        return {"loss": 1.0}

    run_stage(run, "sft", {"x": 1.0}, advance, 5, evaluate=evaluate, eval_every=2)
    assert run.seconds["sft"] > 5 * SLOW  # compiling once, evaluating before, at 2, at 4 and at the end
    assert 4 * SLOW / 20 <= run.step_seconds["sft"] < SLOW


@pytest.fixture(scope="module")
def llama_like():
    """A sentencepiece model that puts a blank in front of every text, as those of Llama do."""
    text, model = ["a cat. a dog. the end.", "one two. three!"] * 20, io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_writer=model,
        vocab_size=30,
        model_type="bpe",
        add_dummy_prefix=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return SentencePieceTokenizer(model.getvalue())


def ppo(stop_token: str | None) -> PPO:
    optim = Optim(lr=1e-3, rows=4)
    return PPO(
        optim=optim, value_optim=None, iterations=1, prompts=4, new_tokens=8, stop_token=stop_token, stop_after=3
    )


def test_a_stop_token_is_the_token_inside_a_text_not_the_one_at_its_start(llama_like):
    texts = Texts(llama_like, get_template("none"), 64, 8)
    inside = llama_like.encode("a cat.")[-1]
    assert len(llama_like.encode(".")) == 2
    assert ending_of(texts, ppo(".")) == Ending(llama_like.eos, inside, 3)
    assert ending_of(texts, ppo(None)) == ending_of(texts, None) == Ending(llama_like.eos)


def test_a_stop_token_of_several_tokens_is_refused(llama_like):
    with pytest.raises(ValueError, match=r"ppo\.stop_token='\.\.' is 2 tokens .*; it must be one"):
        ending_of(Texts(llama_like, get_template("none"), 64, 8), ppo(".."))


def test_comparisons_and_evaluation_sample_replies_that_end_as_those_of_ppo(tmp_path, monkeypatch):
    evaluation = dataclasses.replace(smoke_dapo("cpu").evaluation, begin="a", stop=("b", "c"))
    config = dataclasses.replace(smoke_reward("cpu"), ppo=ppo("\n"), evaluation=evaluation)
    run, asked = open_run(config, tmp_path), []
    texts, model = open_texts(run), build_model(config.policy)

    class Asked(Exception):
        pass

    def record(*args, ending, **how):
        stop = getattr(how.get("stop"), "texts", ())
        asked.append((ending, how.get("sampling", EVERYTHING), how.get("slots"), how.get("begin", []), stop))
        raise Asked

    for module in (evaluate, collect):
        monkeypatch.setattr(module, "make_sampler", record)
    with pytest.raises(Asked):
        evaluate.make_judge(run, texts, model, {}, None)
    with pytest.raises(Asked):
        collect.sampled_comparisons(run, run.experiment.reward, model, {}, texts, policy_prompts(run)[0])
    newline = texts.tokenizer.encode("\n")
    ending = Ending(texts.tokenizer.eos, newline[0], 3)
    begin = texts.tokenizer.encode(" a")  # as a reply begins in this template
    assert begin != texts.tokenizer.encode("a")
    assert asked == [(ending, Sampling(top_p=0.7), 16, begin, ("b", "c")), (ending, EVERYTHING, None, [], ())]


@pytest.mark.parametrize(
    ("begin", "said"),
    [
        (30 * "word ", r"tokens, and replies have evaluation.new_tokens=8; nothing is left to write"),
        ("a\nb", "has ppo.stop_token in it, where every reply would end"),
    ],
)
def test_a_beginning_that_cannot_be_is_refused_before_anything_is_trained(begin, said, tmp_path):
    recipe = dataclasses.replace(smoke_ppo("cpu").ppo, stop_token="\n", stop_after=0)
    evaluation = dataclasses.replace(smoke_ppo("cpu").evaluation, begin=begin)
    run = open_run(dataclasses.replace(smoke_ppo("cpu"), ppo=recipe, evaluation=evaluation), tmp_path)
    with pytest.raises(ValueError, match=said):
        run_experiment(run)
    assert not list(tmp_path.rglob("checkpoints"))


def test_while_the_value_warms_up_neither_the_policy_nor_the_coefficient_of_kl_moves():
    optim = Optim(lr=0.01, rows=8)
    config = PPO(
        optim=optim,
        value_optim=optim,
        iterations=3,
        prompts=8,
        new_tokens=6,
        kl_coef=0.2,
        kl_target=1.0,
        kl_horizon=80.0,
        value_warmup=1,
    )
    update = jax.jit(make_update(built(LLAMA), built(VALUE), config))
    policy = init_state(lively(LLAMA), make_optimizer(config.policy_optim))
    value = init_state(lively(VALUE, seed=2), make_optimizer(config.with_steps(optim)))
    start = start_ppo(policy, value, jnp.float32(0.2))
    first, _ = update(start, played(), jnp.float32(9.0), jax.random.key(0))
    second, _ = update(first, played(), jnp.float32(9.0), jax.random.key(1))
    assert_trees_close(first.policy, policy, atol=0.0)
    assert [float(state.kl_coef) for state in (first, second)] == pytest.approx([0.2, 0.2 * (1 + 0.2 * 8 / 80)])
    for before, after in ((start.value, first.value), (first.policy, second.policy)):
        assert largest_difference(before.params, after.params) > 1e-3
    assert float(first.moments.count) == 8
