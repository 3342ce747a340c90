"""Texts that end a response: where the table says that one has been written, and what of a reply is left."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax
import numpy as np
import pytest
from builders import LLAMA, lively
from test_replies import PROMPTS, Letters, sampler

from rlhf_jax.rollout.stop_texts import StopTexts

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
    table = StopTexts.of(stops, Pieces(), len(PIECES) + 2).table
    for ids in itertools.product(range(len(PIECES)), repeat=4):
        state, found = 0, []
        for number in ids:
            state = table[state, number]
            found.append(bool(state == len(table) - 1))
        texts = [Pieces().decode(ids[: size + 1]) for size in range(len(ids))]
        assert found == [any(stop in text for stop in stops) for text in texts]


def test_tokens_beyond_those_of_the_tokenizer_are_no_text():
    table = StopTexts.of(("ab",), Pieces(), 12).table
    np.testing.assert_array_equal(table[:, 9:], np.arange(len(table))[:, None].repeat(3, axis=1))


def test_a_reply_is_what_stands_before_the_first_of_the_texts():
    stops = StopTexts.of((";", "."), Pieces(), 9)
    assert [stops.cut(text) for text in ("one. two; three.", "one two", ". one")] == ["one", "one two", ""]


class Blanks(Pieces):
    """As sentencepiece has it: the blank before the first word of a text is left out."""

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(f" {PIECES[number]}" for number in ids).removeprefix(" ")


def test_the_first_token_is_the_text_that_it_is_by_itself():
    table = StopTexts.of((" a",), Blanks(), len(PIECES)).table
    first, second = table[0, PIECES.index("a")], table[table[0, PIECES.index("b")], PIECES.index("a")]
    assert (first == len(table) - 1, second == len(table) - 1) == (False, True)


@pytest.mark.parametrize("slots", [None, 2])
def test_replies_end_before_a_text_and_no_more_is_written(slots):
    key = jax.random.key(1)
    whole = sampler(5).replies(lively(LLAMA), PROMPTS, key)
    stops = (whole[0][2:4], whole[3][1:2])
    texts = StopTexts.of(stops, Letters(), LLAMA.vocab)
    short = sampler(5, stop=texts, slots=slots)
    assert short.replies(lively(LLAMA), PROMPTS, key) == [texts.cut(text) for text in whole]
    assert len({len(text) for text in whole}) < len({len(text) for text in map(texts.cut, whole)})
    rollout, _ = next(short.rollouts(lively(LLAMA), PROMPTS, key))
    for text, mask, finished in zip(whole, rollout.batch.loss_mask, rollout.finished, strict=True):
        ends = [text.index(stop) + len(stop) for stop in stops if stop in text]
        assert int(mask.sum()) == min(ends, default=int(mask.sum()))
        assert bool(finished) or not ends
