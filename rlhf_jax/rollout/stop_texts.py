"""Texts that end a response wherever they stand in it, found token by token on the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from rlhf_jax.data.tokens.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class StopTexts:
    """Texts that end a response, and the state behind each state and token: how much of which text stands at the end of it.

    A response begins in state 0; the last is never left, and says that a text has been written. A token is taken for what it adds to a
    text, the first for what it is by itself, without a blank that a tokenizer leaves out there. Where that is not known (half a
    character), the text that it is part of is not found here; nor is what a tokenizer joins only in a whole text.

    Source: Aho & Corasick 1975, "Efficient string matching".
    """

    texts: tuple[str, ...]
    table: Int[np.ndarray, "S V"]

    @classmethod
    def of(cls, texts: tuple[str, ...], tokenizer: Tokenizer, vocab: int) -> StopTexts:
        """For a model with so many tokens, the last of which the tokenizer may not know."""
        numbers = {letter: number for number, letter in enumerate(sorted(set("".join(texts))), start=1)}  # 0: any other
        steps = _automaton(texts, numbers)
        first, later = (token_texts(tokenizer, behind) for behind in ([], tokenizer.encode("a")[-1:]))
        begun = _behind(steps, first, numbers, vocab)[0] + 1
        nothing = [number for number in range(vocab) if number >= len(first) or not first[number]]
        begun[nothing] = 0
        table = np.concatenate([begun[None], _behind(steps, later, numbers, vocab) + 1])
        return cls(texts, table.astype(np.int16))

    def cut(self, text: str) -> str:
        """The text up to the first of those that end it."""
        return text[: min((text.index(stop) for stop in self.texts if stop in text), default=len(text))]


def _behind(
    steps: Int[np.ndarray, "S A"], texts: Sequence[str], numbers: dict[str, int], vocab: int
) -> Int[np.ndarray, "S V"]:
    """The state of the automaton behind each state and the text of each token."""
    pieces = [[numbers.get(letter, 0) for letter in text] for text in texts[:vocab]]
    states = np.repeat(np.arange(len(steps))[:, None], vocab, axis=1)
    for place in range(max(map(len, pieces), default=0)):
        longer = [number for number, piece in enumerate(pieces) if len(piece) > place]
        letters = np.array([pieces[number][place] for number in longer])
        states[:, longer] = steps[states[:, longer], letters[None, :]]
    return states


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


def token_texts(tokenizer: Tokenizer, behind: Sequence[int]) -> list[str]:
    """What each token adds to a text that ends with these tokens."""
    size = len(tokenizer.decode(behind))
    return [tokenizer.decode([*behind, number])[size:] for number in range(tokenizer.vocab_size)]
