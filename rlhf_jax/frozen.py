"""Parameters that training leaves as they are, marked in the tree of those that it changes.

A loss sees the whole tree. Gradients, moments, averages, donation and checkpoints see what is left without the frozen parts, so that these
are there once, shared with whoever else holds them.
"""

from __future__ import annotations

from typing import Any, TypeVar

import jax

from rlhf_jax.types import pytree

Tree = TypeVar("Tree")


@pytree
class Frozen:
    """A part of a tree that stays: no gradient, no moments, no copy. None marks where one was taken out."""

    tree: Any


def _is_frozen(node: Any) -> bool:
    return isinstance(node, Frozen)


def split_frozen(tree: Tree) -> tuple[Tree, list[Any]]:
    """(the tree with empty marks for its frozen parts, these parts in order)."""
    parts = [node.tree for node in jax.tree.leaves(tree, is_leaf=_is_frozen) if _is_frozen(node)]
    return jax.tree.map(lambda node: Frozen(None) if _is_frozen(node) else node, tree, is_leaf=_is_frozen), parts


def join_frozen(tree: Tree, parts: list[Any]) -> Tree:
    """The inverse of `split_frozen`. Raises: ValueError where there are not as many marks as parts."""
    marks = sum(_is_frozen(node) for node in jax.tree.leaves(tree, is_leaf=_is_frozen))
    if marks != len(parts):
        raise ValueError(f"{len(parts)} frozen parts for a tree with {marks} marks")
    rest = iter(parts)
    return jax.tree.map(lambda node: Frozen(next(rest)) if _is_frozen(node) else node, tree, is_leaf=_is_frozen)
