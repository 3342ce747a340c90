"""Where arrays live: the one table of logical axis -> mesh axis, and what follows from it."""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from rlhf_jax.mesh import compiler_options

HOST = "pinned_host"  # memory of a host from which its devices read by themselves

RULES: dict[str | None, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    # The width of a parameter; activations keep their width whole. Devices that share a text share parameters too.
    "embed": ("fsdp", "context"),
    "replicas": ("data",),  # rows, and widths, of embeddings on their way
    "shards": ("fsdp",),
    "heads": ("tensor",),
    "kv": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "layers": (),
    "head_dim": (),
    "length": ("context",),  # of activations, and of what attends; batches, keys and caches keep theirs whole
    None: (),
}

PARAMETERS: dict[str, tuple[str | None, ...]] = {
    "tokens/embedding": ("vocab", "embed"),
    "places/embedding": (None, "embed"),
    "types/embedding": (None, "embed"),
    "q/kernel": ("embed", "heads", "head_dim"),
    "k/kernel": ("embed", "kv", "head_dim"),
    "v/kernel": ("embed", "kv", "head_dim"),
    "o/kernel": ("heads", "head_dim", "embed"),
    "q/bias": ("heads", "head_dim"),
    "k/bias": ("kv", "head_dim"),
    "v/bias": ("kv", "head_dim"),
    "up/kernel": ("embed", "mlp"),
    "gate/kernel": ("embed", "mlp"),
    "down/kernel": ("mlp", "embed"),
    "up/bias": ("mlp",),
    "gate/bias": ("mlp",),
    "unembed/kernel": ("embed", "vocab"),
    "q/lora_a": ("embed", None),
    "k/lora_a": ("embed", None),
    "v/lora_a": ("embed", None),
    "o/lora_a": ("heads", "head_dim", None),
    "q/lora_b": (None, "heads", "head_dim"),
    "k/lora_b": (None, "kv", "head_dim"),
    "v/lora_b": (None, "kv", "head_dim"),
    "o/lora_b": (None, "embed"),
    "up/lora_a": ("embed", None),
    "gate/lora_a": ("embed", None),
    "down/lora_a": ("mlp", None),
    "up/lora_b": (None, "mlp"),
    "gate/lora_b": (None, "mlp"),
    "down/lora_b": (None, "embed"),
    "unembed/bias": ("vocab",),
    "pool/kernel": ("embed", None),
    "dense/kernel": ("embed", None),
}
"""Logical axes of a parameter by the last two names of its path; what is not listed (norms, small biases) is replicated."""


def spec_of(names: Sequence[str | None], shape: Sequence[int], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """The PartitionSpec of an array with these logical axes. A dimension that its mesh axes do not divide is replicated."""
    entries = [axes_of(name, size, mesh) or None for name, size in zip(names, shape, strict=True)]
    # Without what is not split at the end, as in the layouts that come out of a program, to which JAX holds those that go in.
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries)


