"""Configs as plain JSON and back, with types checked: for `config.json`, golden files and `--set a.b=c`."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def to_dict(config: Any) -> Any:
    """A config as nested dicts, lists and numbers, in the order of its fields."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config)}
    return [to_dict(item) for item in config] if isinstance(config, tuple) else config


def from_dict(kind: type[T], tree: dict[str, Any], path: str = "") -> T:
    """The config of a nested dict. Raises: KeyError for unknown fields (with the closest), ValueError for wrong types and values."""
    hints = typing.get_type_hints(kind)
    for name in tree:
        if name not in hints:
            raise KeyError(unknown_name(f"field {path}{name}", name, hints))
    values = {name: _convert(hints[name], value, f"{path}{name}") for name, value in tree.items()}
    missing = [
        f"{path}{field.name}"
        for field in dataclasses.fields(kind)  # pyright: ignore[reportArgumentType]
        if field.name not in tree and field.default is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"not set: {', '.join(missing)}")
    return kind(**values)


def apply_overrides(config: T, assignments: Sequence[str]) -> T:
    """The config with every `a.b=c` applied together, then validated as a whole.

    Raises: KeyError for unknown fields, ValueError for text that is not an assignment, or a value of the wrong type or out of range.
    """
    tree = to_dict(config)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"{assignment!r} is not of the form a.b=c")
        _assign(tree, type(config), path.strip().split("."), text.strip(), path)
    return from_dict(type(config), tree)


def difference(one: dict[str, Any], other: dict[str, Any], path: str = "") -> list[str]:
    """Lines "a.b: 1 -> 2" of all leaves in which two nested dicts differ."""
    lines = []
    for name in [*one, *(name for name in other if name not in one)]:
        left, right = one.get(name), other.get(name)
        if isinstance(left, dict) and isinstance(right, dict):
            lines += difference(left, right, f"{path}{name}.")
        elif left != right:
            lines.append(f"{path}{name}: {json.dumps(left)} -> {json.dumps(right)}")
    return lines


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """ "no WHAT; did you mean ...?" with the closest known names, or all of them where none is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"no {what}; did you mean {' or '.join(close)}?" if close else f"no {what}; there are {', '.join(known)}"


def _assign(tree: Any, kind: Any, keys: list[str], text: str, path: str) -> None:
    hints = typing.get_type_hints(kind)
    if keys[0] not in hints:
        raise KeyError(unknown_name(f"field {path!r}", keys[0], hints))
    hint = hints[keys[0]]
    if len(keys) == 1:
        tree[keys[0]] = _parse(hint, text, path)
        return
    nested: Any = next((arm for arm in _arms(hint) if dataclasses.is_dataclass(arm)), None)
    if nested is None:
        raise KeyError(f"no field {path!r}: {keys[0]!r} has no fields of its own")
    if tree[keys[0]] is None:
        if any(field.default is dataclasses.MISSING for field in dataclasses.fields(nested)):
            raise ValueError(f"{path} cannot be set: this experiment has no {keys[0]!r}")
        tree[keys[0]] = to_dict(from_dict(nested, {}))  # all of it has defaults, of which this sets one
    _assign(tree[keys[0]], nested, keys[1:], text, path)


def _arms(hint: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _parse(hint: Any, text: str, path: str) -> Any:
    """The value that a text stands for: JSON where the type is a number, a truth value, a list or none, or the text is in quotes; else the
    text itself."""
    arms = _arms(hint)
    if text.lower() in ("none", "null") and type(None) in arms:
        return None
    quoted = len(text) > 1 and text[0] == text[-1] == '"'
    if (not quoted and str in arms) or any(typing.get_origin(arm) is typing.Literal for arm in arms):
        return text
    try:
        if float in arms:
            return float(text)  # JSON knows no .9
        return json.loads(text.lower() if bool in arms else text)
    except ValueError:
        raise ValueError(f"{path}={text}: expected {_name(hint)}") from None


def _convert(hint: Any, value: Any, path: str) -> Any:
    for arm in _arms(hint):
        if arm is type(None) and value is None:
            return None
        if dataclasses.is_dataclass(arm) and isinstance(value, dict):
            return from_dict(arm, value, f"{path}.")  # pyright: ignore[reportArgumentType]
        if typing.get_origin(arm) is typing.Literal and value in typing.get_args(arm):
            return value
        if typing.get_origin(arm) is tuple and isinstance(value, list | tuple):
            inner = typing.get_args(arm)
            if len(inner) == 2 and inner[1] is Ellipsis:
                return tuple(_convert(inner[0], item, f"{path}[{n}]") for n, item in enumerate(value))
            if len(inner) == len(value):
                return tuple(_convert(kind, item, path) for kind, item in zip(inner, value, strict=True))
        if arm is float and isinstance(value, int | float) and not isinstance(value, bool):
            if not math.isfinite(value):
                raise ValueError(f"{path} is {value}; expected a finite number")
            return float(value)
        if arm in (int, str, bool) and type(value) is arm:
            return value
    raise ValueError(f"{path} is {value!r}; expected {_name(hint)}")


def _name(hint: Any) -> str:
    names = []
    for arm in _arms(hint):
        if arm is type(None):
            names.append("none")
        elif typing.get_origin(arm) is typing.Literal:
            names += [repr(choice) for choice in typing.get_args(arm)]
        elif typing.get_origin(arm) is tuple:
            first = typing.get_args(arm)[0]
            example = {str: '["a", "b"]', int: "[0, 1]"}.get(first, '[["SOURCE", 1.0]]')
            names.append(f"a list such as {example}")
        else:
            names.append(
                {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}.get(arm, arm.__name__)
            )
    return " or ".join(names)
