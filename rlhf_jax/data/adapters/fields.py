"""Reading the fields of a row: each function gives the value, or says what is wrong with it and where."""

from __future__ import annotations

import ast
import json
from typing import Any

from rlhf_jax.data.adapters.registry import Unusable
from rlhf_jax.data.readers import DataError, Row
from rlhf_jax.data.schema import Comparison, Prompt, Provenance, Role, Turn, dialogue_key, user_prompt

ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
TOOLS = ("tool", "function", "function_call", "observation")
NOTHING = ("", "nan")  # pandas writes the second into a cell that has no text


def text(row: Row, name: str, provenance: Provenance) -> str:
    """The text in a field. Raises: DataError where there is none."""
    return checked(field(row, name, str, "text", provenance), name, provenance)


def checked(value: str, name: str, provenance: Provenance) -> str:
    """The text itself. Raises: DataError where it is no Unicode text."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can write half of a surrogate pair, on which every tokenizer fails later
        reason = f"field {name!r} has half a surrogate pair at character {error.start + 1}"
        raise DataError(provenance.place, reason, "expected Unicode text") from error
    return value


def optional_text(row: Row, name: str, provenance: Provenance) -> str:
    """The text in a field, or nothing where the field is missing, null, or a table's word for nothing."""
    value = "" if row.get(name) is None else text(row, name, provenance)
    return "" if value.strip().lower() in NOTHING else value


def filled(value: str, what: str) -> str:
    """The text. Raises: Unusable where it is blank."""
    if not value.strip():
        raise Unusable(f"the {what} is empty")
    return value


def field(row: Row, name: str, kind: type | tuple[type, ...], expected: str, provenance: Provenance) -> Any:
    """The value of a field. Raises: DataError where it is missing or of another kind; a bool is no number."""
    if name not in row:
        raise DataError(provenance.place, f"no field {name!r}", f"the row has {', '.join(map(repr, row))}")
    value = row[name]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise DataError(provenance.place, f"field {name!r} is a {type(value).__name__}", f"expected {expected}")
    return value


def number(row: Row, name: str, provenance: Provenance) -> float:
    """The number in a field, or in the text of a cell. Raises: DataError where there is none."""
    value = field(row, name, (int, float, str), "a number", provenance)
    try:
        return float(value)
    except ValueError as error:
        raise DataError(provenance.place, f"field {name!r} is {value!r}", "expected a number") from error


def listing(row: Row, name: str, expected: str, provenance: Provenance) -> list[Any]:
    """The list in a field, or written out in the text of a cell, as JSON or as Python has it. Raises: DataError where there is none."""
    value = field(row, name, (list, str), expected, provenance)
    if isinstance(value, list):
        return value
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(found, list):
            return found
    raise DataError(provenance.place, f"field {name!r} is {value[:40]!r}", f"expected {expected}")


def turns(messages: Any, provenance: Provenance) -> tuple[Turn, ...]:
    """The turns of messages, each with role and content (OpenAI) or from and value (ShareGPT).

    Raises: DataError for another form, Unusable for turns of tools.
    """
    return tuple(_turn(message, provenance) for message in messages)


def _turn(message: Any, provenance: Provenance) -> Turn:
    if not isinstance(message, dict):
        reason = f"a message is a {type(message).__name__}"
        raise DataError(provenance.place, reason, "expected an object with 'role' and 'content'")
    speaker, said = ("from", "value") if "from" in message and "role" not in message else ("role", "content")
    name = text(message, speaker, provenance)
    if name in TOOLS:
        raise Unusable(f"a turn of a {name}")
    if name not in ROLES:
        expected = ", ".join(sorted(ROLES))
        raise DataError(provenance.place, f"field {speaker!r} is {name!r}", f"expected one of {expected}")
    return Turn(ROLES[name], text(message, said, provenance))


def asked(row: Row, name: str, provenance: Provenance) -> Prompt:
    """The prompt in a field: a text, which is one turn of a user, or messages."""
    value = field(row, name, (str, list), "text or an array of messages", provenance)
    if isinstance(value, str):
        return user_prompt(checked(value, name, provenance), provenance)
    return prompt_of(turns(value, provenance), provenance)


def replied(row: Row, name: str, provenance: Provenance) -> str:
    """The reply in a field: a text, a message, or an array of one message."""
    value = field(row, name, (str, dict, list), "text or a message", provenance)
    if isinstance(value, str):
        return checked(value, name, provenance)
    said = turns(value if isinstance(value, list) else [value], provenance)
    if len(said) != 1 or said[0].role != "assistant":
        reason = f"field {name!r} has {len(said)} messages, of {', '.join(turn.role for turn in said) or 'nobody'}"
        raise DataError(provenance.place, reason, "expected one, of the assistant")
    return said[0].text


def prompt_of(before: tuple[Turn, ...], provenance: Provenance) -> Prompt:
    """A dialogue up to where the assistant replies. Raises: Unusable where nobody has asked."""
    if not before or before[-1].role != "user":
        raise Unusable("no turn of a user before the reply")
    return Prompt(before, provenance, key=dialogue_key(before))


def preferred(prompt: Prompt, chosen: str, rejected: str, *, margin: float = 0.0, weight: float = 1.0) -> Comparison:
    """A comparison. Raises: Unusable where the replies do not differ, or nothing was preferred to something."""
    if chosen == rejected:
        raise Unusable("both replies are identical")
    return Comparison(prompt, filled(chosen, "chosen reply"), rejected, margin, weight)
