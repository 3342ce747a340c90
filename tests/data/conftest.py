"""Fixtures of the data tests: a few texts, and a tokenizer trained on them."""

import pytest

from rlhf_jax.data.tokens.tokenizer import SentencePieceTokenizer, train_sentencepiece

TEXT = "the cat sat on a mat and wrote 12 letters to its friend who lives in the red house by the river"


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Small English texts with newlines and runs of spaces."""
    words = TEXT.split(" ")
    lines = [" ".join(words[i:] + words[:i]) for i in range(len(words))]
    return [f"Human: {line}?\n\nAssistant:  {line}." for line in lines]


@pytest.fixture(scope="session")
def trained(texts: list[str]) -> SentencePieceTokenizer:
    return train_sentencepiece(texts, vocab_size=360)
