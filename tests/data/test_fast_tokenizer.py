"""Tokenizers of ours as transformers reads them: the same tokens, and conversations that are the prompts we train on."""

from __future__ import annotations

import json
import shutil

import pytest
from transformers import AutoTokenizer

from rlhf_jax.data.schema import Prompt, Provenance, Turn
from rlhf_jax.data.tokens.encode import encode_prompt
from rlhf_jax.data.tokens.fast_tokenizer import PROBES, fast_tokenizer, save_fast
from rlhf_jax.data.tokens.templates import TEMPLATES, Frames
from rlhf_jax.data.tokens.tokenizer import SentencePieceTokenizer, load_tokenizer, train_sentencepiece
from rlhf_jax.worlds.instruct import InstructWorld

MODELS = {
    "stories": "checkpoints/stories260K/tok512.model",
    "mistral": "tokenizers/mistral-v1/tokenizer.model",
    "t5": "tokenizers/t5/spiece.model",
}
HERE = Provenance("test", "MIT", "here:1")
ONE = (Turn("user", "Say 'hi' to {x}.\n"),)
MORE = (Turn("system", 'Be "kind".'), Turn("user", "{% if a %}\\n"), Turn("assistant", "Yes\n?"), Turn("user", " Bye"))


@pytest.fixture(params=["trained", *MODELS], scope="module")
def sentencepiece(request) -> SentencePieceTokenizer:
    if request.param == "trained":
        return train_sentencepiece(InstructWorld(seed=0).corpus(500), 700)
    found = load_tokenizer(request.getfixturevalue("data_root") / MODELS[request.param])
    assert isinstance(found, SentencePieceTokenizer)
    return found


def test_tokens_are_those_of_sentencepiece_on_texts_of_the_world(sentencepiece):
    written = fast_tokenizer(sentencepiece.model)
    for text in (*InstructWorld(seed=3).corpus(200), *PROBES):
        for around in (text, f"\n{text}\n\n", f"\t{text} "):
            assert written.encode(around, add_special_tokens=False).ids == sentencepiece.encode(around), repr(around)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("turns", [ONE, MORE], ids=["one turn", "a dialogue"])
def test_a_conversation_is_the_prompt_that_we_train_on(sentencepiece, name, turns, tmp_path):
    template = TEMPLATES[name]
    sentencepiece.save_pretrained(tmp_path, template)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    chat = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    assert tuple(chat["input_ids"]) == encode_prompt(Prompt(turns, HERE), sentencepiece, template).prompt


def test_a_tokenizer_with_cls_in_place_of_bos_opens_conversations_with_it(data_root, tmp_path):
    shutil.copyfile(data_root / "tokenizers/bert-base-chinese/vocab.txt", tmp_path / "vocab.txt")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    ours = load_tokenizer(tmp_path)
    ours.save_pretrained(tmp_path / "out", TEMPLATES["plain"])  # pyright: ignore[reportCallIssue]
    chat = AutoTokenizer.from_pretrained(tmp_path / "out").apply_chat_template(
        [{"role": "user", "content": "你好"}], return_dict=True
    )
    prompt = Prompt((Turn("user", "你好"),), HERE)
    assert tuple(chat["input_ids"]) == encode_prompt(prompt, ours, TEMPLATES["plain"]).prompt


def test_a_tokenizer_that_would_be_another_there_is_refused(sentencepiece, tmp_path, monkeypatch):
    from rlhf_jax.data.tokens import fast_tokenizer as module

    other = train_sentencepiece(InstructWorld(seed=1).corpus(800), 720).model
    right = module.fast_tokenizer
    monkeypatch.setattr(module, "fast_tokenizer", lambda model, **how: right(other, **how))
    with pytest.raises(ValueError, match=r"transformers would read .* as \[.*\], the sentencepiece model reads \["):
        save_fast(sentencepiece.model, tmp_path, Frames(user="{}", assistant="{}"))
    assert list(tmp_path.iterdir()) == []
