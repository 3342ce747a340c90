"""The three loops on real text: a pretrained checkpoint made more cheerful, Alpaca, and the human comparisons of hh-rlhf."""

from __future__ import annotations

from collections.abc import Mapping

from experiments.registry import Claim, measured, register
from rlhf_jax.config import (
    PPO,
    SFT,
    Classify,
    Evaluation,
    Experiment,
    Mixture,
    ModelConfig,
    Optim,
    Reward,
    Text,
)

KL_TARGET, KL_BOUND = 6.0, 10.0
"""Nats per reply: what the KL coefficient is steered to, and within what the stories have to get happier."""


def judge_stories(figures: Mapping[str, list[float]]) -> list[Claim]:
    """Happier by the reward model and by an independent word list, near the pretrained model."""
    claims = []
    for what, name in (("the reward model", "score"), ("the word list", "positive_words")):
        mean, error = measured(figures, f"ppo_minus_sft/{name}")
        claims.append(Claim(f"happier by {what}", "paired gain > 4 standard errors", mean, error, mean > 4 * error))
    kl, error = measured(figures, "ppo/kl")
    claims.append(Claim("near the pretrained model", f"KL < {KL_BOUND} nats per reply", kl, error, kl < KL_BOUND))
    return claims


@register(
    "real/stories_sentiment",
    paper="Ziegler et al. 2019",
    claim="PPO against a sentiment model makes a pretrained story writer more positive at a bounded KL",
    costs={"cpu": "4 min 30 s a seed on 2 cores"},
    judge=judge_stories,
)
def stories_sentiment(scale: str) -> Experiment:
    """Positive continuations of story openings, from the pretrained stories260K checkpoint (a TinyStories model of llama2.c).

    The reward model is the checkpoint's trunk with a scalar head, trained on SST-2 phrases and IMDB reviews; its log-odds of
    "positive" are the reward. Sentiment is also counted by a word list that nothing is trained on. Task after Ziegler et al. 2019
    (arXiv:1909.08593), section 3.1: a reply is cut at the first full stop that has 24 tokens before it (16 there), one without any
    scores -1, and the KL coefficient is steered to 6 nats a reply. The scores are normalised on the checkpoint's own samples first, as
    there: without a unit, what -1 costs would depend on the seed's sentiment model.
    """
    return Experiment(
        name="real/stories_sentiment",
        scale="cpu",
        policy=ModelConfig(vocab=512, width=64, layers=5, heads=8, kv_heads=4, mlp=172, max_length=512),
        checkpoint="checkpoints/stories260K/stories260K.bin",
        text=Text(tokenizer="checkpoints/stories260K/tok512.model", template="none", length=64, prompt_length=16),
        prompts=Mixture((("openings:text/tinystories/tiny_stories.txt.gz", 1.0),), held_out=0.2),
        evaluation=Evaluation(prompts=512, rows=128, new_tokens=48, positive_words=True),
        reward=Reward(
            data=Mixture((("sst2:rl/sst2/train.tsv.gz", 0.9), ("imdb:rl/imdb/*.tar.gz", 0.1)), held_out=0.03),
            optim=Optim(lr=1e-3, steps=1200, rows=64, warmup=50, weight_decay=0.01),
            scores="normalised",
            eval_every=300,
        ),
        ppo=PPO(
            optim=Optim(lr=5e-4, rows=32, schedule="linear"),
            value_optim=Optim(lr=1e-3, rows=32, schedule="linear"),
            iterations=40,
            prompts=64,
            new_tokens=48,
            epochs=2,
            kl_coef=0.2,
            kl_target=KL_TARGET,
            kl_horizon=500.0,  # 10,000 there, for a million episodes
            stop_token=".",
            stop_after=24,
            missing_stop_score=-1.0,
        ),
    )


@register(
    "real/alpaca_sft",
    paper="Taori et al. 2023",
    claim="SFT on real instructions, of which there are 42,000, lowers the held-out loss of their replies",
    costs={"cpu": "3 min a seed on 2 cores"},
)
def alpaca_sft(scale: str) -> Experiment:
    """A small decoder trained from scratch on Stanford Alpaca, prompt masked, Mistral's tokenizer.

    Two thirds of its parameters are the embedding of 32,000 pieces. Expect a held-out loss well below the first one (ln 32000 = 10.4
    nats per token); a model of this size does not follow instructions. 200 updates see 1,600 rows of 256 tokens, a part of an epoch.
    """
    return Experiment(
        name="real/alpaca_sft",
        scale="cpu",
        policy=ModelConfig(
            vocab=32_000, width=128, layers=4, heads=4, kv_heads=2, mlp=384, max_length=256, logit_chunk=256
        ),
        text=Text(tokenizer="tokenizers/mistral-v1/tokenizer.model", template="alpaca", length=256, prompt_length=128),
        evaluation=Evaluation(prompts=64, rows=16, new_tokens=64),
        sft=SFT(
            data=Mixture((("alpaca:instructions/alpaca-en/*.json.gz", 1.0),), held_out=0.01),
            optim=Optim(lr=2e-3, steps=200, rows=8, warmup=20, weight_decay=0.01),
            pack_length=256,
            eval_every=100,
        ),
    )


