"""Chinese, and Chinese beside English: small decoders trained from scratch on instructions, dialogues and translations."""

from __future__ import annotations

from experiments.registry import register
from rlhf_jax.config import SFT, Curation, Evaluation, Experiment, Mixture, ModelConfig, Optim, Text

LICENCES = ("MIT", "Apache-2.0", "CC-BY-NC-4.0", "ODC-By-1.0", "research-only")
POLICY = ModelConfig(vocab=20_000, width=128, layers=4, heads=4, kv_heads=2, mlp=384, max_length=512, logit_chunk=256)
TEXT = Text(tokenizer="tokenizers/chinese-llama/chinese_sp.model", template="llama2", length=512, prompt_length=256)
OPTIM = Optim(lr=2e-3, steps=150, rows=4, warmup=20, weight_decay=0.01)


@register(
    "real/zh_sft",
    paper="Cui et al. 2023",
    claim="SFT on Chinese instructions and dialogues of several turns, mixed by the square roots of their sizes, lowers the held-out loss",
    costs={"cpu": "3 min a seed on 2 cores"},
)
def zh_sft(scale: str) -> Experiment:
    """A small decoder trained from scratch on six Chinese sets; the tokenizer of Chinese-LLaMA, the chat template of Llama 2.

    Alpaca's translation (with and without input; one file is broken and read as far as it goes), OpenAssistant's dialogues, ShareGPT's, of
    which every reply is learned, and three more; as Cui et al. 2023 (arXiv:2304.08177). Rates go with the square root of a set's size, so
    that the 17,000 rows of Alpaca are not two thirds of all. Expect a held-out loss well below the first one (ln 20000 = 9.9 nats per
    token); a model of this size does not follow instructions. The records are cleaned, personal data is masked and the problems of CMATH
    are kept out, which needs `pip install 'rlhf_jax[data]'`.
    """
    sources = (
        "alpaca:instructions/alpaca-zh/*.json.gz?damaged=salvage",
        "alpaca:instructions/zh-supplement/*.json*",
        "alpaca:instructions/llamafactory/alpaca_zh_demo.json.gz",
        "sharegpt:instructions/medicalgpt/sharegpt_zh_1K_format.jsonl.gz",
        "alpaca:instructions/oasst-zh/oaast_sft_zh.json.gz",
        "seed_tasks:instructions/belle/zh_seed_tasks.json",
    )
    return Experiment(
        name="real/zh_sft",
        scale="cpu",
        policy=POLICY,
        text=TEXT,
        evaluation=Evaluation(prompts=64, rows=16, new_tokens=64),
        data=Curation(
            licences=LICENCES,
            clean=(
                *(
                    "repair",
                    "normalise",
                    "empty",
                    "placeholder",
                    "refusal",
                    "self_identification",
                    "truncated",
                    "language",
                ),
                *("exact_duplicates", "near_duplicates", "contaminated"),
            ),
            languages=("zh", "en"),
            unseen=("questions:rl/cmath/test.jsonl",),
            mask=("email", "phone", "chinese_id", "card", "url_credentials"),
        ),
        sft=SFT(
            data=Mixture(tuple((source, 1.0) for source in sources), held_out=0.02, temperature=2.0),
            optim=OPTIM,
            pack_length=512,
            packing="best_fit",
            eval_every=50,
        ),
    )


@register(
    "real/translation_sft",
    paper="Zhu et al. 2023",
    claim="SFT on instructions in two languages and on translations between them lowers the held-out loss of all of them together",
    costs={"cpu": "3 min a seed on 2 cores"},
)
def translation_sft(scale: str) -> Experiment:
    """English and Chinese instructions, and pairs of translations in both directions, as Zhu et al. 2023 (arXiv:2308.04948).

    The pairs are the rows of Alpaca 12345-15323 beside those of its translation, which has as many: 413 instructions and 377 outputs
    that were translated; rows that were left in English are no pairs, and go from the Chinese set as duplicates of the English one.
    Instructions of each language are two fifths of the rows, the translations a fifth. The English side of a pair is also a row of Alpaca,
    and held out by another prompt: a held-out translation into English may be a reply that was trained on.
    """
    alpaca = "instructions/alpaca-{code}/alpaca_data{marked}-12345-15323.json.gz"
    sides = f"en={alpaca.format(code='en', marked='')},zh={alpaca.format(code='zh', marked='_zh')}"
    shares = {
        "alpaca:instructions/alpaca-en/*.json.gz": 0.4,
        "alpaca:instructions/alpaca-zh/*.json.gz?damaged=salvage": 0.4,
        f"parallel:{sides}?field=instruction": 0.1,
        f"parallel:{sides}?field=output": 0.1,
    }
    return Experiment(
        name="real/translation_sft",
        scale="cpu",
        policy=POLICY,
        text=TEXT,
        evaluation=Evaluation(prompts=64, rows=16, new_tokens=64),
        data=Curation(licences=LICENCES, clean=("exact_duplicates",)),
        sft=SFT(
            data=Mixture(tuple(shares.items()), held_out=0.02),
            optim=OPTIM,
            pack_length=512,
            packing="best_fit",
            eval_every=50,
        ),
    )
