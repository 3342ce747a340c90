import json
import shutil

import pytest

from rlhf_jax.data.tokens.tokenizer import (
    SentencePieceTokenizer,
    Tokenizer,
    TransformersTokenizer,
    find_tokenizer,
    load_tokenizer,
    save_tokenizer,
    train_sentencepiece,
)

HARD = [
    "one\ntwo\n\n  three   four ",
    " leading and trailing\n",
    "tabs\t\tand\r\nreturns",
    "日本語 naïve 🙂 unseen",
    "nul \x00 stays",
    "</s><s><pad> are text",
    "12345",
    "",
]


@pytest.mark.parametrize("text", HARD, ids=ascii)
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_every_text_survives_a_tokenizer_trained_here(texts, kind, text):
    tokenizer = train_sentencepiece(texts, vocab_size=305, kind=kind)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not {tokenizer.bos, tokenizer.eos, tokenizer.pad} & set(ids)


def test_text_cut_anywhere_at_a_word_reads_the_same_joined(trained):
    whole = "the cat sat\n\nAssistant:"
    assert trained.encode(whole) + trained.encode(" on a mat") == trained.encode(whole + " on a mat")


def test_digits_and_newlines_are_single_tokens(trained):
    assert len(trained.encode("12212")) == 5
    assert trained.encode("\n\n") == trained.encode("\n") * 2


def test_specials_are_distinct_dropped_by_decode_and_counted_in_the_vocabulary(trained):
    assert len({trained.bos, trained.eos, trained.pad}) == 3
    assert trained.decode([trained.bos, *trained.encode("the cat"), trained.eos, trained.pad]) == "the cat"
    assert trained.vocab_size == 360
    assert isinstance(trained, Tokenizer)


def test_the_same_texts_give_the_same_bytes_and_the_cache_is_by_content(texts, tmp_path):
    first = train_sentencepiece(iter(texts), 340, tmp_path / "cache")
    (stored,) = (tmp_path / "cache").glob("*.model")
    assert stored.read_bytes() == first.model == train_sentencepiece(texts, 340).model
    modified = stored.stat().st_mtime_ns
    assert train_sentencepiece(texts, 340, tmp_path / "cache").model == first.model
    assert stored.stat().st_mtime_ns == modified
    train_sentencepiece(texts, 341, tmp_path / "cache")
    train_sentencepiece(texts[:-1], 340, tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("*.model"))) == 3


def test_a_cached_model_is_used_instead_of_training(texts, tmp_path, monkeypatch):
    import sentencepiece

    trained = train_sentencepiece(texts, 340, tmp_path)
    monkeypatch.setattr(sentencepiece.SentencePieceTrainer, "train", None)
    assert train_sentencepiece(texts, 340, tmp_path).model == trained.model


@pytest.mark.parametrize("lost", ["a bit", "the digest"])
def test_a_damaged_model_in_the_cache_is_trained_again(texts, tmp_path, lost):
    trained = train_sentencepiece(texts, 340, tmp_path)
    (stored,) = tmp_path.glob("*.model")
    if lost == "a bit":
        stored.write_bytes(bytes([trained.model[0] ^ 1]) + trained.model[1:])
    else:
        stored.with_name(f"{stored.name}.sha256").unlink()
    assert train_sentencepiece(texts, 340, tmp_path).model == trained.model == stored.read_bytes()


def test_training_prints_nothing(texts, capfd):
    train_sentencepiece(texts, 340)
    assert capfd.readouterr() == ("", "")


def test_long_lines_are_learnt_from_and_not_left_out():
    # Over the 4192 bytes at which sentencepiece drops a line by default.
    line = "zebra " * 2000
    assert len(train_sentencepiece([line], 275).encode("zebra")) == 1


def test_a_vocabulary_that_does_not_fit_the_texts_says_which_would(texts):
    with pytest.raises(ValueError, match=r"cannot learn 50000 pieces from \d+ lines: Vocabulary size too high.*<= \d+"):
        train_sentencepiece(texts, 50_000)
    with pytest.raises(ValueError, match=r"cannot learn 100 pieces .* smaller than required_chars\. 100 vs \d+"):
        train_sentencepiece(texts, 100)
    with pytest.raises(ValueError, match="no text to train"):
        train_sentencepiece(["", "\n"], 300)


def test_a_saved_tokenizer_is_loaded_by_its_path(trained, tmp_path):
    trained.save(tmp_path / "deep" / "tok.model")
    assert load_tokenizer(tmp_path / "deep" / "tok.model").encode("the cat") == trained.encode("the cat")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["tok.model"]


def test_a_tokenizer_saved_into_a_folder_is_found_there(trained, tmp_path):
    save_tokenizer(trained, tmp_path / "new")
    assert find_tokenizer(tmp_path / "new").model == trained.model


def test_what_is_no_tokenizer_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        load_tokenizer(tmp_path / "absent")
    (tmp_path / "junk.model").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"junk\.model is not a sentencepiece model"):
        load_tokenizer(tmp_path / "junk.model")


@pytest.mark.parametrize(
    ("path", "vocab_size", "bos", "eos", "pad"),
    [
        ("tokenizers/mistral-v1/tokenizer.model", 32_000, 1, 2, 2),
        ("checkpoints/stories260K/tok512.model", 512, 1, 2, 2),
        ("tokenizers/t5/spiece.model", 32_000, None, 1, 0),
    ],
)
def test_published_models_keep_their_special_ids_and_pad_falls_back_to_eos(data_root, path, vocab_size, bos, eos, pad):
    tokenizer = load_tokenizer(data_root / path)
    assert (tokenizer.vocab_size, tokenizer.bos, tokenizer.eos, tokenizer.pad) == (vocab_size, bos, eos, pad)
    assert tokenizer.decode(tokenizer.encode("Once upon a time")) == "Once upon a time"


def test_a_transformers_folder_is_read_and_spelt_specials_stay_text(data_root, tmp_path):
    shutil.copyfile(data_root / "tokenizers/gpt2/encoder.json", tmp_path / "vocab.json")
    shutil.copyfile(data_root / "tokenizers/gpt2/vocab.bpe", tmp_path / "merges.txt")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    tokenizer = load_tokenizer(tmp_path)
    assert isinstance(tokenizer, TransformersTokenizer)
    assert isinstance(tokenizer, Tokenizer)
    assert (tokenizer.vocab_size, tokenizer.bos, tokenizer.eos, tokenizer.pad) == (50257, 50256, 50256, 50256)
    text = "Hello  world<|endoftext|>\n ."
    ids = tokenizer.encode(text)
    assert 50256 not in ids
    assert tokenizer.decode([50256, *ids, 50256]) == text
    save_tokenizer(tokenizer, tmp_path / "saved")
    again = find_tokenizer(tmp_path / "saved")
    assert (again.encode(text), again.decode(ids), again.vocab_size, again.eos) == (ids, text, 50257, 50256)


def test_a_folder_with_cls_and_sep_alone_uses_them_as_bos_and_eos(data_root, tmp_path):
    shutil.copyfile(data_root / "tokenizers/bert-base-chinese/vocab.txt", tmp_path / "vocab.txt")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == (101, 102, 0)


def test_training_on_many_real_texts_is_exact_on_all_of_them(data_root):
    from rlhf_jax.data.readers.json_arrays import read_json

    path = data_root / "instructions/alpaca-en/alpaca_data-00000-03252.json.gz"
    texts = [row[field] for _, row in read_json(path) for field in ("instruction", "input", "output")]
    tokenizer = train_sentencepiece(texts, 2048)
    assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in texts)
    assert isinstance(tokenizer, SentencePieceTokenizer)
