"""The random texts of the workloads for sides that cannot import ours, and the reward of GRPO."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def tokens(vocab: int, rows: int, length: int, seed: int = 0) -> np.ndarray:
    """Random tokens without padding, rows x length."""
    return np.random.default_rng(seed).integers(0, vocab, (rows, length), dtype=np.int32)


def texts(vocab: int, lengths: Iterable[int], seed: int = 0) -> list[list[int]]:
    """Random texts of these lengths."""
    draw = np.random.default_rng(seed)
    return [draw.integers(0, vocab, length).tolist() for length in lengths]


def words(ids: Iterable[int]) -> str:
    """Tokens as the text that tokenizers of one word per token read back: their numbers."""
    return " ".join(map(str, ids))


def different_words(completions: list[str]) -> list[float]:
    """The reward: how many different tokens a response has."""
    return [float(len(set(text.split()))) for text in completions]
