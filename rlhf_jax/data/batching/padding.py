"""Token ids to padded arrays: what is too long is cut, several examples may share a row, and masks come from lengths alone.

`pad == eos` and a reply that holds the pad id are both safe.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from rlhf_jax.data.tokens.encode import Encoded, EncodedPair
from rlhf_jax.types import TokenBatch


@dataclasses.dataclass(frozen=True)
class Cut:
    """How many of the examples were too long: those whose prompt lost a part, and those whose reply lost its end."""

    examples: int
    prompts: int
    replies: int


def cut(example: Encoded, length: int) -> Encoded:
    """The example in at most `length` tokens: the prompt loses its start after the bos, then the reply its end.

    At least one token of the prompt stays, for the reply to follow; of the reply, eos goes first.
    """
    return example if example.size <= length else _shorten(example, example.size - length, length)


def cut_pair(pair: EncodedPair, length: int) -> EncodedPair:
    """Both sides in at most `length` tokens, after one prompt: the longer reply decides what the prompt of both loses.

    Prompts cut differently would let the model tell chosen from rejected by the prompt.
    """
    longest = max(len(pair.chosen.reply), len(pair.rejected.reply))
    excess = len(pair.chosen.prompt) + longest - length
    chosen, rejected = (_shorten(side, excess, length) for side in (pair.chosen, pair.rejected))
    return dataclasses.replace(pair, chosen=chosen, rejected=rejected)


def count_cut(examples: Iterable[Encoded | EncodedPair], length: int) -> Cut:
    """How many of the examples `length` tokens are too few for; a pair counts once, whichever side it is."""
    count = prompts = replies = 0
    for example in examples:
        count += 1
        if isinstance(example, EncodedPair):
            short = cut_pair(example, length)
            sides = [(example.chosen, short.chosen), (example.rejected, short.rejected)]
        elif example.size <= length:
            prompts += example.shortened
            continue
        else:
            sides = [(example, cut(example, length))]
        prompts += any(before.shortened or len(after.prompt) < len(before.prompt) for before, after in sides)
        replies += any(len(after.reply) < len(before.reply) for before, after in sides)
    return Cut(count, prompts, replies)


def pad_right(examples: Sequence[Encoded], length: int, pad: int) -> TokenBatch:
    """Rows [N, length] of prompt, reply, padding; `loss_mask` is True on the reply, eos included. Too long is `cut`."""
    tokens = _empty(examples, length, pad)
    starts, ends = (np.zeros((len(examples), 1), np.int32) for _ in range(2))
    for row, example in enumerate(examples):
        short = cut(example, length)
        starts[row], ends[row] = len(short.prompt), len(short.prompt) + len(short.reply)
        tokens[row, : ends[row, 0]] = short.prompt + short.reply
    columns = np.arange(length)[None, :]
    real = columns < ends
    learned = real & (columns >= starts)
    for row, example in enumerate(examples):
        leave_out(learned[row], example, int(starts[row, 0]))
    return _token_batch(tokens, real, learned)


def pad_left(prompts: Sequence[Encoded], length: int, pad: int) -> TokenBatch:
    """Rows [N, length] of padding, prompt, so that all replies will start in one column; `loss_mask` is False."""
    tokens = _empty(prompts, length, pad)
    starts = np.zeros((len(prompts), 1), np.int32)
    for row, example in enumerate(prompts):
        ids = cut(Encoded(example.prompt, head=example.head), length).prompt
        starts[row] = length - len(ids)
        tokens[row, starts[row, 0] :] = ids
    real = np.arange(length)[None, :] >= starts
    return _token_batch(tokens, real, np.zeros_like(real))


def _shorten(example: Encoded, excess: int, length: int) -> Encoded:
    """Without `excess` tokens of the prompt, as far as it can spare them, and then no longer than `length`."""
    prompt, head = example.prompt, example.head
    spare = max(len(prompt) - max(head, 1), 0)
    prompt = prompt[:head] + prompt[head + min(max(excess, 0), spare) :]
    return dataclasses.replace(example, prompt=prompt, reply=example.reply[: length - len(prompt)])


def leave_out(learned: np.ndarray, example: Encoded, start: int) -> None:
    """Takes out of a row's mask what others said in the reply that starts at column `start`."""
    for first, last in example.given:
        learned[start + first : start + last] = False


def _empty(examples: Sequence[Encoded], length: int, pad: int) -> np.ndarray:
    if not examples:
        raise ValueError("no examples to make a batch of; expected at least one")
    if length < 2:
        raise ValueError(f"length is {length}; expected at least 2, one token to follow and one to learn")
    return np.full((len(examples), length), pad, np.int32)


def _token_batch(tokens: Any, real: Any, loss_mask: Any) -> TokenBatch:
    positions: Any = np.cumsum(real, axis=1, dtype=np.int32) - real.astype(np.int32)
    return TokenBatch(tokens=tokens, positions=positions, segments=real.astype(np.int32), loss_mask=loss_mask)
