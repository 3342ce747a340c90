"""Checks of config fields, each with the field, its value and what would be right."""

from __future__ import annotations

import typing


def require(condition: bool, message: str) -> None:
    """Raises: ValueError with the message where the condition fails."""
    if not condition:
        raise ValueError(message)


def positive(config: object, *names: str) -> None:
    """Raises: ValueError for a field that is not above 0; None passes."""
    for name in names:
        value = getattr(config, name)
        require(value is None or value > 0, f"{type(config).__name__}.{name} is {value}; it must be above 0")


def fraction(config: object, *names: str) -> None:
    """Raises: ValueError for a field outside [0, 1]; None passes."""
    for name in names:
        value = getattr(config, name)
        require(value is None or 0 <= value <= 1, f"{type(config).__name__}.{name} is {value}; it must lie in [0, 1]")


def not_negative(config: object, *names: str) -> None:
    """Raises: ValueError for a field below 0; None passes."""
    for name in names:
        value = getattr(config, name)
        require(value is None or value >= 0, f"{type(config).__name__}.{name} is {value}; it must not be negative")


def choices_of(hint: typing.Any) -> tuple[typing.Any, ...]:
    """What a Literal type, or one that may be None, lets through."""
    arms = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return arms
    return tuple(choice for arm in arms for choice in ((None,) if arm is type(None) else typing.get_args(arm)))


def one_of(config: object, *names: str) -> None:
    """Raises: ValueError for a field that is none of the choices of its Literal type."""
    hints = typing.get_type_hints(type(config))
    for name in names:
        value, choices = getattr(config, name), choices_of(hints[name])
        known = " or ".join(repr(choice) for choice in choices)
        require(value in choices, f"{type(config).__name__}.{name} is {value!r}; it must be {known}")
