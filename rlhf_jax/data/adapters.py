"""What the rows of each known data set mean: one small function per set, from row to record.

A row that breaks its format (a missing field, a wrong type) is a `DataError`, since the file is not what it was said to
be. A row that is well formed but of no use (two identical replies) is `Rejected` with its reason, and counted by
whoever loads it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, get_args

from rlhf_jax.data.readers import DataError, Row, read_json, read_jsonl, read_lines, read_text_members, read_tsv
from rlhf_jax.data.schema import (
    Classified,
    Comparison,
    Demonstration,
    Labelled,
    LabelledReply,
    Prompt,
    Provenance,
    Record,
    Role,
    Turn,
    user_prompt,
)


class Rejected(NamedTuple):
    """A row left out, and why."""

    place: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Adapter:
    """How to read a data set: rows out of a file, and a record out of a row."""

    read: Callable[[Path], Iterator[tuple[str, Row]]]
    parse: Callable[[Row, Provenance], Record | Rejected]


def parse_alpaca(row: Row, provenance: Provenance) -> Demonstration | Rejected:
    """instruction, input, output -> a prompt of one turn (the input, if any, after a blank line) and its reply.

    Source: Taori et al. 2023, Stanford Alpaca.
    """
    instruction, context, output = (_text(row, name, provenance) for name in ("instruction", "input", "output"))
    if not output.strip():
        return Rejected(provenance.place, "the output is empty")
    asked = f"{instruction}\n\n{context}" if context.strip() else instruction
    return Demonstration(user_prompt(asked, provenance), output)


def parse_hh(row: Row, provenance: Provenance) -> Comparison | Rejected:
    """chosen, rejected: two dialogues that should differ in their last assistant turn only.

    Source: Bai et al. 2022 (arXiv:2204.05862), the released comparisons.
    """
    chosen, rejected = (parse_hh_dialogue(_text(row, name, provenance), provenance) for name in ("chosen", "rejected"))
    if chosen == rejected:
        return Rejected(provenance.place, "both replies are identical")
    if chosen[:-1] != rejected[:-1]:
        return Rejected(provenance.place, "the dialogues differ before the last assistant turn")
    for dialogue in (chosen, rejected):
        if dialogue[-1].role != "assistant" or len(dialogue) < 2:
            return Rejected(provenance.place, "a dialogue does not end with a reply of the assistant")
    prompt = Prompt(chosen[:-1], provenance, key=dialogue_key(chosen[:-1]))
    return Comparison(prompt, chosen[-1].text, rejected[-1].text)


def parse_hh_dialogue(text: str, provenance: Provenance) -> tuple[Turn, ...]:
    """The turns of "\\n\\nHuman: ...\\n\\nAssistant: ..."; only the one space after the colon is not part of a turn."""
    opening, *parts = re.split(r"\n\n(Human|Assistant): ?", text)
    if opening or not parts:
        reason = f"a dialogue starts with {text[:20]!r}"
        raise DataError(provenance.place, reason, "expected two newlines and 'Human:' before the first turn")
    roles: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
    return tuple(Turn(roles[name], said) for name, said in zip(parts[::2], parts[1::2], strict=True))


def parse_sst2(row: Row, provenance: Provenance) -> Labelled:
    """sentence, label (0 negative, 1 positive); the blank that the files have after each sentence is not part of it.

    Source: Socher et al. 2013, in the two classes of GLUE (Wang et al. 2018, arXiv:1804.07461).
    """
    sentence, label = _text(row, "sentence", provenance).strip(), _text(row, "label", provenance)
    if label not in ("0", "1"):
        raise DataError(provenance.place, f"field 'label' is {label!r}", "expected 0 or 1")
    return Labelled(sentence, int(label), provenance)


def parse_imdb(row: Row, provenance: Provenance) -> Labelled | Rejected:
    """A review whose label is its folder: pos (1) or neg (0). The text keeps its "<br />".

    Source: Maas et al. 2011, Large Movie Review Dataset.
    """
    folder = PurePosixPath(_text(row, "member", provenance)).parent.name
    if folder not in ("pos", "neg"):
        return Rejected(provenance.place, f"in folder {folder!r}, not in pos or neg")
    return Labelled(_text(row, "text", provenance), int(folder == "pos"), provenance)


def parse_classified(row: Row, provenance: Provenance) -> Classified:
    """text, label: a text with the name of its class."""
    text, label = (_text(row, name, provenance) for name in ("text", "label"))
    return Classified(text, label, provenance)


def parse_cvalues(row: Row, provenance: Provenance) -> Classified:
    """prompt, domain_en: a question in Chinese with the field of the expert who asked it.

    Source: Xu et al. 2023, CValues (arXiv:2307.09705), the prompts on responsibility.
    """
    prompt, field = (_text(row, name, provenance) for name in ("prompt", "domain_en"))
    return Classified(prompt, field, provenance)


def parse_unpaired(row: Row, provenance: Provenance) -> LabelledReply | Rejected:
    """prompt, completion, label (true: desirable): single replies with a thumb up or down, the prompt as one turn of a user.

    Source: the unpaired preferences of TRL (huggingface.co/docs/trl/dataset_formats), in their standard, textual form.
    """
    asked, reply = (_text(row, name, provenance) for name in ("prompt", "completion"))
    return _labelled_reply(
        user_prompt(asked, provenance), reply, _field(row, "label", bool, "true or false", provenance)
    )


def parse_unpaired_messages(row: Row, provenance: Provenance) -> LabelledReply | Rejected:
    """messages (each with role and content), label: a dialogue whose last turn, of the assistant, is desirable (true) or not.

    Source: the files for KTO of LLaMA-Factory (Zheng et al. 2024, arXiv:2403.13372).
    """
    messages = _field(row, "messages", list, "an array of messages", provenance)
    for message in messages:
        if not isinstance(message, dict):
            reason = f"a message is a {type(message).__name__}"
            raise DataError(provenance.place, reason, "expected an object with 'role' and 'content'")
    turns = tuple(Turn(_role(message, provenance), _text(message, "content", provenance)) for message in messages)
    desirable = _field(row, "label", bool, "true or false", provenance)
    if len(turns) < 2 or turns[-1].role != "assistant":
        return Rejected(provenance.place, "the dialogue does not end with a reply of the assistant")
    return _labelled_reply(Prompt(turns[:-1], provenance, key=dialogue_key(turns[:-1])), turns[-1].text, desirable)


def parse_tldr(row: Row, provenance: Provenance) -> Demonstration | Rejected:
    """subreddit, title, post, summary -> the post with its title before it, and the summary.

    Source: the filtered TL;DR of Stiennon et al. 2020 (arXiv:2009.01325), appendix A; files that call post and summary instruction and
    gold_response are read too.
    """
    subreddit, title = (_text(row, name, provenance) for name in ("subreddit", "title"))
    post, summary = (
        _text(row, first if first in row or other not in row else other, provenance)
        for first, other in (("post", "instruction"), ("summary", "gold_response"))
    )
    if not post.strip() or not summary.strip():
        return Rejected(provenance.place, "the post or its summary is empty")
    return Demonstration(_post(subreddit, title, post, provenance), summary.strip())


def parse_tldr_comparison(row: Row, provenance: Provenance) -> Comparison | Rejected:
    """info (subreddit, title, post), summaries (two, each with text), choice (0 or 1: which was preferred).

    Source: the released comparisons of Stiennon et al. 2020 (arXiv:2009.01325), appendix C.
    """
    info = _field(row, "info", dict, "an object", provenance)
    summaries = _field(row, "summaries", list, "an array of two summaries", provenance)
    choice = _field(row, "choice", int, "0 or 1", provenance)
    if len(summaries) != 2 or not all(isinstance(summary, dict) for summary in summaries):
        raise DataError(provenance.place, "field 'summaries' is not two objects", "expected two, each with 'text'")
    if choice not in (0, 1):
        raise DataError(
            provenance.place, f"field 'choice' is {choice}", "expected 0 or 1, the summary that was preferred"
        )
    if info.get("post") is None:
        return Rejected(provenance.place, "of an article, not of a post")
    subreddit, title, post = (_text(info, name, provenance) for name in ("subreddit", "title", "post"))
    texts = [_text(summary, "text", provenance).strip() for summary in summaries]
    if texts[0] == texts[1]:
        return Rejected(provenance.place, "both replies are identical")
    return Comparison(_post(subreddit, title, post, provenance), texts[choice], texts[1 - choice])


def _post(subreddit: str, title: str, post: str, provenance: Provenance) -> Prompt:
    """A post of a forum: where it stands and what it is called as a system turn, so that a cut leaves them whole."""
    turns = (Turn("system", f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}"), Turn("user", post.strip()))
    return Prompt(turns, provenance, key=dialogue_key(turns))


def parse_line(row: Row, provenance: Provenance) -> Prompt:
    """One prompt of one user turn per line of a text file."""
    return user_prompt(_text(row, "text", provenance), provenance)


OPENING_WORDS = 6


def parse_opening(row: Row, provenance: Provenance) -> Prompt | Rejected:
    """The first words of a paragraph, for a policy to go on with."""
    words = _text(row, "text", provenance).split()
    if len(words) < 2 * OPENING_WORDS:
        return Rejected(provenance.place, f"a paragraph of fewer than {2 * OPENING_WORDS} words")
    return user_prompt(" ".join(words[:OPENING_WORDS]), provenance)


ADAPTERS: dict[str, Adapter] = {
    "alpaca": Adapter(read_json, parse_alpaca),
    "hh": Adapter(read_jsonl, parse_hh),
    "sst2": Adapter(read_tsv, parse_sst2),
    "imdb": Adapter(read_text_members, parse_imdb),
    "classified": Adapter(read_json, parse_classified),
    "cvalues": Adapter(read_jsonl, parse_cvalues),
    "unpaired": Adapter(read_json, parse_unpaired),
    "unpaired_messages": Adapter(read_json, parse_unpaired_messages),
    "tldr": Adapter(read_jsonl, parse_tldr),
    "tldr_comparisons": Adapter(read_jsonl, parse_tldr_comparison),
    "lines": Adapter(read_lines, parse_line),
    "openings": Adapter(read_lines, parse_opening),
}


def dialogue_key(turns: tuple[Turn, ...]) -> str:
    """What identifies a dialogue across data sets: its texts alone, so that one turn has the key of `user_prompt`."""
    return "\n\n".join(turn.text for turn in turns)


def _labelled_reply(prompt: Prompt, reply: str, desirable: bool) -> LabelledReply | Rejected:
    if not reply.strip():
        return Rejected(prompt.provenance.place, "the reply is empty")
    return LabelledReply(prompt, reply, desirable)


def _text(row: Row, name: str, provenance: Provenance) -> str:
    value = _field(row, name, str, "text", provenance)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can write half of a surrogate pair, on which every tokenizer fails later
        reason = f"field {name!r} has half a surrogate pair at character {error.start + 1}"
        raise DataError(provenance.place, reason, "expected Unicode text") from error
    return value


def _role(message: Row, provenance: Provenance) -> Role:
    name = _text(message, "role", provenance)
    if name not in get_args(Role):
        raise DataError(provenance.place, f"field 'role' is {name!r}", f"expected {' or '.join(get_args(Role))}")
    return name  # pyright: ignore[reportReturnType]


def _field(row: Row, name: str, kind: type, expected: str, provenance: Provenance) -> Any:
    if name not in row:
        raise DataError(provenance.place, f"no field {name!r}", f"the row has {', '.join(map(repr, row))}")
    if not isinstance(row[name], kind):
        raise DataError(provenance.place, f"field {name!r} is a {type(row[name]).__name__}", f"expected {expected}")
    return row[name]
