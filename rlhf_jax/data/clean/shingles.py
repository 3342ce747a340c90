"""Texts as sets of numbers, one for each few words in a row, so that what two texts have in common can be counted."""

from __future__ import annotations

import hashlib
import re

import numpy as np

# Scripts that put no blanks between words, of which every letter is a token: Han, kana, Thai, Lao, Burmese, Khmer.
UNSPACED = (
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff\u3041-\u30ff\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff"
)
# Signs without which "3 + 4" were "3 * 4"; other punctuation is no token.
TOKEN = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+|[+*/=<>%^]|-(?=\s?\d)|(?<=[\s)])-(?=[\s(])")
LETTER = re.compile(rf"[{UNSPACED}]")
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio, odd


class Tokens:
    """The tokens of texts, as numbers, which depend on nothing but the token; they are remembered."""

    def __init__(self):
        self._numbers: dict[str, int] = {}

    def of(self, text: str) -> np.ndarray:
        """A number of 64 bits for each token: each word or number, each character of a script without blanks.

        Of a text without any, of emoji say, whatever stands between blanks.
        """
        found = TOKEN.findall(text.casefold()) or text.split()
        return np.array([self._number(token) for token in found], dtype=np.uint64)

    def _number(self, token: str) -> int:
        number = self._numbers.get(token)
        if number is None:
            digest = hashlib.blake2b(token.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            number = self._numbers[token] = int.from_bytes(digest, "little")
        return number


def shingles(tokens: np.ndarray, width: int) -> np.ndarray:
    """The distinct runs of so many tokens, in ascending order; fewer tokens are one run."""
    return np.unique(runs(tokens, min(width, len(tokens))))


def is_unspaced(text: str) -> bool:
    """Whether most tokens of a text are characters of a script without blanks."""
    tokens = len(TOKEN.findall(text))
    return 2 * len(LETTER.findall(text)) > tokens


def runs(numbers: np.ndarray, width: int) -> np.ndarray:
    """A number for every run of so many numbers, that depends on all of them and on their order; none of none."""
    if not len(numbers) or width < 1:
        return np.zeros(0, np.uint64)
    count = len(numbers) - width + 1
    mixed = np.zeros(count, np.uint64)
    for place in range(width):
        mixed = mixed * MULTIPLIER + numbers[place : place + count]
        mixed ^= mixed >> np.uint64(29)
    return mixed


def jaccard(first: np.ndarray, second: np.ndarray) -> float:
    """Of the members of either set, the fraction that are in both; 1 for two empty sets. Both in ascending order, without repetition."""
    if not len(first) and not len(second):
        return 1.0
    both = len(np.intersect1d(first, second, assume_unique=True))
    return both / (len(first) + len(second) - both)
