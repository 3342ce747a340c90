"""Real tokenizers, read as a user has them: the ids of the library that each comes from, and no special ids from text."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_jax.data.tokens.tokenizer import (
    SentencePieceTokenizer,
    Tokenizer,
    TransformersTokenizer,
    find_tokenizer,
    load_tokenizer,
    save_tokenizer,
)
from rlhf_jax.doctor.report import Check
from rlhf_jax.doctor.texts import SPELLED, TEXTS, of_tokenizer
from rlhf_jax.rollout.stop_texts import token_texts

MIXED = [
    "The quick brown fox, isn't it?  Two  blanks, then three   .",
    "写一首诗。床前明月光，\n疑是地上霜。",
    "def f(x):\n\treturn {\n                        'a': x**2,\n    }\n",
    "🙂 ok 👩\u200d👩\u200d👧 naïve cafe\u0301 ½ Ⅳ ﬁ ￥",
    " leading and trailing \n",
    "AI 2024年 混合 text mixed 中文, 12345.67",
    "https://example.org/a?b=c&d=1 [1] {2} <3> \\n",
    "a\r\nb\u3000c\u00a0d",
    "",
    *(text for pair in TEXTS for text in pair),
]
Files = dict[str, str]  # name in the folder -> where the data set has it

# Each as a folder of the hub has it.
FOLDERS: dict[str, tuple[Files, dict[str, Any]]] = {
    "GPT-2": (
        {"vocab.json": "gpt2/encoder.json", "merges.txt": "gpt2/vocab.bpe"},
        {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 1024},
    ),
    "GPT-NeoX": (
        {"tokenizer.json": "gpt-neox/20B_tokenizer.json.gz"},
        {
            "tokenizer_class": "GPTNeoXTokenizer",
            "bos_token": "<|endoftext|>",
            "eos_token": "<|endoftext|>",
            "unk_token": "<|endoftext|>",
        },
    ),
    "BERT Chinese": (
        {"vocab.txt": "bert-base-chinese/vocab.txt"},
        {"tokenizer_class": "BertTokenizer", "do_lower_case": False},
    ),
}
MODELS = {
    "Mistral": "mistral-v1/tokenizer.model",
    "T5": "t5/spiece.model",
    "Chinese Llama": "chinese-llama/chinese_sp.model",
    "sentencepiece's own": "sentencepiece-test/test_model.model",
}
every_folder = pytest.mark.parametrize("name", FOLDERS)
every_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture
def folder(data_root: Path, tmp_path: Path):
    """Lays a folder out and gives its path."""

    def lay(files: Files, settings: dict[str, Any] | None) -> Path:
        for name, source in files.items():
            content = (data_root / "tokenizers" / source).read_bytes()
            (tmp_path / name).write_bytes(gzip.decompress(content) if source.endswith(".gz") else content)
        if settings is not None:
            (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        return tmp_path

    return lay


def of_transformers(path: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(path), local_files_only=True)


def assert_text_is_never_special(tokenizer: Tokenizer, special: set[int]) -> None:
    special = special | {number for number in (tokenizer.bos, tokenizer.eos) if number is not None}
    for spelled in SPELLED:
        for text in (spelled, f"a {spelled} b", f"a{spelled}{spelled}b"):
            assert not special & set(tokenizer.encode(text)), text


def failing(tokenizer: Tokenizer) -> list[Check]:
    """What the doctor finds wrong."""
    checks = list(of_tokenizer("", tokenizer))
    assert len(checks) > 5
    return [check for check in checks if check.verdict == "fails"]


@every_folder
def test_the_ids_of_a_folder_are_those_of_transformers(folder, name):
    path = folder(*FOLDERS[name])
    ours, theirs = find_tokenizer(path), of_transformers(path)
    assert isinstance(ours, TransformersTokenizer)
    for text in MIXED:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text
    assert_text_is_never_special(ours, set(theirs.all_special_ids) - {theirs.unk_token_id})


@pytest.mark.parametrize("name", ["GPT-2", "GPT-NeoX"])
def test_any_text_survives_a_byte_level_tokenizer(folder, name):
    tokenizer = load_tokenizer(folder(*FOLDERS[name]))
    for text in [*MIXED, *(f"a {spelled} b" for spelled in SPELLED)]:
        # GPT-NeoX's tokenizer brings text into composed form.
        expected = text if name == "GPT-2" else text.replace("e\u0301", "é")
        assert tokenizer.decode(tokenizer.encode(text)) == expected


@every_folder
def test_what_each_token_adds_to_a_text_makes_the_text(folder, name):
    tokenizer = find_tokenizer(folder(*FOLDERS[name]))
    pieces = token_texts(tokenizer, tokenizer.encode("a")[-1:])
    for text in ("a word, and another: 12 of them.", "Q: is it so?\nA: no"):
        ids = tokenizer.encode(text)
        assert "".join(pieces[number] for number in ids).removeprefix(" ") == tokenizer.decode(ids)
    assert pieces[tokenizer.eos] == ""


@every_model
@pytest.mark.parametrize("beside", ["the file", "in a folder", "with settings"])
def test_the_ids_of_a_model_file_are_those_of_sentencepiece(data_root, folder, name, beside):
    import sentencepiece

    source = data_root / "tokenizers" / MODELS[name]
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(source))
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "added_tokens_decoder": {"0": {}, "2": {}}}
    if beside == "the file":
        ours = load_tokenizer(source)
    else:
        ours = find_tokenizer(folder({source.name: MODELS[name]}, settings if beside == "with settings" else None))
    assert isinstance(ours, SentencePieceTokenizer)
    for text in MIXED:
        assert ours.encode(text) == theirs.encode(text), text
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text)), text
    assert_text_is_never_special(ours, {number for number in (ours.pad,) if number != theirs.unk_id()})


def test_mistral_keeps_every_text_and_splits_blanks_as_it_was_trained_to(data_root):
    tokenizer = load_tokenizer(data_root / "tokenizers" / MODELS["Mistral"])
    for text in MIXED:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("it?  Two") == [378, 28804, 28705, 6005]  # a blank, then "▁Two": not "▁▁" and "Two"


def test_t5_in_the_form_of_transformers_has_the_ids_of_sentencepiece_and_spells_no_end(data_root, folder, tmp_path):
    """Its unigram model finds its piece "</s>" in text, whatever transformers is told."""
    source = folder({"spiece.model": MODELS["T5"]}, {"tokenizer_class": "T5Tokenizer", "extra_ids": 0})
    theirs = of_transformers(source)
    theirs.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "tokenizer.json").is_file()
    ours, pieces = load_tokenizer(tmp_path / "saved"), load_tokenizer(data_root / "tokenizers" / MODELS["T5"])
    assert isinstance(ours, TransformersTokenizer)
    assert (ours.eos, ours.pad, ours.vocab_size) == (pieces.eos, pieces.pad, pieces.vocab_size)
    for text in MIXED:
        assert ours.encode(text) == pieces.encode(text) == theirs.encode(text, add_special_tokens=False), text
    assert theirs.eos_token_id in theirs.encode("a </s> b", add_special_tokens=False, split_special_tokens=True)
    assert_text_is_never_special(ours, {ours.pad})
    save_tokenizer(ours, tmp_path / "again")
    again = find_tokenizer(tmp_path / "again")
    for text in [*MIXED, *SPELLED]:
        assert again.encode(text) == ours.encode(text)
    assert again.decode([*ours.encode("so it ends"), ours.eos, ours.pad]) == "so it ends"


def test_a_model_file_that_is_to_end_otherwise_is_left_to_transformers(folder):
    settings = {"tokenizer_class": "LlamaTokenizer", "eos_token": {"content": "<0x00>", "__type": "AddedToken"}}
    tokenizer = load_tokenizer(folder({"tokenizer.model": MODELS["Mistral"]}, settings))
    assert (type(tokenizer), tokenizer.eos) == (TransformersTokenizer, 3)


def test_a_vocabulary_beside_the_config_of_a_model_is_found(folder):
    path = folder(FOLDERS["GPT-2"][0], None)
    (path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    assert find_tokenizer(path).encode("Hello world") == [15496, 995]


def test_a_model_file_with_added_tokens_is_left_to_transformers(folder):
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "added_tokens_decoder": {"32000": {"content": "<|im_end|>", "special": True}},
        "eos_token": "<|im_end|>",
    }
    tokenizer = load_tokenizer(folder({"tokenizer.model": MODELS["Mistral"]}, settings))
    assert isinstance(tokenizer, TransformersTokenizer)
    assert (tokenizer.eos, tokenizer.vocab_size) == (32_000, 32_001)
    assert_text_is_never_special(tokenizer, {1, 2})


@every_model
def test_the_checks_of_the_doctor_hold_for_a_model_file(data_root, name):
    assert failing(load_tokenizer(data_root / "tokenizers" / MODELS[name])) == []


@every_folder
def test_the_checks_of_the_doctor_hold_for_a_folder(folder, name):
    assert failing(load_tokenizer(folder(*FOLDERS[name]))) == []


@pytest.mark.parametrize(
    ("files", "settings"),
    [
        ({"encoder.json": "gpt2/encoder.json", "vocab.bpe": "gpt2/vocab.bpe"}, None),
        ({"tokenizer_config.json": "gpt2/vocab.bpe"}, None),
        ({}, {"tokenizer_class": "NoSuchTokenizer"}),
        ({}, None),
    ],
    ids=["names of another library", "settings that are none", "a class that is none", "nothing"],
)
def test_a_folder_that_is_no_tokenizer_says_what_one_would_be(folder, files, settings):
    path = folder(files, settings)
    with pytest.raises(
        ValueError, match=r"is no tokenizer that transformers reads .*; expected tokenizer\.json"
    ) as error:
        load_tokenizer(path)
    assert str(path) in str(error.value)
