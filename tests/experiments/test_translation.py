"""A Flan-T5 of one's own folder, tuned on "Translate to English: ..." records in several languages, and back in transformers."""

from __future__ import annotations

import json

import numpy as np
import torch
from families import random_model
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, T5Config, T5Tokenizer

from experiments import run
from rlhf_jax.report.metrics import read_metrics

RECORDS = [
    ("Translate to English: 早上好，你怎么样？", "Good morning, how are you?"),
    ("Translate to English: Guten Morgen, wie geht es dir?", "Good morning, how are you?"),
    ("Translate to English: Il fait beau aujourd'hui.", "The weather is nice today."),
    ("Translate to Chinese: Good morning.", "早上好。"),
    ("Translate to English: 我累了。", "I am tired."),
    ("Translate to German: The red house.", "Das rote Haus."),
]


def test_translations_train_a_flan_t5_and_leave_with_it(data_root, tmp_path, monkeypatch):
    folder, data = tmp_path / "flan", tmp_path / "data"
    data.mkdir()
    rows = [{"instruction": asked, "input": "", "output": said} for asked, said in 4 * RECORDS]
    (data / "translations.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    T5Tokenizer.from_pretrained(data_root / "tokenizers" / "t5").save_pretrained(folder)
    settings = {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_heads": 4,
        "num_layers": 2,
        "feed_forward_proj": "gated-gelu",
    }
    config = T5Config(vocab_size=32_128, **settings, tie_word_embeddings=False, decoder_start_token_id=0)
    random_model(config, AutoModelForSeq2SeqLM).save_pretrained(folder)

    monkeypatch.setenv("RLHF_JAX_DATA", str(data))
    changes = {
        "model.init": folder,
        "sft.data.sources": '[["alpaca:translations.json", 1.0]]',
        "sft.data.held_out": 0.2,
        "sft.optim.steps": 12,
        "sft.optim.lr": 0.01,
        "sft.optim.warmup": 0,
        "sft.pack_length": "none",
        "text.length": 48,
        "text.prompt_length": 32,
        "evaluation.prompts": 1,
        "evaluation.rows": 1,
        "evaluation.new_tokens": 8,
    }
    words = [word for name, value in changes.items() for word in ("--set", f"{name}={value}")]
    directory, out = tmp_path / "run", tmp_path / "out"
    assert run.main(["run", "real/bilingual_t5", "--workdir", str(directory), *words]) == 0
    losses = read_metrics(directory / "seed_0")["sft"]["nll"].values
    assert losses[-1] < 0.8 * losses[0]
    assert run.main(["export", str(directory), "--out", str(out)]) == 0

    theirs, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(out).eval(), AutoTokenizer.from_pretrained(out)
    (sample,) = [json.loads(line) for line in (directory / "seed_0" / "samples.jsonl").read_text().splitlines()]
    asked = tokenizer(sample["prompt"], return_tensors="pt")
    assert asked["input_ids"][0, -1] == tokenizer.eos_token_id
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": sample["prompt"]}], add_generation_prompt=True, return_dict=True
    )
    np.testing.assert_array_equal(asked["input_ids"][0], chat["input_ids"])
    with torch.no_grad():
        first = theirs(**asked, decoder_input_ids=torch.tensor([[0]])).logits
    assert np.isfinite(first.numpy()).all()
