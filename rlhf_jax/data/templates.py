"""How a dialogue is written as one text: what stands around each turn, and where the reply starts."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Literal

from rlhf_jax.data.schema import Prompt, Turn


@dataclasses.dataclass(frozen=True)
class Template:
    """The text around turns. A prompt ends with `opening`; a reply is `before_reply` + its text + `after_reply`.

    A prompt that is too long loses the start of the dialogue, or, where its last turn is a document, the end of that (`loses`).

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
    loses: Literal["start", "end of document"] = "start"
    closed: bool = False  # whether eos stands behind the prompt, as where an encoder reads it

    def __post_init__(self) -> None:
        for name in ("user", "assistant", "system"):
            if getattr(self, name).count("{}") != 1:
                form = getattr(self, name)
                raise ValueError(f"template field {name} is {form!r}; expected one {{}} where the text goes")

    def prompt(self, prompt: Prompt) -> str:
        """The dialogue up to where the reply starts."""
        if not prompt.turns:
            raise ValueError(f"the prompt from {prompt.provenance.place!r} has no turns; expected at least one")
        preamble = "" if prompt.turns[0].role == "system" else self.preamble
        return preamble + "".join(self._turn(turn) for turn in prompt.turns) + self.opening

    def reply(self, text: str) -> str:
        """The reply as it stands in the text."""
        return f"{self.before_reply}{text}{self.after_reply}"

    def reply_text(self, written: str) -> str:
        """The reply without what the template put around it: the inverse of `reply`, harmless where it is missing."""
        return written.removeprefix(self.before_reply).removesuffix(self.after_reply)

    def _turn(self, turn: Turn) -> str:
        around = {"system": self.system, "user": self.user, "assistant": self.assistant}[turn.role]
        before, after = around.split("{}")
        return before + turn.text + after


TEMPLATES: dict[str, Template] = {
    # Story openings and other texts that the reply simply goes on with.
    "none": Template(user="{}", assistant="{}"),
    # A reply starts with a blank, so that its first word has the tokens it has inside a text.
    "plain": Template(user="{}\n", assistant=" {}\n", system="{}\n", before_reply=" "),
    # Taori et al. 2023, Stanford Alpaca, the prompt without input; later turns repeat the headings.
    "alpaca": Template(
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
    "hh": Template(
        user="\n\nHuman: {}",
        assistant="\n\nAssistant: {}",
        opening="\n\nAssistant:",
        before_reply=" ",
    ),
    # Stiennon et al. 2020 (arXiv:2009.01325), appendix B.2: a post between its title, which is a system turn here, and "TL;DR:".
    "tldr": Template(
        user="POST: {}\n\nTL;DR:",
        assistant=" {}\n\n",
        system="{}\n\n",
        before_reply=" ",
        loses="end of document",
    ),
}


def get_template(name: str) -> Template:
    """The template of that name. Raises: KeyError with the closest names."""
    if name not in TEMPLATES:
        close = difflib.get_close_matches(name, TEMPLATES) or sorted(TEMPLATES)
        raise KeyError(f"no template {name!r}; did you mean {' or '.join(close)}?")
    return TEMPLATES[name]
