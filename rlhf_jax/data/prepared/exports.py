"""The way out: records as the files of other projects, each line a row of theirs."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rlhf_jax.data.adapters.stored import to_row
from rlhf_jax.data.readers import Row
from rlhf_jax.data.schema import (
    Comparison,
    Conversation,
    Demonstration,
    LabelledReply,
    Prompt,
    Ranking,
    Record,
    Turn,
)
from rlhf_jax.files import replacing

SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt"}


def messages(turns: Iterable[Turn]) -> list[Row]:
    """Turns as OpenAI has messages."""
    return [{"role": turn.role, "content": turn.text} for turn in turns]


def openai(record: Record) -> list[Row]:
    """OpenAI's files for chat fine-tuning: {"messages": [...]}, ending with the assistant's reply."""
    if isinstance(record, Conversation):
        return [{"messages": messages(record.turns)}]
    if isinstance(record, Demonstration):
        return [{"messages": messages((*record.prompt.turns, Turn("assistant", record.reply)))}]
    return []


def sharegpt(record: Record) -> list[Row]:
    """ShareGPT: {"conversations": [{"from", "value"}, ...]}."""
    told = openai(record)
    return [
        {"conversations": [{"from": SPEAKERS[said["role"]], "value": said["content"]} for said in row["messages"]]}
        for row in told
    ]


def alpaca(record: Record) -> list[Row]:
    """Alpaca: instruction, input (empty), output; what was said before as history, a system text as system (LLaMA-Factory)."""
    if not isinstance(record, Demonstration | Conversation):
        return []
    turns = (
        record.turns if isinstance(record, Conversation) else (*record.prompt.turns, Turn("assistant", record.reply))
    )
    system = turns[0].text if turns[0].role == "system" else ""
    said = [turn.text for turn in (turns[1:] if system else turns)]
    if [turn.role for turn in turns[bool(system) :]] != ["user", "assistant"] * (len(said) // 2):
        return []
    *before, last = [list(pair) for pair in zip(said[::2], said[1::2], strict=True)]
    row = {"instruction": last[0], "input": "", "output": last[1]}
    return [row | ({"history": before} if before else {}) | ({"system": system} if system else {})]


def preference(record: Record) -> list[Row]:
    """TRL's preference files: prompt, chosen, rejected; texts where a user asks once, else messages. A ranking is all its pairs."""
    return [_as_texts(row) for row in _preference(record)]


def _preference(record: Record) -> list[Row]:
    if isinstance(record, Ranking):
        return [row for pair in record.comparisons() for row in _preference(pair)]
    if not isinstance(record, Comparison):
        return []
    replies = {"chosen": record.chosen, "rejected": record.rejected}
    sides = {side: messages([Turn("assistant", text)]) for side, text in replies.items()}
    return [{"prompt": messages(record.prompt.turns), **sides}]


def unpaired(record: Record) -> list[Row]:
    """TRL's files of single replies with a thumb up or down: prompt, completion, label; texts where a user asks once, else messages."""
    return [_as_texts(row) for row in _unpaired(record)]


def _unpaired(record: Record) -> list[Row]:
    if not isinstance(record, LabelledReply):
        return []
    completion = messages([Turn("assistant", record.reply)])
    return [{"prompt": messages(record.prompt.turns), "completion": completion, "label": record.desirable}]


def _as_texts(row: Row) -> Row:
    """The row with texts for messages, where its prompt is a single turn of a user."""
    if [message["role"] for message in row["prompt"]] != ["user"]:
        return row
    return {name: value[0]["content"] if isinstance(value, list) else value for name, value in row.items()}


def prompts(record: Record) -> list[Row]:
    """What is asked alone: {"prompt": [messages]}."""
    asked = record if isinstance(record, Prompt) else getattr(record, "prompt", None)
    return [] if asked is None else [{"prompt": messages(asked.turns)}]


def records(record: Record) -> list[Row]:
    """Any record, with its provenance, as prepared sets hold it (`stored.to_row`)."""
    return [to_row(record)]


FORMS: dict[str, Callable[[Record], list[Row]]] = {
    form.__name__: form for form in (openai, sharegpt, alpaca, preference, unpaired, prompts, records)
}


def export(records: Iterable[Record], form: str, path: Path) -> tuple[int, Counter[str]]:
    """(rows written, records left out by kind): writes rows of that form, as Parquet where the name says so, else as JSON lines.

    The file is written whole or not at all. Raises: KeyError for an unknown form, ValueError where no record has it.
    """
    if form not in FORMS:
        close = difflib.get_close_matches(form, FORMS) or FORMS
        raise KeyError(f"no form {form!r}; did you mean {' or '.join(close)}?")
    rows, left_out = 0, Counter[str]()
    rows_of = FORMS[form]
    if path.suffix == ".parquet":
        # A column has one type there, so that prompts are messages throughout.
        rows_of = {"preference": _preference, "unpaired": _unpaired}.get(form, rows_of)

    def told() -> Iterable[Row]:
        nonlocal rows
        for record in records:
            found = rows_of(record)
            rows += len(found)
            if not found:
                left_out[type(record).__name__] += 1
            yield from found

    with replacing(path) as file:
        if path.suffix == ".parquet":
            _write_parquet(told(), file)
        else:
            for row in told():
                file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        if not rows:
            kinds = ", ".join(f"{count} of kind {kind}" for kind, count in left_out.items()) or "none"
            raise ValueError(f"nothing to write: the form {form} has no row for any of the records ({kinds})")
    return rows, left_out


def _write_parquet(rows: Iterable[Row], file: Any) -> None:
    import pyarrow
    import pyarrow.parquet

    found = list(rows)
    names = dict.fromkeys(name for row in found for name in row)
    table = pyarrow.table({name: [row.get(name) for row in found] for name in names})
    pyarrow.parquet.write_table(table, file)
