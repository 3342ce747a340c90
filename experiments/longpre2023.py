"""Longpre et al. 2023, "The Flan Collection: Designing Data and Methods for Effective Instruction Tuning" (arXiv:2301.13688)."""

from __future__ import annotations

from experiments.registry import register
from rlhf_jax.config import SFT, Evaluation, Experiment, Flan, Mixture, ModelConfig, Optim, Text


@register(
    "longpre2023/formats",
    paper="Longpre et al. 2023",
    claim="SFT on chains of thought, questions and instructions, worded in ten ways, half behind examples, three in ten turned round",
    costs={"cpu": "3 min a seed on 2 busy cores"},
)
def formats(scale: str) -> Experiment:
    """A small decoder trained from scratch on four sets in FLAN's formats, mixed by size up to 3,000 examples each; Mistral's tokenizer.

    Two tasks of the collection's chain-of-thought part, GSM8K, and 1,100 instructions. `--set sft.data.flan.inverted=0` and
    `sft.data.flan.few_shot=0` leave a format out (section 3.2 there: without few-shot templates the held-in few-shot accuracy of T5-XL
    falls from 74.8 to 62.2, without inversion its MMLU from 50.3 to 41.7), `sft.data.flan.wordings=1` words each task in one way. Expect a
    held-out loss well below the first one (ln 32000 = 10.4 nats per token); a model of this size learns the forms, not the tasks.
    """
    sources = (
        *("cot:instructions/flan-cot/aqua_train.tsv.gz", "cot:instructions/flan-cot/strategyqa_train.tsv.gz"),
        *("gsm8k:rl/gsm8k/train.jsonl.gz", "alpaca:instructions/rasbt/instruction-data.json"),
    )
    return Experiment(
        name="longpre2023/formats",
        scale="cpu",
        policy=ModelConfig(
            vocab=32_000, width=64, layers=2, heads=4, kv_heads=4, mlp=192, max_length=512, logit_chunk=256
        ),
        text=Text(tokenizer="tokenizers/mistral-v1/tokenizer.model", template="plain", length=512, prompt_length=384),
        evaluation=Evaluation(prompts=32, rows=16, new_tokens=64),
        sft=SFT(
            data=Mixture(tuple((source, 1.0) for source in sources), held_out=0.02, cap=3000, flan=Flan()),
            optim=Optim(lr=2e-3, steps=100, rows=4, warmup=10, weight_decay=0.01),
            pack_length=512,
            packing="best_fit",
            eval_every=50,
        ),
    )
