"""Touvron et al. 2023, "Llama 2: Open Foundation and Fine-Tuned Chat Models" (arXiv:2307.09288): the recipe of Llama 2 Chat at 7B."""

from __future__ import annotations

import dataclasses
from functools import partial

from experiments.registry import register
from rlhf_jax.config import PPO, SFT, Evaluation, Experiment, MeshConfig, Mixture, Optim, Reward, Text

DEMONSTRATIONS = Mixture((("alpaca:instructions/alpaca-en/*.json*", 1.0),))
COMPARISONS = Mixture((("hh:preferences/hh-rlhf/*/*.jsonl*", 1.0),))

_optim = partial(Optim, b1=0.9, b2=0.95, eps=1e-5, weight_decay=0.1, max_grad_norm=1.0)


@register(
    "touvron2023/chat",
    paper="Touvron et al. 2023",
    claim="SFT, reward model and PPO from Llama 2 7B: the reward model's score rises at a bounded KL",
    costs={"tpu": "not run; 153,600 episodes with three models of 7B"},
    topology="v5p:4x4x4",
)
def chat(scale: str) -> Experiment:
    """Llama 2 7B through the three stages, with the numbers of sections 3.1, 3.2.2 and 3.2.3.

    SFT for two epochs, batch 64 of 4,096 tokens packed, lr 2e-5 with a cosine; the reward model, from SFT, for one epoch at batch 512,
    lr 1e-5 with a cosine to 10 % and 3 % of warm-up; PPO with batch 512 = 8 x 64, one gradient step a minibatch, clip 0.2, constant lr
    1e-6, beta 0.01, 300 iterations (200 to 400 there). AdamW with beta2 0.95, eps 1e-5, weight decay 0.1, gradients clipped at 1
    throughout. The weights are gated: `--set model.init=FOLDER` takes a copy. Expect the score to rise, and KL with it; the paper gives
    win rates, by people.
    Differences: public data, Alpaca for 27,540 annotations of their own and HH-RLHF (160,800 pairs) for 2.9 million; one reward model
    of helpful and harmless pairs in place of two, without margins by rating, its score less its mean over its deviation on samples,
    without the logit before; PPO from SFT, not from rounds of rejection sampling; the value model, lambda 0.95 and lengths (prompts of
    2,048 tokens, replies of 1,024) are ours, as the paper is silent on them.
    """
    from rlhf_jax.models.presets import preset

    return Experiment(
        name="touvron2023/chat",
        scale="tpu",
        # A chip has one row of an update: 512 columns of it are a product with the output layer that is not bound by reading its weights.
        policy=dataclasses.replace(
            preset("llama-2-7b"), dtype="bfloat16", remat="layers", logit_chunk=512, gather_once=True
        ),
        checkpoint="hf:meta-llama/Llama-2-7b-hf",
        text=Text(
            tokenizer="checkpoint", template="llama2", length=4096, prompt_length=2048, buckets=(512, 1024, 2048)
        ),
        prompts=COMPARISONS,
        evaluation=Evaluation(prompts=512, rows=64, new_tokens=1024),
        # Two epochs of 42,148 demonstrations, which are 930 rows when packed.
        sft=SFT(data=DEMONSTRATIONS, optim=_optim(lr=2e-5, steps=30, rows=64), pack_length=4096, eval_every=10),
        # 160,800 pairs / 512.
        reward=Reward(
            data=COMPARISONS,
            optim=_optim(lr=1e-5, steps=314, rows=512, microbatches=4, warmup=9, final_lr=0.1),
            scores="normalised",
            eval_every=50,
        ),
        ppo=PPO(
            optim=_optim(lr=1e-6, rows=64, schedule="constant"),
            value_optim=_optim(lr=1e-6, rows=64, schedule="constant"),
            iterations=300,
            prompts=512,
            new_tokens=1024,
            kl_coef=0.01,
        ),
        mesh=MeshConfig(fsdp=64),
    )
