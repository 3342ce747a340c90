"""Low-rank adapters: W x + (alpha / rank) B A x with W frozen. Source: Hu et al. 2021 (arXiv:2106.09685), section 4.1.

Parameters of an adapted model are {"lora": adapters, "base": Frozen(the model's own)}, with heads that give scores, which are trained
whole, beside them. `with_lora` makes a model that takes them; given a model's own parameters it is that model, so that a reference shares
the base.
"""

from __future__ import annotations

import dataclasses
import math
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax.config import LoRA
from rlhf_jax.frozen import Frozen
from rlhf_jax.models.api import Model
from rlhf_jax.models.params import INPUTS, SCORING, without_scores
from rlhf_jax.types import Params

LORA, BASE, LAYERS = "lora", "base", "layers"
FUNCTIONS = (
    "hidden",
    "unembed",
    "scalar",
    "logits",
    "logprobs",
    "token_stats",
    "token_logits",
    "token_scores",
    "values",
    "scores",
    "class_logits",
    "ready",
    "prefill",
    "decode",
)
Path = tuple[str, ...]


def targets_of(params: Params, config: LoRA) -> list[Path]:
    """The paths, such as (layers, attention, q), whose kernels get an adapter.

    A pattern matches the names below the layers, or the last of them: `attention/q` is also what attends to a prompt, and in both stacks of
    an encoder-decoder; `encoder/attention/q` and `cross/attention/q` are one of these.
    Raises: ValueError for a pattern that no kernel matches, naming those that there are.
    """
    paths = [
        tuple(key.key for key in path[:-1])
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
        if path[-1].key == "kernel"
    ]
    found = {"/".join(part for part in path if part != LAYERS): path for path in paths if LAYERS in path}

    def matches(name: str, pattern: str) -> bool:
        return fnmatchcase(name, pattern) or fnmatchcase(name, f"*/{pattern}")

    for pattern in config.targets:
        if not any(matches(name, pattern) for name in found):
            raise ValueError(f"lora.targets: no kernel matches {pattern!r}; there are {', '.join(sorted(found))}")
    return [found[name] for name in sorted(found) if any(matches(name, each) for each in config.targets)]


def adapted(params: Params, config: LoRA, key: jax.Array) -> Params:
    """A model's parameters with fresh adapters: A uniform in +- 1 / sqrt(inputs), B zero, so that the function is as before."""
    adapters: Params = {}
    for path in targets_of(params, config):
        kernel = _at(params, path)["kernel"]
        count = INPUTS.get(path[-1], 1)
        layers, inputs, outputs = kernel.shape[0], kernel.shape[1 : 1 + count], kernel.shape[1 + count :]
        bound = 1 / math.sqrt(math.prod(inputs))
        key, own = jax.random.split(key)
        a = jax.random.uniform(own, (layers, *inputs, config.rank), minval=-bound, maxval=bound)
        adapters = _with(adapters, path, {"lora_a": a, "lora_b": jnp.zeros((layers, config.rank, *outputs))})
    return {LORA: adapters, BASE: Frozen(without_scores(params)), **_heads(params)}


def with_lora(model: Model, config: LoRA) -> Model:
    """The model as a function of adapted parameters, or of its own."""

    def taking(function: Any) -> Any:
        return lambda params, *args, **options: function(joined(params, config), *args, **options)

    changed = {name: taking(getattr(model, name)) for name in FUNCTIONS}

    def init(key: jax.Array) -> Params:
        own, adapters = jax.random.split(key)
        return adapted(model.init(own), config, adapters)

    grouped = None if model.grouped is None else lambda group: with_lora(model.in_groups(*group), config)
    return dataclasses.replace(model, init=init, grouped=grouped, **changed)


def joined(params: Params, config: LoRA) -> Params:
    """The tree that `Project` reads: each adapter beside its kernel, its scale on B. A model's own parameters come out as they are."""
    if LORA not in params:
        return params

    def beside(adapter: Params) -> Params:
        if "lora_b" in adapter:
            return {**adapter, "lora_b": adapter["lora_b"] * (config.alpha / config.rank)}
        return {name: beside(part) for name, part in adapter.items()}

    base = params[BASE].tree
    return {**_with(base, (), beside(params[LORA])), **_heads(params)}


def merged(params: Params, config: LoRA) -> Params:
    """A model's own parameters that do what the adapted ones do: W + (alpha / rank) A B. Its own come out as they are."""

    def plain(node: Params) -> Params:
        if "lora_a" in node:
            product = jax.vmap(lambda a, b: jnp.tensordot(a, b, axes=1))(node["lora_a"], node["lora_b"])
            rest = {name: part for name, part in node.items() if not name.startswith(LORA)}
            return {**rest, "kernel": node["kernel"] + product.astype(node["kernel"].dtype)}
        return {name: plain(part) if isinstance(part, dict) else part for name, part in node.items()}

    return plain(joined(params, config)) if LORA in params else params


def _heads(params: Params) -> Params:
    return {name: params[name] for name in SCORING if name in params}


def _at(tree: Params, path: Path) -> Params:
    for name in path:
        tree = tree[name]
    return tree


def _with(tree: Params, path: Path, entries: Params) -> Params:
    """The tree with these entries at the path, merged with what is there."""
    if path:
        return {**tree, path[0]: _with(tree.get(path[0], {}), path[1:], entries)}
    merged = {name: _with(tree[name], (), part) for name, part in entries.items() if isinstance(tree.get(name), dict)}
    return {**tree, **entries, **merged}