@register(
    "real/tldr_sft",
    paper="Stiennon et al. 2020",
    claim="SFT on posts and their summaries, long posts cut at a line, lowers the held-out loss of the summaries",
    costs={"cpu": "75 s a seed on 2 cores"},
)
def tldr_sft(scale: str) -> Experiment:
    """A small decoder trained from scratch on 450 Reddit posts with their summaries, Mistral's tokenizer.

    The form of the queries is the paper's (appendix B.2): subreddit, title and post up to "TL;DR:", a post that does not fit losing its
    end. Expect a held-out loss far below the first one (ln 32000 = 10.4 nats per token); summaries of this model are not readable.
    """
    return Experiment(
        name="real/tldr_sft",
        scale="cpu",
        policy=ModelConfig(
            vocab=32_000, width=64, layers=2, heads=4, kv_heads=4, mlp=192, max_length=384, logit_chunk=384
        ),
        text=Text(tokenizer="tokenizers/mistral-v1/tokenizer.model", template="tldr", length=384, prompt_length=320),
        evaluation=Evaluation(prompts=32, rows=16, new_tokens=53),
        sft=SFT(
            data=Mixture((("tldr:rl/tldr/test.json.gz", 1.0),), held_out=0.1),
            optim=Optim(lr=2e-3, steps=100, rows=8, warmup=10, weight_decay=0.01),
            eval_every=25,
        ),
    )


@register(
    "real/instruction_mixture",
    paper="Wei et al. 2021",
    claim="SFT on sets of 500 to 50,000 instructions, mixed by their sizes up to 3,000, lowers the held-out loss",
    costs={"cpu": "75 s a seed on 2 cores"},
)
def instruction_mixture(scale: str) -> Experiment:
    """A small decoder trained from scratch on Alpaca and on a set of 1,100 instructions, mixed as FLAN's tasks are.

    By size alone a row in fifty would be of the small set; with rates capped at 3,000 examples (section 2.4 there) it is one in four.
    """
    return Experiment(
        name="real/instruction_mixture",
        scale="cpu",
        policy=ModelConfig(
            vocab=32_000, width=64, layers=2, heads=4, kv_heads=4, mlp=192, max_length=256, logit_chunk=256
        ),
        text=Text(tokenizer="tokenizers/mistral-v1/tokenizer.model", template="alpaca", length=256, prompt_length=128),
        evaluation=Evaluation(prompts=32, rows=16, new_tokens=64),
        sft=SFT(
            data=Mixture(
                (("alpaca:instructions/alpaca-en/*.json.gz", 1.0), ("alpaca:instructions/rasbt/*.json", 1.0)),
                held_out=0.01,
                cap=3000,
            ),
            optim=Optim(lr=2e-3, steps=100, rows=8, warmup=10, weight_decay=0.01),
            pack_length=256,
            eval_every=50,
        ),
    )


