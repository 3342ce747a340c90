"""A world small enough to list: every string that a policy can write is there, with its true reward.

Whatever papers estimate from samples is a finite sum here (see `eval/exact.py`), for any policy of ours and through its ordinary
log-probs. Tokens are 0 (the end of a string) and the words 1 .. vocab - 1; a string is at most `length` tokens long.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from rlhf_jax.types import TokenBatch

EOS = 0


@dataclass(frozen=True)
class ExactWorld:
    """All strings over a few words: those that end with EOS within `length` tokens, and those of `length` words that do not end.

    Raises: ValueError for sizes below 2 words, 1 token or 1 prompt.
    """

    vocab: int = 6
    length: int = 5
    prompts: int = 4
    stop: float = 0.3  # of the demonstrations: how probably each ends before its next word
    repeat_penalty: float = 0.6  # gold reward lost by every repetition of a word
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("vocab", 3), ("length", 1), ("prompts", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}; the exact world needs at least {least}")
        if not 0 < self.stop < 1:
            raise ValueError(f"stop={self.stop}; demonstrations end with a probability between 0 and 1")

    @property
    def words(self) -> int:
        return self.vocab - 1

    @cached_property
    def strings(self) -> tuple[tuple[int, ...], ...]:
        """Every string, short ones first: sum_{l < length} words^l that end, and words^length that do not."""
        words = range(1, self.vocab)
        ended = [(*s, EOS) for n in range(self.length) for s in itertools.product(words, repeat=n)]
        return (*ended, *itertools.product(words, repeat=self.length))

    @cached_property
    def prompt_length(self) -> int:
        """Tokens of a prompt: as many words as it takes to tell the prompts apart."""
        length = 1
        while self.words**length < self.prompts:
            length += 1
        return length

    def prompt(self, number: int) -> tuple[int, ...]:
        """The words of a prompt: its number written with the words as digits."""
        digits = (number // self.words**place % self.words for place in reversed(range(self.prompt_length)))
        return tuple(1 + digit for digit in digits)

    @cached_property
    def batch(self) -> TokenBatch:
        """Every string behind every prompt, prompt by prompt: [prompts * strings, prompt_length + length]; the loss is on the string."""
        rows = [(*self.prompt(x), *s) for x in range(self.prompts) for s in self.strings]
        width = self.prompt_length + self.length
        tokens = np.zeros((len(rows), width), np.int32)
        sizes = np.array([len(row) for row in rows])[:, None]
        for n, row in enumerate(rows):
            tokens[n, : len(row)] = row
        columns = np.broadcast_to(np.arange(width, dtype=np.int32), tokens.shape)
        real = columns < sizes
        loss_mask = real & (columns >= self.prompt_length)
        return TokenBatch(tokens, np.where(real, columns, 0), real.astype(np.int32), loss_mask)  # pyright: ignore[reportArgumentType]

    def numbers_of(self, responses: Int[Array, "B L"], written: Bool[Array, "B L"]) -> Int[Array, "B"]:
        """The place in `strings` of each response, whose tokens stand where `written` is True, from the first column on."""
        words = written & (responses != EOS)
        count = jnp.sum(words, axis=1)
        starts = np.cumsum([0] + [self.words**n for n in range(self.length)])  # of the strings of n words
        value = jnp.zeros(responses.shape[0], jnp.int32)
        for column in range(responses.shape[1]):
            digit = responses[:, column] - 1
            value = jnp.where(words[:, column], value * self.words + digit, value)
        return jnp.asarray(starts, jnp.int32)[count] + value

    def prompt_batch(self, prompts: np.ndarray) -> TokenBatch:
        """These prompts alone, by number, [B, prompt_length]; nothing in them is to be learned."""
        tokens = np.array([self.prompt(int(number)) for number in prompts], np.int32)
        columns = np.broadcast_to(np.arange(self.prompt_length, dtype=np.int32), tokens.shape)
        return TokenBatch(tokens, columns, np.ones_like(tokens), np.zeros_like(tokens, bool))  # pyright: ignore[reportArgumentType]

    @cached_property
    def word_values(self) -> np.ndarray:
        """What each word is worth to each prompt, [prompts, vocab]: standard normal numbers, EOS 0."""
        values = np.random.default_rng(self.seed).normal(size=(self.prompts, self.vocab))
        values[:, EOS] = 0.0
        return values

    @cached_property
    def gold(self) -> np.ndarray:
        """The true reward of each string, [prompts, strings]: the worth of its distinct words - repeat_penalty * repetitions.

        Repetitions hardly occur in demonstrations, so a reward model that learns from a policy near them knows little of the penalty.
        """
        distinct = np.zeros((len(self.strings), self.vocab))
        repeats = np.zeros(len(self.strings))
        for n, string in enumerate(self.strings):
            words = [token for token in string if token != EOS]
            distinct[n, words] = 1.0
            repeats[n] = len(words) - len(set(words))
        return (self.word_values @ distinct.T - self.repeat_penalty * repeats).astype(np.float32)

    @cached_property
    def demonstrations(self) -> np.ndarray:
        """The probability of each string among demonstrations, [strings]: words that do not repeat, unused ones equally likely.

        Where all words are used up, the demonstration ends.
        """
        return np.array([self._demonstrated(string) for string in self.strings], np.float32)

    def _demonstrated(self, string: tuple[int, ...]) -> float:
        probability, used = 1.0, set()
        for token in string:
            left = self.words - len(used)
            end = self.stop if left else 1.0
            if token == EOS:
                probability *= end
            elif token in used:
                return 0.0
            else:
                probability *= (1 - end) / left
                used.add(token)
        return probability
