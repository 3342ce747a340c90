"""Texts that end a response wherever they stand in it, found token by token on the device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from rlhf_jax.data.tokens.tokenizer import Tokenizer


def stop_table(tokenizer: Tokenizer, texts: Sequence[str], vocab: int) -> Int[np.ndarray, "S V"]:
    """The state behind each state and token: how much of which text stands at the end. It begins in 0; the last is never left, and says
    that a text has been written.

    A token is taken for what it adds to a text. Where that is not known (half a character), the text that it is part of is not found here;
    nor is what a tokenizer joins only in a whole text.

    Source: Aho & Corasick 1975, "Efficient string matching".
    """
    numbers = {letter: number for number, letter in enumerate(sorted(set("".join(texts))), start=1)}  # 0: any other
    steps = _automaton(texts, numbers)
    pieces = [[numbers.get(letter, 0) for letter in piece] for piece in token_texts(tokenizer)[:vocab]]
    states = np.repeat(np.arange(len(steps))[:, None], vocab, axis=1)
    for place in range(max(map(len, pieces), default=0)):
        longer = np.array([number for number, piece in enumerate(pieces) if len(piece) > place])
        letters = np.array([pieces[number][place] for number in longer])
        states[:, longer] = steps[states[:, longer], letters[None, :]]
    return states.astype(np.int32)


def _automaton(texts: Sequence[str], numbers: dict[str, int]) -> Int[np.ndarray, "S A"]:
    """The state behind each state and letter: each a beginning of a text, and the last all that have a whole text at their end."""
    starts = sorted({text[:size] for text in texts for size in range(len(text) + 1)}, key=len)
    open_ones = [start for start in starts if not any(start.endswith(text) for text in texts)]
    known = {start: number for number, start in enumerate(open_ones)}
    end = len(open_ones)
    steps = np.zeros((end + 1, len(numbers) + 1), np.int32)
    steps[end] = end
    for start, number in known.items():
        for letter, column in numbers.items():
            written = start + letter
            ends = any(written.endswith(text) for text in texts)
            steps[number, column] = (
                end if ends else next(known[written[cut:]] for cut in range(len(written) + 1) if written[cut:] in known)
            )
    return steps


def token_texts(tokenizer: Tokenizer) -> list[str]:
    """What each token adds to a text that stands before it."""
    anchor = tokenizer.encode("a")[-1:]
    before = len(tokenizer.decode(anchor))
    return [tokenizer.decode([*anchor, number])[before:] for number in range(tokenizer.vocab_size)]


def before_first(text: str, stops: Sequence[str]) -> str:
    """The text up to the first of those that end it."""
    return text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))]