@register(
    "real/bilingual_t5",
    paper="Chung et al. 2022",
    claim="instruction tuning of an encoder-decoder on English and Chinese instructions, one in four Chinese, lowers the held-out loss",
    costs={"cpu": "2 min a seed on 2 cores"},
)
def bilingual_t5(scale: str) -> Experiment:
    """A small T5, trained from scratch on Alpaca and its Chinese translation; Mistral's tokenizer, which spells any text.

    Both sets have some translations among them. `--set model.init=hf:google/flan-t5-base` starts from Flan-T5 with its own tokenizer, whose
    pieces have no Chinese, and `--set sft.data.sources=...` trains on records of one's own, such as "Translate to English: ...".
    Expect a held-out loss well below the first one (ln 32000 = 10.4 nats per token); the replies are not readable.
    """
    return Experiment(
        name="real/bilingual_t5",
        scale="cpu",
        policy=ModelConfig(
            vocab=32_000,
            width=96,
            encoder_layers=2,
            layers=2,
            heads=4,
            kv_heads=4,
            mlp=256,
            max_length=256,
            norm_eps=1e-6,
            position="relative",
            query_scale=1.0,
            activation="geglu",
            tied=False,
            logit_chunk=256,
        ),
        text=Text(tokenizer="tokenizers/mistral-v1/tokenizer.model", template="none", length=256, prompt_length=128),
        evaluation=Evaluation(prompts=32, rows=16, new_tokens=64),
        sft=SFT(
            data=Mixture(
                (
                    ("alpaca:instructions/alpaca-en/*.json.gz", 3.0),
                    ("alpaca:instructions/alpaca-zh/alpaca_data_zh-0[03]*.json.gz", 1.0),
                ),
                held_out=0.01,
            ),
            optim=Optim(lr=2e-3, steps=100, rows=8, warmup=10, weight_decay=0.01),
            pack_length=256,
            eval_every=50,
        ),
    )


FIELDS = (
    *("barrier_free", "data_science", "environmental_science", "intimate_relationship", "law", "lesser_known_major"),
    *("psychology", "social_science"),
)


@register(
    "real/instruction_fields",
    paper="Devlin et al. 2019",
    claim="an encoder learns from 600 questions in Chinese which of eight fields a question is from",
    costs={"cpu": "60 s a seed on 2 cores"},
)
def instruction_fields(scale: str) -> Experiment:
    """A small BERT, trained from scratch on the questions of CValues (Xu et al. 2023, arXiv:2307.09705), Chinese-LLaMA's tokenizer.

    Held-out accuracy, precision, recall and F1. The commonest field has 15 % of the questions, the rarest ten of them; expect an accuracy
    far above that, and below what a pretrained BERT reaches: `--set model.init=hf:google-bert/bert-base-chinese` starts from one.
    """
    return Experiment(
        name="real/instruction_fields",
        scale="cpu",
        policy=ModelConfig(
            vocab=20_000,
            width=64,
            layers=2,
            heads=4,
            kv_heads=4,
            mlp=256,
            max_length=96,
            norm="layer",
            norm_at="after",
            norm_eps=1e-12,
            causal=False,
            embedding_norm=True,
            token_types=2,
            position="learned",
            activation="gelu_exact",
            bias=True,
        ),
        text=Text(tokenizer="tokenizers/chinese-llama/chinese_sp.model", template="none", length=96, prompt_length=64),
        evaluation=Evaluation(prompts=32, rows=32, new_tokens=8),
        classify=Classify(
            data=Mixture((("cvalues:safety/cvalues/cvalues_responsibility_prompts.jsonl", 1.0),), held_out=0.25),
            optim=Optim(lr=1e-3, steps=200, rows=32, warmup=20, weight_decay=0.1),
            labels=FIELDS,
            eval_every=50,
        ),
    )


@register(
    "real/hh_reward",
    paper="Bai et al. 2022",
    claim="a small reward model on human comparisons, beside the longer-answer-wins baseline",
    costs={"cpu": "2 min on 2 cores"},
)
def hh_reward(scale: str) -> Experiment:
    """A small decoder with a scalar head, from scratch, on the helpfulness comparisons of hh-rlhf (5,000 pairs).

    Bai et al. 2022 (arXiv:2204.05862) report 0.72 + 0.007 log(P) + 0.015 log(D) at other sizes by far: a model without pretraining on
    this many pairs is expected near the length baseline, and the report says where it lands with its 95 % interval.
    """
    return Experiment(
        name="real/hh_reward",
        scale="cpu",
        policy=ModelConfig(vocab=32_000, width=64, layers=2, heads=4, kv_heads=4, mlp=192, max_length=256),
        text=Text(tokenizer="tokenizers/mistral-v1/tokenizer.model", template="hh", length=192, prompt_length=96),
        evaluation=Evaluation(prompts=64, rows=32, new_tokens=32),
        reward=Reward(
            data=Mixture(
                (
                    ("hh:preferences/hh-rlhf/helpful-base/test.jsonl.gz", 1.0),
                    ("hh:preferences/hh-rlhf/helpful-rejection-sampled/test.jsonl.gz", 1.0),
                ),
                held_out=0.2,
            ),
            # One epoch: more of them fit the training pairs and nothing else.
            optim=Optim(lr=1e-3, steps=128, rows=32, warmup=16, weight_decay=0.1),
            init="random",
            scores="centred",
            eval_every=32,
        ),
    )
