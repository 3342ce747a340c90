"""Records to token ids, and ids to padded arrays.

Prompt and reply are tokenised once each and joined, so no token ever spans the boundary; bos stands once at the very
start, eos once at the very end. Masks are made from these lengths and from nothing else: `pad == eos` and a reply that
holds the pad id are both safe.
"""

from __future__ import annotations

import bisect
import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlhf_jax.data.schema import Classified, Comparison, Demonstration, Labelled, LabelledReply, Prompt, Rated, Turn
from rlhf_jax.data.templates import Template
from rlhf_jax.data.tokenizer import Tokenizer
from rlhf_jax.types import TokenBatch


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Token ids of a prompt and its reply; the reply is empty where there is none yet."""

    prompt: tuple[int, ...]
    reply: tuple[int, ...] = ()
    head: int = 0  # how many leading tokens of the prompt (the bos) stay when it is too long
    shortened: bool = False  # whether its text was too long and lost its end


@dataclasses.dataclass(frozen=True)
class EncodedPair:
    """Two replies to one prompt, with the strength and the confidence of the preference."""

    chosen: Encoded
    rejected: Encoded
    margin: float = 0.0
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class EncodedReward:
    """A prompt with a reply and its reward."""

    text: Encoded
    reward: float


@dataclasses.dataclass(frozen=True)
class EncodedLabel:
    """A text with the class of its `reply`, from 0, and how sure that is. Of a text without a prompt all but the bos is reply."""

    text: Encoded
    label: int
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Cut:
    """How many of the examples were too long: those whose prompt lost a part, and those whose reply lost its end."""

    examples: int
    prompts: int
    replies: int


def encode_prompt(prompt: Prompt, tokenizer: Tokenizer, template: Template, limit: int | None = None) -> Encoded:
    """bos and the prompt, ending where the reply starts, with eos where the template closes it.

    A document that the template cuts ends so that `limit` tokens hold it.

    Raises: ValueError for a prompt of no tokens at all, since the first token of a reply would have nothing to follow.
    """
    bos = () if tokenizer.bos is None else (tokenizer.bos,)
    closing = (tokenizer.eos,) if template.closed else ()
    ids = (*bos, *tokenizer.encode(template.prompt(prompt)), *closing)
    if not ids:
        place = prompt.provenance.place
        raise ValueError(f"the prompt from {place!r} has no tokens; expected a text, or a tokenizer with a bos token")
    whole = Encoded(ids, head=len(bos))
    if template.loses == "start" or limit is None or len(ids) <= limit:
        return whole
    *before, last = prompt.turns

    def ending(place: int) -> tuple[int, ...]:
        shorter = dataclasses.replace(prompt, turns=(*before, Turn(last.role, last.text[:place].rstrip())))
        return (*bos, *tokenizer.encode(template.prompt(shorter)), *closing)

    place = longest_prefix(last.text, lambda place: len(ending(place)) <= limit)
    return whole if place is None else dataclasses.replace(whole, prompt=ending(place), shortened=True)


def longest_prefix(text: str, fits: Callable[[int], bool]) -> int | None:
    """Where to end a text that is too long: at its last line that fits, else its last sentence, else its last character.

    None where not even the empty text fits. Source: Stiennon et al. 2020 (arXiv:2009.01325), appendix B.2, where posts end at a line.
    """
    ends = (
        [match.start() for match in re.finditer(r"\n", text)],
        [match.end() for match in re.finditer(r"[.!?。！？]", text)],
        range(len(text)),
    )
    for places in ends:
        count = bisect.bisect_left(places, True, key=lambda place: not fits(place))
        if count and text[: places[count - 1]].strip():
            return places[count - 1]
    return 0 if fits(0) else None


def encode_demonstration(
    demonstration: Demonstration, tokenizer: Tokenizer, template: Template, limit: int | None = None
) -> Encoded:
    """The prompt, the reply and eos."""
    prompt = encode_prompt(demonstration.prompt, tokenizer, template, limit)
    return _with_reply(prompt, demonstration.reply, tokenizer, template)


def encode_comparison(
    comparison: Comparison, tokenizer: Tokenizer, template: Template, limit: int | None = None
) -> EncodedPair:
    """Both replies, each with eos, after the same prompt ids."""
    prompt = encode_prompt(comparison.prompt, tokenizer, template, limit)
    chosen, rejected = (
        _with_reply(prompt, reply, tokenizer, template) for reply in (comparison.chosen, comparison.rejected)
    )
    return EncodedPair(chosen, rejected, comparison.margin, comparison.weight)


def encode_rated(rated: Rated, tokenizer: Tokenizer, template: Template, limit: int | None = None) -> EncodedReward:
    """The prompt, the reply and eos, with the reward."""
    prompt = encode_prompt(rated.prompt, tokenizer, template, limit)
    return EncodedReward(_with_reply(prompt, rated.reply, tokenizer, template), rated.reward)


def encode_labelled(labelled: Labelled, tokenizer: Tokenizer) -> EncodedLabel:
    """bos as the prompt, the text as the reply; the label is read at its last token.

    No eos: a classifier that reads only there could not score a text that goes on, such as a reply cut at its length.
    """
    bos = () if tokenizer.bos is None else (tokenizer.bos,)
    return EncodedLabel(Encoded(bos, tuple(tokenizer.encode(labelled.text)), head=len(bos)), labelled.label)


def encode_classified(classified: Classified, tokenizer: Tokenizer, labels: Sequence[str]) -> EncodedLabel:
    """bos as the prompt, the text and eos as the reply, as encoders read a text; the label's place among `labels`.

    Raises: ValueError for a label that is not one of them.
    """
    if classified.label not in labels:
        raise ValueError(
            f"{classified.provenance.place}: label {classified.label!r}; expected one of classify.labels, {', '.join(map(repr, labels))}"
        )
    bos = () if tokenizer.bos is None else (tokenizer.bos,)
    text = Encoded(bos, (*tokenizer.encode(classified.text), tokenizer.eos), head=len(bos))
    return EncodedLabel(text, labels.index(classified.label))


def encode_labelled_reply(
    labelled: LabelledReply, tokenizer: Tokenizer, template: Template, limit: int | None = None
) -> EncodedLabel:
    """The prompt, the reply and eos; 1 where the reply is desirable."""
    prompt = encode_prompt(labelled.prompt, tokenizer, template, limit)
    return EncodedLabel(_with_reply(prompt, labelled.reply, tokenizer, template), int(labelled.desirable))


def cut(example: Encoded, length: int) -> Encoded:
    """The example in at most `length` tokens: the prompt loses its start after the bos, then the reply its end.

    At least one token of the prompt stays, for the reply to follow; of the reply, eos goes first.
    """
    return _shorten(example, len(example.prompt) + len(example.reply) - length, length)


def cut_pair(pair: EncodedPair, length: int) -> EncodedPair:
    """Both sides in at most `length` tokens, after one prompt: the longer reply decides what the prompt of both loses.

    Prompts cut differently would let the model tell chosen from rejected by the prompt.
    """
    longest = max(len(pair.chosen.reply), len(pair.rejected.reply))
    excess = len(pair.chosen.prompt) + longest - length
    chosen, rejected = (_shorten(side, excess, length) for side in (pair.chosen, pair.rejected))
    return dataclasses.replace(pair, chosen=chosen, rejected=rejected)


def count_cut(examples: Sequence[Encoded | EncodedPair], length: int) -> Cut:
    """How many of the examples `length` tokens are too few for; a pair counts once, whichever side it is."""
    prompts = replies = 0
    for example in examples:
        if isinstance(example, EncodedPair):
            short = cut_pair(example, length)
            sides = [(example.chosen, short.chosen), (example.rejected, short.rejected)]
        else:
            sides = [(example, cut(example, length))]
        prompts += any(before.shortened or len(after.prompt) < len(before.prompt) for before, after in sides)
        replies += any(len(after.reply) < len(before.reply) for before, after in sides)
    return Cut(len(examples), prompts, replies)


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
    return _token_batch(tokens, real, real & (columns >= starts))


def pack(examples: Sequence[Encoded], length: int, open_rows: int = 64) -> list[list[int]]:
    """Which examples share a row of `length` tokens: first fit, in the order given, over the `open_rows` newest unfinished rows."""
    rows: list[list[int]] = []
    room: list[int] = []
    for place, example in enumerate(examples):
        size = min(len(example.prompt) + len(example.reply), length)
        first = max(len(rows) - open_rows, 0)
        row = next((n for n in range(first, len(rows)) if room[n] >= size), None)
        if row is None:
            row = len(rows)
            rows.append([])
            room.append(length)
        rows[row].append(place)
        room[row] -= size
    return rows


def pack_right(examples: Sequence[Encoded], length: int, pad: int) -> TokenBatch:
    """Rows [N, length], each with several examples as segments 1, 2, ...; positions restart in each. Too long is `cut`."""
    rows = pack(examples, length)
    tokens = np.full((len(rows), length), pad, np.int32)
    positions, segments = (np.zeros_like(tokens) for _ in range(2))
    loss_mask = np.zeros(tokens.shape, bool)
    for row, places in enumerate(rows):
        column = 0
        for segment, place in enumerate(places, start=1):
            short = cut(examples[place], length)
            ids = short.prompt + short.reply
            here = slice(column, column + len(ids))
            tokens[row, here], segments[row, here], positions[row, here] = ids, segment, np.arange(len(ids))
            loss_mask[row, column + len(short.prompt) : column + len(ids)] = True
            column += len(ids)
    record: Any = (tokens, positions, segments, loss_mask)
    return TokenBatch(*record)


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


def _with_reply(prompt: Encoded, reply: str, tokenizer: Tokenizer, template: Template) -> Encoded:
    return dataclasses.replace(prompt, reply=(*tokenizer.encode(template.reply(reply)), tokenizer.eos))


def _shorten(example: Encoded, excess: int, length: int) -> Encoded:
    """Without `excess` tokens of the prompt, as far as it can spare them, and then no longer than `length`."""
    prompt, head = example.prompt, example.head
    spare = max(len(prompt) - max(head, 1), 0)
    prompt = prompt[:head] + prompt[head + min(max(excess, 0), spare) :]
    return dataclasses.replace(example, prompt=prompt, reply=example.reply[: length - len(prompt)])


def _empty(examples: Sequence[Encoded], length: int, pad: int) -> np.ndarray:
    if not examples:
        raise ValueError("no examples to make a batch of; expected at least one")
    if length < 2:
        raise ValueError(f"length is {length}; expected at least 2, one token to follow and one to learn")
    return np.full((len(examples), length), pad, np.int32)


def _token_batch(tokens: Any, real: Any, loss_mask: Any) -> TokenBatch:
    positions: Any = np.cumsum(real, axis=1, dtype=np.int32) - real.astype(np.int32)
    return TokenBatch(tokens=tokens, positions=positions, segments=real.astype(np.int32), loss_mask=loss_mask)
