"""Numbers of which every lane has its own, in place of those of a config, so that one program serves all lanes."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

T = TypeVar("T")


class Decides(ValueError):
    """A number by which a program is built, and on which lanes differ: they cannot share the program."""

    def __init__(self, names: Sequence[str], values: Sequence[Any]) -> None:
        said = " and ".join(names)
        super().__init__(f"{said} decides what is compiled, and lanes have {', '.join(map(str, values))}")
        self.names = tuple(names)


@jax.tree_util.register_pytree_node_class
class Number:
    """One number for each lane, in a program that is traced once for all of them.

    With numbers of Python it stays one, computed on the host like theirs; with arrays it is an array, the lane's own number. What Python
    has to know of it, such as whether it is above 0, it says where all lanes agree. Raises: Decides where they do not.
    """

    def __init__(self, names: Sequence[str], values: Sequence[float], lane: jax.Array) -> None:
        self.names, self.values, self.lane = tuple(names), tuple(values), lane

    def __jax_array__(self) -> jax.Array:
        """The lane's number, as weakly typed as those of Python. By selections: a table would give it a type of its own."""

        def choose(other: Any, numbered: tuple[int, float]) -> Any:
            return jnp.where(self.lane == numbered[0], numbered[1], other)

        return jnp.asarray(reduce(choose, list(enumerate(self.values))[1:], self.values[0]))

    def tree_flatten(self) -> tuple[tuple[jax.Array], None]:
        """An argument of a function under jit becomes an array there, as one of Python's numbers does."""
        return (self.__jax_array__(),), None

    @classmethod
    def tree_unflatten(cls, told: None, children: tuple[jax.Array]) -> Any:
        return children[0]

    def agreed(self, of: Callable[[float], T]) -> T:
        """What `of` says of every lane's number. Raises: Decides where that is not the same."""
        said = {of(value) for value in self.values}
        if len(said) > 1:
            raise Decides(self.names, self.values)
        return said.pop()

    def __bool__(self) -> bool:
        return self.agreed(bool)

    def __float__(self) -> float:
        return self.agreed(float)

    def __int__(self) -> int:
        return self.agreed(int)

    def __hash__(self) -> int:
        return self.agreed(hash)

    def __repr__(self) -> str:
        return f"{'+'.join(self.names)}={'|'.join(map(str, self.values))}"

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise Decides(self.names, self.values)  # numpy would take it for the number of all lanes


def _names(*numbers: Number) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for number in numbers for name in number.names))


def _computed(function: Callable[[Any, Any], Any], turned: bool = False) -> Callable[[Number, Any], Any]:
    """A method that gives `function(self, other)`, or turned around."""

    def method(self: Number, other: Any) -> Any:
        def of(mine: Any, theirs: Any) -> Any:
            return function(theirs, mine) if turned else function(mine, theirs)

        if isinstance(other, Number):
            return Number(_names(self, other), list(map(of, self.values, other.values)), self.lane)
        if isinstance(other, int | float):
            return Number(self.names, [of(value, other) for value in self.values], self.lane)
        return of(self.__jax_array__(), other)

    return method


def _compared(function: Callable[[Any, Any], Any]) -> Callable[[Number, Any], Any]:
    """A method that gives `function(self, other)`: of Python's numbers what all lanes agree on."""

    def method(self: Number, other: Any) -> Any:
        if isinstance(other, Number):
            return bool(Number(_names(self, other), list(map(function, self.values, other.values)), self.lane))
        if isinstance(other, int | float | str | tuple) or other is None:
            return self.agreed(lambda value: function(value, other))
        return function(self.__jax_array__(), other)

    return method


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
    setattr(Number, f"__{_name}__", _computed(getattr(operator, _name)))
    setattr(Number, f"__r{_name}__", _computed(getattr(operator, _name), turned=True))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Number, f"__{_name}__", _compared(getattr(operator, _name)))
for _name in ("neg", "pos", "abs"):
    _unary = getattr(operator, _name)
    setattr(Number, f"__{_name}__", lambda self, f=_unary: Number(self.names, list(map(f, self.values)), self.lane))


def with_numbers(configs: Sequence[T], lane: jax.Array, path: str = "") -> T:
    """One config for all lanes: what they agree on as it is, and a Number of each float on which they do not.

    Not checked again: each was, by itself. Raises: Decides where they differ in anything else.
    """
    first: Any = configs[0]
    if not dataclasses.is_dataclass(first) or isinstance(first, type):
        if all(type(config) is type(first) and config == first for config in configs):
            return first  # pyright: ignore[reportReturnType]
        if all(type(config) is float for config in configs):
            numbers: Any = configs
            return Number((path,), numbers, lane)  # pyright: ignore[reportReturnType]
        raise Decides((path,), configs)
    if any(type(config) is not type(first) for config in configs):
        raise Decides((path,), configs)
    merged: Any = object.__new__(type(first))
    for field in dataclasses.fields(first):
        values = [getattr(config, field.name) for config in configs]
        inner = f"{path}.{field.name}" if path else field.name
        object.__setattr__(merged, field.name, with_numbers(values, lane, inner))
    return merged
