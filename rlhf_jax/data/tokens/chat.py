"""The chat template that a tokenizer of transformers brings along, as a template of ours: its text is cut where each turn begins and ends.

transformers gives the whole text of a conversation. What a turn says is found in it by writing marks in its place first, so that a user
who writes "<|im_end|>" does not end a turn, and a reply is tokenised as it was sampled.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

from rlhf_jax.data.schema import Prompt, Turn
from rlhf_jax.data.tokens.templates import OWN, Frames, Piece, get_template

MARK = "\ue000{}\ue001"  # characters of the private use area, which no template looks for
MARKS = re.compile("\ue000(\\d+)\ue001")
PROBE = (Turn("user", "Hi"), Turn("assistant", "Hello"))


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """`render(messages, opening)` is the text of messages, ending where a reply starts if `opening`."""

    render: Callable[[list[dict[str, str]], bool], str]
    opening: str  # what stands before a reply that is to be written
    before_reply: str  # what a reply in the data has in front besides
    end: str
    loses: Literal["start", "end of document"] = "start"
    closed: bool = False
    special: bool = True
    bos: bool = False

    def pieces(self, turns: Sequence[Turn], place: str = "") -> list[Piece]:
        """Raises: ValueError where the template refuses the dialogue, changes what is said, or leaves a turn out."""
        opening = turns[-1].role != "assistant" if turns else True
        try:
            written = self.render(_messages(turns), opening)
            parts = MARKS.split(self.render(_messages(turns, marked=True), opening))
        except ValueError as error:
            raise ValueError(f"{place}: the tokenizer's chat template refuses the dialogue ({error})") from error
        said = [turn.text for turn in turns]
        if [int(number) for number in parts[1::2]] != list(range(len(turns))):
            raise ValueError(
                f"{place}: the tokenizer's chat template leaves out a turn, or repeats one; choose another template"
            )
        for texts in (said, [text.strip() for text in said]):  # some templates strip what is said
            pieces = [Piece(part, "frame") for part in parts]
            for number, text in enumerate(texts):
                kind = "reply" if turns[number].role == "assistant" else "said"
                pieces[2 * number + 1] = Piece(text, kind)
            if "".join(piece.text for piece in pieces) == written:
                return [piece for piece in pieces if piece.text or piece.kind == "reply"]
        raise ValueError(
            f"{place}: the tokenizer's chat template changes what is said in a turn; choose another template"
        )

    def prompt(self, prompt: Prompt) -> str:
        written = "".join(piece.text for piece in self.pieces(prompt.turns, prompt.provenance.place))
        return written + (self.opening if prompt.turns[-1].role == "assistant" else "")

    def reply_pieces(self, text: str) -> list[Piece]:
        return [*self.reply_start(text), Piece(self.end, "frame")]

    def reply_start(self, text: str) -> list[Piece]:
        return [Piece(self.before_reply, "frame"), Piece(text, "reply")]

    def reply_text(self, written: str) -> str:
        return written.removeprefix(self.before_reply).removesuffix(self.end)


def own_template(tokenizer: Any) -> ChatTemplate:
    """The chat template of a `TransformersTokenizer`.

    Raises: ValueError where it has none, or one that does not begin a reply as it stands in a dialogue.
    """
    render = getattr(tokenizer, "render", None)
    if render is None:
        raise ValueError(
            "text.template='tokenizer' is the chat template of the tokenizer, which has none; name one, such as chatml"
        )
    try:
        said, asked = (render(_messages(PROBE[:1], marked=True), opening) for opening in (False, True))
        answered = render(_messages(PROBE, marked=True), False)
    except ValueError as error:
        raise ValueError(f"the tokenizer's chat template cannot be used ({error})") from error
    if MARKS.findall(answered) != ["0", "1"]:
        raise ValueError("the tokenizer's chat template leaves out a turn, or repeats one; choose another template")
    before, _, after = answered.partition(MARK.format(1))
    if not asked.startswith(said) or not before.startswith(asked):
        raise ValueError(
            f"the tokenizer's chat template begins a reply behind {asked[-40:]!r}, but one in a dialogue behind {before[-40:]!r}"
        )
    # The longest first: of tokens that begin alike the tokenizer reads the longest.
    names = sorted(tokenizer.specials, key=len, reverse=True)
    end = re.match("|".join(map(re.escape, names)) or r"(?!)", after)
    return ChatTemplate(render, asked.removeprefix(said), before.removeprefix(asked), end[0] if end else "")


def find_template(name: str, tokenizer: Any) -> Frames | ChatTemplate:
    """The template of that name; "tokenizer" is the tokenizer's own. Raises: as `get_template` and `own_template`."""
    return own_template(tokenizer) if name == OWN else get_template(name)


def _messages(turns: Sequence[Turn], *, marked: bool = False) -> list[dict[str, str]]:
    return [
        {"role": turn.role, "content": MARK.format(number) if marked else turn.text}
        for number, turn in enumerate(turns)
    ]
