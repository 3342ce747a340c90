"""Texts that end a response: where the table says that one has been written, and what of a reply is left."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax
import numpy as np
import pytest
from builders import LLAMA, lively
from test_replies import PROMPTS, Letters, sampler

from rlhf_jax.rollout.stop_texts import before_first, stop_table

PIECES = ("a", "b", "ab", "ba", "aab", "bb", "", "c", "abc")


class Pieces(Letters):
    """Tokens of several letters, and one of none."""

    vocab_size = len(PIECES)

    def encode(self, text: str) -> list[int]:
        return [PIECES.index(letter) for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(PIECES[number] for number in ids)


@pytest.mark.parametrize(
    "stops", [("b",), ("aba",), ("aa", "aab"), ("abab", "bb"), ("aaa", "ba"), ("cab", "abc", "c")], ids=str
)
def test_a_text_is_found_with_the_token_that_completes_it(stops):
    table = stop_table(Pieces(), stops, len(PIECES) + 2)
    for ids in itertools.product(range(len(PIECES)), repeat=4):
        state, found = 0, []
        for number in ids:
            state = table[state, number]
            found.append(bool(state == len(table) - 1))
        texts = [Pieces().decode(ids[: size + 1]) for size in range(len(ids))]
        assert found == [any(stop in text for stop in stops) for text in texts]


def test_tokens_beyond_those_of_the_tokenizer_are_no_text():
    table = stop_table(Pieces(), ("ab",), 12)
    np.testing.assert_array_equal(table[:, 9:], np.arange(len(table))[:, None].repeat(3, axis=1))


def test_a_reply_is_what_stands_before_the_first_of_the_texts():
    assert before_first("one. two; three.", (";", ".")) == "one"
    assert before_first("one two", (";", ".")) == "one two"
    assert before_first(". one", (".",)) == ""


@pytest.mark.parametrize("slots", [None, 2])
def test_replies_end_before_a_text_and_no_more_is_written(slots):
    key = jax.random.key(1)
    whole = sampler(5).replies(lively(LLAMA), PROMPTS, key)
    stops = (whole[0][2:4], whole[3][1:2])
    short = sampler(5, stop=stops, slots=slots)
    assert short.replies(lively(LLAMA), PROMPTS, key) == [before_first(text, stops) for text in whole]
    rollout, _ = next(short.rollouts(lively(LLAMA), PROMPTS, key))
    for text, mask, finished in zip(whole, rollout.batch.loss_mask, rollout.finished, strict=True):
        ends = [text.index(stop) + len(stop) for stop in stops if stop in text]
        assert int(mask.sum()) == min(ends, default=int(mask.sum()))
        assert bool(finished) or not ends
