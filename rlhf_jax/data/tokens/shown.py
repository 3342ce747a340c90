"""Examples as a person can look at them: every token, and which of them are learned."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rlhf_jax.data.tokens.encode import Encoded, EncodedLabel, EncodedPair, EncodedReward
from rlhf_jax.data.tokens.tokenizer import Tokenizer

if TYPE_CHECKING:
    from rich.text import Text

BLANK = "\u2581"  # as sentencepiece writes it
STYLES = {False: ("dim", "dim underline"), True: ("bold green", "bold green underline")}
SPECIAL = {False: "magenta", True: "bold magenta"}


def spelled(token: int, tokenizer: Tokenizer) -> str:
    """How a token is written: its name if it is special, its text, or its number where it is a part of a character."""
    name = next((name for name, number in tokenizer.specials.items() if number == token), None)
    if name is not None:
        return name
    piece = getattr(tokenizer, "piece", None)
    text = piece(token).replace(BLANK, " ") if piece is not None else tokenizer.decode([token])
    if byte := re.fullmatch("<0x([0-7][0-9A-F])>", text):  # of a character that is no more than this byte
        return chr(int(byte[1], 16))
    return text if text and "\ufffd" not in text else f"<{token}>"


def learned(example: Encoded) -> list[bool]:
    """Which tokens of prompt and reply are learned."""
    mask = [False] * len(example.prompt) + [True] * len(example.reply)
    for start, stop in example.given:
        for place in range(start, min(stop, len(example.reply))):
            mask[len(example.prompt) + place] = False
    return mask


def shown(example: Encoded, tokenizer: Tokenizer) -> Text:
    """The tokens one after the other, what is learned between « and » and green, special ones magenta, every second one underlined.

    A newline is shown as ⏎ too.
    """
    from rich.text import Text

    text, inside = Text(), False
    special = set(tokenizer.specials.values())
    for place, (token, learn) in enumerate(zip((*example.prompt, *example.reply), learned(example), strict=True)):
        if learn != inside:
            text.append("«" if learn else "»", "bold yellow")
            inside = learn
        style = SPECIAL[learn] if token in special else STYLES[learn][place % 2]
        text.append(spelled(token, tokenizer).replace("\n", "⏎\n"), style)
    if inside:
        text.append("»", "bold yellow")
    return text


def sides(example: Encoded | EncodedPair | EncodedReward | EncodedLabel) -> Iterator[tuple[str, Encoded]]:
    """(what it is, tokens) of each side of an example."""
    if isinstance(example, EncodedPair):
        yield from (("chosen", example.chosen), ("rejected", example.rejected))
    elif isinstance(example, EncodedReward):
        yield f"reward {example.reward:g}", example.text
    elif isinstance(example, EncodedLabel):
        yield f"label {example.label}", example.text
    else:
        yield "", example
