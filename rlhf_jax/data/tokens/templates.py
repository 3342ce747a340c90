"""How a dialogue is written as one text: what stands around each turn, and where the reply starts."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from rlhf_jax.data.schema import Prompt, Turn


class Piece(NamedTuple):
    """A part of a dialogue as it is written: what the template puts there, what somebody said, or a reply of the assistant."""

    text: str
    kind: Literal["frame", "said", "reply"]


@runtime_checkable
class Template(Protocol):
    """The text around turns. A prompt ends where a reply begins; a reply ends with `end`, where there is such a token.

    A prompt that is too long loses the start of the dialogue, or, where its last turn is a document, the end of that (`loses`).
    """

    @property
    def loses(self) -> Literal["start", "end of document"]: ...

    @property
    def closed(self) -> bool:
        """Whether eos stands behind the prompt, as where an encoder reads it."""
        ...

    @property
    def special(self) -> bool:
        """Whether its frames spell special tokens, such as <|im_start|>, which a tokenizer that has them is to read as such."""
        ...

    @property
    def bos(self) -> bool:
        """Whether the tokenizer's bos goes in front, or the frames have it themselves."""
        ...

    @property
    def end(self) -> str:
        """The special token that ends each reply; empty where nothing in a dialogue tells it, and eos alone ends the last one."""
        ...

    def pieces(self, turns: Sequence[Turn], place: str = "") -> list[Piece]:
        """The dialogue; its end is where a reply starts if a user has the last word, else where the last reply ends."""
        ...

    def prompt(self, prompt: Prompt) -> str:
        """The dialogue up to where the reply starts."""
        ...

    def reply_pieces(self, text: str) -> list[Piece]:
        """What is learned of a reply: its text with what belongs to it, and what ends it."""
        ...

    def reply_start(self, text: str) -> list[Piece]:
        """What a reply that begins with this text begins with."""
        ...

    def reply_text(self, written: str) -> str:
        """The reply without what the template put around it: the inverse of `reply`, harmless where it is missing."""
        ...


@dataclasses.dataclass(frozen=True)
class Frames:
    """A template whose frames do not depend on what is said. A reply is `before_reply` + its text + `after_reply` + `end`.

    What belongs to the reply is tokenised with it: a blank after "Assistant:" would otherwise be a token of its own at
    the end of every prompt, which no training text has there.
    """

    user: str
    assistant: str
    system: str = "{}"
    preamble: str = ""  # opens a dialogue that has no system turn
    opening: str = ""
    before_reply: str = ""
    after_reply: str = ""
    end: str = ""
    loses: Literal["start", "end of document"] = "start"
    closed: bool = False
    special: bool = False
    bos: bool = True
    system_in_user: bool = False  # whether a system turn is written inside the turn of the user behind it

    def __post_init__(self) -> None:
        for name in ("user", "assistant", "system"):
            if getattr(self, name).count("{}") != 1:
                form = getattr(self, name)
                raise ValueError(f"template field {name} is {form!r}; expected one {{}} where the text goes")

    def pieces(self, turns: Sequence[Turn], place: str = "") -> list[Piece]:
        if not turns:
            raise ValueError(f"the prompt from {place!r} has no turns; expected at least one")
        found = [] if turns[0].role == "system" else [Piece(self.preamble, "frame")]
        held: list[Piece] = []
        for turn in turns:
            before, after = getattr(self, turn.role).split("{}")
            said = [Piece(turn.text, "said")]
            if turn.role == "assistant":
                reply, _ = self.reply_pieces(turn.text)
                before, after = before.removesuffix(self.before_reply), after.removeprefix(self.after_reply)
                said = [reply]
            if turn.role == "system" and self.system_in_user:
                held += [Piece(before, "frame"), *said, Piece(after, "frame")]
            else:
                found += [Piece(before, "frame"), *held, *said, Piece(after, "frame")]
                held = []
        ending = [Piece(self.opening, "frame")] if turns[-1].role != "assistant" else []
        return [piece for piece in (*found, *held, *ending) if piece.text or piece.kind == "reply"]

    def prompt(self, prompt: Prompt) -> str:
        written = self.pieces(prompt.turns, prompt.provenance.place)
        opening = self.opening if prompt.turns[-1].role == "assistant" else ""
        return "".join(piece.text for piece in written) + opening

    def reply_pieces(self, text: str) -> list[Piece]:
        return [Piece(f"{self.before_reply}{text}{self.after_reply}", "reply"), Piece(self.end, "frame")]

    def reply_start(self, text: str) -> list[Piece]:
        return [Piece(f"{self.before_reply}{text}", "reply")]

    def reply(self, text: str) -> str:
        """The reply as it stands in the text."""
        return "".join(piece.text for piece in self.reply_pieces(text))

    def reply_text(self, written: str) -> str:
        return written.removeprefix(self.before_reply).removesuffix(self.end).removesuffix(self.after_reply)


