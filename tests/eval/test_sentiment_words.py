from __future__ import annotations

import pytest

from rlhf_jax.eval.sentiment_words import NEGATIVE, POSITIVE, sentiment_balance


@pytest.mark.parametrize(
    ("text", "balance"),
    [
        ("A happy dog and a sad cat.", 0.0),
        ("Happy, HAPPY days!", 200 / 3),
        ("one two three terrible", -25.0),
        ("unhappy", -100.0),  # whole words, not parts of them
        ("", 0.0),
        ("123 !?", 0.0),
    ],
)
def test_the_balance_is_per_hundred_words(text, balance):
    assert sentiment_balance(text) == pytest.approx(balance)


def test_no_word_is_both():
    assert not POSITIVE & NEGATIVE
