"""Records to token ids.

Prompt and reply are tokenised once each and joined, so no token ever spans the boundary; bos stands once at the very
start, eos once at the very end.
"""

from __future__ import annotations

import bisect
import dataclasses
import re
from collections.abc import Callable, Sequence

from rlhf_jax.data.schema import (
    Classified,
    Comparison,
    Conversation,
    Demonstration,
    Document,
    Labelled,
    LabelledReply,
    Prompt,
    Rated,
    Turn,
)
from rlhf_jax.data.tokens.templates import Piece, Template
from rlhf_jax.data.tokens.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Token ids of a prompt and its reply; the reply is empty where there is none yet.

    Of a conversation the first reply and all that follows is the reply, and `given` are the spans of it, from start up to stop, that others
    said, which nobody learns.
    """

    prompt: tuple[int, ...]
    reply: tuple[int, ...] = ()
    head: int = 0  # how many leading tokens of the prompt (the bos) stay when it is too long
    shortened: bool = False  # whether its text was too long and lost its end
    given: tuple[tuple[int, int], ...] = ()

    @property
    def size(self) -> int:
        """Tokens of prompt and reply."""
        return len(self.prompt) + len(self.reply)


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


def encode_prompt(prompt: Prompt, tokenizer: Tokenizer, template: Template, limit: int | None = None) -> Encoded:
    """bos and the prompt, ending where the reply starts, with eos where the template closes it.

    A document that the template cuts ends so that `limit` tokens hold it.

    Raises: ValueError for a prompt of no tokens at all, since the first token of a reply would have nothing to follow.
    """
    place = prompt.provenance.place
    ids = _tokens_of(prompt.turns, place, tokenizer, template)
    if not ids:
        raise ValueError(f"the prompt from {place!r} has no tokens; expected a text, or a tokenizer with a bos token")
    head = int(ids[0] == tokenizer.bos)
    whole = Encoded(ids, head=head)
    if template.loses == "start" or limit is None or len(ids) <= limit:
        return whole
    *before, last = prompt.turns

    def ending(end: int) -> tuple[int, ...]:
        return _tokens_of((*before, Turn(last.role, last.text[:end].rstrip())), place, tokenizer, template)

    end = longest_prefix(last.text, lambda end: len(ending(end)) <= limit)
    return whole if end is None else dataclasses.replace(whole, prompt=ending(end), shortened=True)


def _tokens_of(turns: Sequence[Turn], place: str, tokenizer: Tokenizer, template: Template) -> tuple[int, ...]:
    """bos and turns, with eos where the template closes them."""
    bos = (tokenizer.bos,) if template.bos and tokenizer.bos is not None else ()
    closing = (tokenizer.eos,) if template.closed else ()
    return (*bos, *encode_pieces(template.pieces(turns, place), tokenizer, template), *closing)


def encode_pieces(pieces: Sequence[Piece], tokenizer: Tokenizer, template: Template) -> list[int]:
    """The tokens of a dialogue: special ones where the frames of the template spell them, and what is between them as one text each.

    So transformers reads it by a chat template, but for what somebody said: there "<|im_end|>" stays text.
    """
    if not template.special:
        return tokenizer.encode("".join(piece.text for piece in pieces))
    names = sorted(tokenizer.specials, key=len, reverse=True)
    spelled = re.compile("|".join(f"({re.escape(name)})" for name in names) or r"(?!)")
    ids: list[int] = []
    text = ""

    def flush() -> None:
        nonlocal text
        ids.extend(tokenizer.encode(text) if text else ())
        text = ""

    for piece in pieces:
        place = 0
        for match in spelled.finditer(piece.text) if piece.kind == "frame" else ():
            text += piece.text[place : match.start()]
            flush()
            ids.append(tokenizer.specials[match[0]])
            place = match.end()
        text += piece.text[place:]
    flush()
    return ids


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


def encode_conversation(
    conversation: Conversation, tokenizer: Tokenizer, template: Template, limit: int | None = None
) -> list[Encoded]:
    """The dialogue in one piece, of which every reply is learned with what ends it, and nothing that others said.

    Each reply is tokenised by itself, as it is sampled. Where the template has no token that ends a reply, each is an example of its own,
    with the turns before it: nothing would teach the model to stop in the middle of a dialogue.
    """
    if not template.end:
        return [encode_demonstration(part, tokenizer, template, limit) for part in conversation.demonstrations()]
    first = encode_prompt(conversation.prompt, tokenizer, template)
    pieces = template.pieces(conversation.turns, conversation.provenance.place)
    places = [place for place, piece in enumerate(pieces) if piece.kind == "reply"]
    replies = [turn.text for turn in conversation.turns if turn.role == "assistant"]
    ids: list[int] = []
    given: list[tuple[int, int]] = []
    for text, place, following in zip(replies, places, [*places[1:], None], strict=True):
        ids += encode_pieces(template.reply_pieces(text), tokenizer, template)
        between = pieces[place + 1 : following]
        if following is not None:
            after = between[0].text.removeprefix(template.end)
            start = len(ids)
            ids += encode_pieces([Piece(after, "frame"), *between[1:]], tokenizer, template)
            given.append((start, len(ids)))
    return [dataclasses.replace(first, reply=_ended(ids, tokenizer, template), given=tuple(given))]


def encode_document(document: Document, tokenizer: Tokenizer, length: int) -> list[Encoded]:
    """bos, the text and eos in windows of at most `length` tokens, of which all but the first is learned.

    Every token but the very first is learned once.
    """
    bos = () if tokenizer.bos is None else (tokenizer.bos,)
    ids = (*bos, *tokenizer.encode(document.text), tokenizer.eos)
    # A window begins with the last token of the one before, so that its first own token follows something.
    starts = range(0, max(len(ids) - 1, 1), length - 1)
    return [Encoded(ids[start : start + 1], ids[start + 1 : start + length], head=1) for start in starts]


def _with_reply(prompt: Encoded, reply: str, tokenizer: Tokenizer, template: Template) -> Encoded:
    ids = encode_pieces(template.reply_pieces(reply), tokenizer, template)
    return dataclasses.replace(prompt, reply=_ended(ids, tokenizer, template))


def _ended(ids: Sequence[int], tokenizer: Tokenizer, template: Template) -> tuple[int, ...]:
    """The ids with eos behind them, which may be what ends a reply anyway."""
    return (*ids,) if template.end and ids and ids[-1] == tokenizer.eos else (*ids, tokenizer.eos)