def axes_of(name: str | None, size: int, mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    """The mesh axes that a dimension of this name and size is split over: none where they do not divide it."""
    split = split_axes(mesh)
    axes = tuple(axis for axis in RULES[name] if axis in split)
    return axes if size % math.prod(split[axis] for axis in axes) == 0 else ()


def split_axes(mesh: Mesh | AbstractMesh) -> dict[str, int]:
    """The axes with several devices, and how many; none where each device goes through a part of its own."""
    own = getattr(mesh, "manual_axes", ())
    return {axis: size for axis, size in mesh.shape.items() if size > 1 and axis not in own}


def pieces(name: str, size: int) -> int:
    """In how many pieces such a dimension lies on the ambient mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[axis] for axis in axes_of(name, size, mesh))


def whole_groups(rows: int, together: int) -> bool:
    """Whether on the ambient mesh every device has whole groups of so many of the rows, which stand side by side."""
    return rows % together == 0 and pieces("batch", rows) == pieces("batch", rows // together)


def alone(name: str, size: int) -> bool:
    """Whether the ambient mesh has devices along nothing else than this dimension."""
    split = split_axes(jax.sharding.get_abstract_mesh())
    return pieces(name, size) == math.prod(split.values())


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """x, with its logical axes laid on the ambient mesh (`jax.set_mesh`); x itself where there is none."""
    mesh = jax.sharding.get_abstract_mesh()
    if not split_axes(mesh):
        return x
    return jax.lax.with_sharding_constraint(x, spec_of(names, x.shape, mesh))


_whole: contextvars.ContextVar[bool] = contextvars.ContextVar("whole", default=False)


def in_pieces() -> bool:
    """Whether the ambient mesh has each parameter in pieces, over devices that have rows of their own (FSDP)."""
    split = split_axes(jax.sharding.get_abstract_mesh())
    return not _whole.get() and any(axis in split for axis in RULES["embed"])


@contextlib.contextmanager
def in_one_piece(params: Any) -> Iterator[Any]:
    """The parameters, each `gathered`, for what is traced while this is open."""
    whole = jax.tree.map(lambda leaf, names: gathered(leaf, *names), params, logical_axes(params))
    token = _whole.set(True)
    try:
        yield whole
    finally:
        _whole.reset(token)


def gathered(x: jax.Array, *names: str | None) -> jax.Array:
    """A parameter with these logical axes in one piece, as far as rows are what splits it; its gradient is in pieces again.

    Where XLA is left to choose, it goes through the pieces in turn, with a product of each: a ring whose every turn reads and writes all of
    the result, or of what the gradient is made from.
    """
    if not in_pieces():
        return x
    whole = [None if name == "embed" else name for name in names]

    @jax.custom_vjp
    def gather(x):
        return constrain(constrain(x, *names), *whole)

    gather.defvjp(lambda x: (gather(x), None), lambda _, gradient: (constrain(gradient, *names),))
    return gather(x)


def over_tokens(function: Callable[..., Any], weights: Any, *arrays: jax.Array) -> Any:
    """`function(weights, *arrays)`, of arrays [B, T, ...] whose tokens do not bear on each other, with the tokens of each device apart.

    What comes out is [B, T, ...] too. Those of the weights that it reads are gathered before it begins, as far as tokens are split, and
    their gradients are added up when it has ended. Without an ambient mesh, or where nothing divides, it is called as it is.
    """
    mesh = jax.sharding.get_abstract_mesh()
    own = [axes_of(name, size, mesh) for name, size in zip(("batch", "length"), arrays[0].shape, strict=False)]
    axes, tokens = (*own[0], *own[1]), PartitionSpec(*(part or None for part in own))
    if not axes:
        return function(weights, *arrays)
    leaves, tree = jax.tree.flatten(weights)
    traced = jax.make_jaxpr(function)(weights, *arrays).jaxpr
    inside = {id(variable) for equation in traced.eqns for variable in equation.invars}
    read = [number for number in range(len(leaves)) if id(traced.invars[number]) in inside]

    def apart(given: list[jax.Array], *pieces: jax.Array) -> Any:
        # From here on each device has its own, so that gradients are added up here, and not wherever the weights are used.
        own = (jax.lax.pcast(leaf, axes, to="varying") for leaf in given)
        told = dict(zip(read, own, strict=True))
        return function(tree.unflatten([told.get(number, leaf) for number, leaf in enumerate(leaves)]), *pieces)

    specs = ([PartitionSpec()] * len(read), *(tokens for _ in arrays))
    sharded = jax.shard_map(apart, in_specs=specs, out_specs=tokens, axis_names=set(axes))
    return sharded([jnp.asarray(leaves[number]) for number in read], *arrays)


def over_rows(
    function: Callable[..., Any], names: Callable[[int], Sequence[str | None]], *trees: Any, whole: Sequence[Any] = ()
) -> Any:
    """`function(*whole, *trees)` with the part of each device apart, where `names` gives the logical axes of arrays of so many dimensions;
    what is `whole` every device has all of.

    Rows that come out are of the same device as those that go in, and as many in all as the function would give for all rows at once.
    Without an ambient mesh, or on one device, it is called as it is.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not split_axes(mesh):
        return function(*whole, *trees)

    def specs(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: spec_of(names(leaf.ndim), leaf.shape, mesh), tree)

    out = specs(jax.eval_shape(function, *whole, *trees))
    everywhere = (PartitionSpec(),) * len(whole)
    apart = jax.shard_map(function, mesh=mesh, in_specs=(*everywhere, *specs(trees)), out_specs=out, check_vma=False)
    return apart(*whole, *trees)


def deal(batch: Any, parts: int, together: int = 1) -> Any:
    """[rows, ...] -> [parts, rows / parts, ...], rows in groups of so many that stay `together`, where devices have whole groups.

    Group g goes to part g % parts, so that every device keeps its own rows; scalars go to all.
    """

    def split(x):
        if x.ndim == 0:
            return jnp.broadcast_to(x, (parts,))
        size = together if whole_groups(x.shape[0] // parts, together) else 1
        dealt = x.reshape(x.shape[0] // parts // size, parts, size, *x.shape[1:]).swapaxes(0, 1)
        return dealt.reshape(parts, x.shape[0] // parts, *x.shape[1:])

    return jax.tree.map(split, batch)


def dealt_back(x: jax.Array, axis: int) -> jax.Array:
    """An array [parts, ...] of what `deal` has dealt row by row, with the rows, which stand along `axis` of each part, in one again."""
    x = jnp.moveaxis(x, 0, axis + 1)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def keys_of(path: Any) -> list[str]:
    """The names along the path of a leaf."""
    return [str(getattr(entry, "key", getattr(entry, "name", ""))) for entry in path]


def sides(keys: Sequence[str], ndim: int) -> tuple[int, int] | None:
    """Of a matrix (at which dimension its inputs begin, at which its outputs do); None of what is none: biases, norms.

    Heads and their dimensions are one side; in front of the inputs stand the layers. Of paths that PARAMETERS does not know, those of two
    dimensions, the layers' apart, are matrices.
    """
    inside = int("layers" in keys)
    names = PARAMETERS.get("/".join(keys[-2:]), (None, None) if ndim - inside == 2 else ())
    first = ndim - len(names)
    if len(names) < 2 or list(keys[-1:]) == ["bias"] or first not in (0, inside):
        return None
    return first, first + _inputs(names)


def _inputs(names: Sequence[str | None]) -> int:
    """How many of the dimensions of a matrix are of its inputs."""
    return 2 if names[1] == "head_dim" else 1


def logical_axes(tree: Any) -> Any:
    """For each leaf the names of its dimensions, by its path: works for parameters and for all that mirrors them.

    Adam's moments are like their parameters; `row` and `col` below a parameter (Adafactor) lack its outputs and its inputs.
    """

    def names_of(path, leaf) -> tuple[str | None, ...]:
        keys, ndim = keys_of(path), np.ndim(leaf)
        part = keys.pop() if keys and keys[-1] in ("row", "col") else None
        names = PARAMETERS.get("/".join(keys[-2:]), ()) if ndim else ()
        if part is not None and names:
            names = names[: _inputs(names)] if part == "row" else names[_inputs(names) :]
        if "layers" in keys and len(names) + 1 == ndim:
            names = ("layers", *names)
        return names if len(names) == ndim else (None,) * ndim

    return jax.tree_util.tree_map_with_path(names_of, tree)


def tree_shardings(tree: Any, mesh: Mesh) -> Any:
    """NamedShardings of a parameter tree or a whole training state, from the paths of its leaves."""
    return jax.tree.map(
        lambda leaf, names: NamedSharding(mesh, spec_of(names, np.shape(leaf), mesh)),
        tree,
        logical_axes(tree),
    )


def batch_shardings(tree: Any, mesh: Mesh, *, axis: int = 0) -> Any:
    """Rows, which stand along `axis`, split over data and fsdp where these divide them; scalars replicated."""

    def sharding(leaf: Any) -> NamedSharding:
        over = axes_of("batch", np.shape(leaf)[axis], mesh) if np.ndim(leaf) else ()
        return NamedSharding(mesh, PartitionSpec(*(None,) * axis, over) if over else PartitionSpec())

    return jax.tree.map(sharding, tree)


def batch_shapes(tree: Any, mesh: Mesh, *, axis: int = 0) -> Any:
    """The shapes of batches with the places of their rows, as `batch_shardings`."""
    places = batch_shardings(tree, mesh, axis=axis)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, places)


def place(tree: Any, mesh: Mesh) -> Any:
    """A state or parameter tree, moved to where it lives on this mesh."""
    return laid(tree, tree_shardings(tree, mesh))


def place_batch(tree: Any, mesh: Mesh, *, axis: int = 0) -> Any:
    """A batch of host arrays, its rows (along `axis`) dealt to the devices of this mesh."""
    return laid(tree, batch_shardings(tree, mesh, axis=axis))


def laid(tree: Any, shardings: Any) -> Any:
    """The arrays where these shardings say; what is of the host must be the same on all processes, each of which takes its part."""
    if all(sharding.is_fully_addressable for sharding in jax.tree.leaves(shardings)):
        return jax.device_put(tree, shardings)

    def lay(leaf: Any, sharding: NamedSharding) -> jax.Array:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(lay(jax.random.key_data(leaf), sharding), impl=jax.random.key_impl(leaf))
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(lay, tree, shardings)


def in_host_memory(tree: Any) -> Any:
    """The arrays where they are on the mesh, but in the memory of the hosts that the devices belong to."""
    return jax.device_put(tree, jax.tree.map(lambda leaf: leaf.sharding.with_memory_kind(HOST), tree))


def in_device_memory(tree: Any) -> Any:
    """The tree with its arrays that lie in the memory of hosts on their devices; all else as it is."""

    if not any(map(_waits, jax.tree.leaves(tree))):
        return tree

    def bring(leaf: Any) -> Any:
        return jax.device_put(leaf, leaf.sharding.with_memory_kind("device")) if _waits(leaf) else leaf

    return jax.tree.map(bring, tree)


def shapes_in_device_memory(tree: Any) -> Any:
    """The tree with the shapes of its arrays that lie in the memory of hosts, as `in_device_memory` would lay these; all else as it is."""

    def shape(leaf: Any) -> Any:
        if not _waits(leaf):
            return leaf
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding.with_memory_kind("device"))

    return jax.tree.map(shape, tree)


def _waits(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and leaf.sharding.memory_kind == HOST


def own_rows(mesh: Mesh, rows: int) -> np.ndarray | None:
    """Which rows of a batch lie on devices of this process, in order; None for all, where there is one process."""
    if not mesh.is_multi_process:
        return None
    sharding = batch_shardings(np.empty(rows), mesh)
    held = sharding.addressable_devices_indices_map((rows,)).values()
    return np.unique(np.concatenate([np.arange(rows)[index] for (index,) in held]))


def place_rows(part: Any, mesh: Mesh, own: np.ndarray | None, rows: int) -> Any:
    """The batch of so many rows of which each process has made its `own_rows`."""
    if own is None:
        return place_batch(part, mesh)

    def lay(leaf: np.ndarray, sharding: NamedSharding) -> jax.Array:
        def shard(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(rows)
            first = int(np.searchsorted(own, start))
            return leaf[first : first + stop - start]

        return jax.make_array_from_callback((rows, *leaf.shape[1:]), sharding, shard)

    return jax.tree.map(lay, part, batch_shardings(part, mesh))


def initialise(make: Callable[..., Any], *args: Any, mesh: Mesh) -> Any:
    """The parameters or the state that `make(*args)` gives, each device making only its own shard."""
    shapes = jax.eval_shape(make, *args)
    with jax.set_mesh(mesh):
        return jax.jit(make, out_shardings=tree_shardings(shapes, mesh), compiler_options=compiler_options(mesh))(*args)