TEMPLATES: dict[str, Frames] = {
    # Story openings and other texts that the reply simply goes on with.
    "none": Frames(user="{}", assistant="{}"),
    # A reply starts with a blank, so that its first word has the tokens it has inside a text.
    "plain": Frames(user="{}\n", assistant=" {}\n", system="{}\n", before_reply=" "),
    # Taori et al. 2023, Stanford Alpaca, the prompt without input; later turns repeat the headings.
    "alpaca": Frames(
        user="### Instruction:\n{}\n\n",
        assistant="### Response:\n{}\n\n",
        system="{}\n\n",
        preamble=(
            "Below is an instruction that describes a task. "
            "Write a response that appropriately completes the request.\n\n"
        ),
        opening="### Response:\n",
    ),
    # Bai et al. 2022 (arXiv:2204.05862), the format of the released dialogues.
    "hh": Frames(
        user="\n\nHuman: {}",
        assistant="\n\nAssistant: {}",
        opening="\n\nAssistant:",
        before_reply=" ",
    ),
    # Stiennon et al. 2020 (arXiv:2009.01325), appendix B.2: a post between its title, which is a system turn here, and "TL;DR:".
    "tldr": Frames(
        user="POST: {}\n\nTL;DR:",
        assistant=" {}\n\n",
        system="{}\n\n",
        before_reply=" ",
        loses="end of document",
    ),
    # ChatML of OpenAI, as Qwen and others have it.
    "chatml": Frames(
        user="<|im_start|>user\n{}<|im_end|>\n",
        assistant="<|im_start|>assistant\n{}<|im_end|>\n",
        system="<|im_start|>system\n{}<|im_end|>\n",
        opening="<|im_start|>assistant\n",
        end="<|im_end|>",
        special=True,
    ),
    # Touvron et al. 2023 (arXiv:2307.09288), Llama 2 Chat: the system text is inside the first turn of the user.
    "llama2": Frames(
        user="[INST] {} [/INST]",
        assistant=" {} </s><s>",
        system="<<SYS>>\n{}\n<</SYS>>\n\n",
        before_reply=" ",
        after_reply=" ",
        end="</s>",
        special=True,
        system_in_user=True,
    ),
    # Grattafiori et al. 2024 (arXiv:2407.21783), Llama 3.
    "llama3": Frames(
        user="<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>",
        assistant="<|start_header_id|>assistant<|end_header_id|>\n\n{}<|eot_id|>",
        system="<|start_header_id|>system<|end_header_id|>\n\n{}<|eot_id|>",
        opening="<|start_header_id|>assistant<|end_header_id|>\n\n",
        end="<|eot_id|>",
        special=True,
    ),
    # Gemma Team 2024 (arXiv:2403.08295), table 3; it has no system turn, Gemma 3 puts such a text in front of the first turn of the user.
    "gemma": Frames(
        user="<start_of_turn>user\n{}<end_of_turn>\n",
        assistant="<start_of_turn>model\n{}<end_of_turn>\n",
        system="{}\n\n",
        opening="<start_of_turn>model\n",
        end="<end_of_turn>",
        special=True,
        system_in_user=True,
    ),
    # Tunstall et al. 2023 (arXiv:2310.16944), Zephyr.
    "zephyr": Frames(
        user="<|user|>\n{}</s>\n",
        assistant="<|assistant|>\n{}</s>\n",
        system="<|system|>\n{}</s>\n",
        opening="<|assistant|>\n",
        end="</s>",
        special=True,
    ),
}

OWN = "tokenizer"
"""The name of the template that a tokenizer of transformers brings along (`chat.py`)."""


def get_template(name: str) -> Frames:
    """The template of that name. Raises: KeyError with the closest names."""
    if name not in TEMPLATES:
        close = difflib.get_close_matches(name, [*TEMPLATES, OWN]) or sorted([*TEMPLATES, OWN])
        raise KeyError(f"no template {name!r}; did you mean {' or '.join(close)}?")
    return TEMPLATES[name]
