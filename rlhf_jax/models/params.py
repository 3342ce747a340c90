"""Parameter trees: counting them, and carrying one model's trunk into another."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from rlhf_jax.types import Params


def count_parameters(params: Params) -> int:
    """How many numbers a parameter tree (or a tree of shapes) holds."""
    return sum(int(np.prod(leaf.shape, dtype=np.int64)) for leaf in jax.tree.leaves(params))


def in_dtype(params: Params, dtype: str) -> Params:
    """The parameters with the kernels of layers as a model that computes in this dtype reads them."""

    def cast(path, leaf):
        names = [getattr(entry, "key", None) for entry in path]
        return leaf.astype(dtype) if "layers" in names and names[-1] == "kernel" else leaf

    return jax.tree_util.tree_map_with_path(cast, params)


INPUTS = {"o": 2}
"""How many axes of a kernel of a layer, behind that of the layers, are summed over; of all others one."""


def by_columns(params: Params, tied: bool) -> Params:
    """The parameters with the matrices of layers and of the output as [columns, rows], which is how few rows go through them fastest."""

    def turned(node: Params, path: tuple[str, ...]) -> Params:
        if "kernel" in node and "layers" in path:
            kernel = node["kernel"]
            rows = math.prod(kernel.shape[1 : 1 + INPUTS.get(path[-1], 1)])
            rest = {name: part for name, part in node.items() if name != "kernel"}
            return {**rest, "columns": kernel.reshape(len(kernel), rows, -1).swapaxes(1, 2)}
        return {name: turned(part, (*path, name)) if isinstance(part, dict) else part for name, part in node.items()}

    made = turned(params, ())
    if tied:
        made["unembed"] = {"columns": params["tokens"]["embedding"]}
    elif "unembed" in params:
        made["unembed"] = {"columns": params["unembed"]["kernel"].T}
    return made


def layers_apart(params: Params) -> Params:
    """The parameters with each layer's by itself, in a tuple in place of the array that has them one behind the other."""

    def apart(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        return {name: layers_of(part) if name == "layers" else apart(part) for name, part in node.items()}

    return apart(params)


def layers_of(layers: Any) -> Any:
    """The parameters of each layer, of all of them one behind the other, or in a tuple already."""
    if isinstance(layers, tuple):
        return layers
    leaves, tree = jax.tree.flatten(layers)
    count = leaves[0].shape[0]
    # The gradient of a split is one concatenation; that of slices a sum of arrays as large as the whole.
    parts = zip(*(jax.lax.split(leaf, (1,) * count) for leaf in leaves), strict=True)
    return tuple(tree.unflatten([leaf[0] for leaf in part]) for part in parts)


SCORING = ("score", "pool", "classify")
"""Parts that make scores or classes of hidden states."""


def without_scores(params: Params) -> Params:
    """A model's parameters less the heads that give scores, values or classes: of a policy with a value head the policy."""
    return {name: part for name, part in params.items() if name not in SCORING}


def carry_over(source: Params, target: Params) -> Params:
    """`target` with every top-level part that `source` has too taken from it: a reward model starts as the policy's trunk.

    Raises: ValueError where a shared part has another shape; KeyError where nothing is shared.
    """
    shared = [name for name in target if name in source]
    if not shared:
        raise KeyError(f"nothing to carry over: {sorted(source)} and {sorted(target)} share no part")
    for name in shared:
        here, there = (jax.tree.map(np.shape, tree[name]) for tree in (target, source))
        if here != there:
            raise ValueError(f"{name!r} has shapes {there} in the source and {here} in the target")
    return {name: source[name] if name in shared else value for name, value in target.items()}
