"""Programs on a mesh: the one `jit` of training, which gives the state's memory back, and a guard against compiling again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rlhf_jax.frozen import join_frozen, split_frozen
from rlhf_jax.mesh import compiler_options
from rlhf_jax.sharding import (
    batch_shapes,
    batch_shardings,
    in_device_memory,
    initialise,
    place,
    shapes_in_device_memory,
    tree_shardings,
)


@dataclasses.dataclass(frozen=True)
class Traced:
    """A program that is traced, and not compiled yet, with the shapes that it was traced for."""

    program: Any  # jax.stages.Traced
    args: Any

    @property
    def jaxpr(self) -> Any:
        """The arithmetic, of whole arrays."""
        return self.program.jaxpr

    @property
    def out_shapes(self) -> Any:
        """What comes out, as shapes."""
        return self.program.out_info

    @property
    def argument_bytes(self) -> int:
        """Bytes of the arguments on one device."""
        return sum(map(_bytes_on_a_device, jax.tree.leaves(self.args)))

    def lower(self):
        """The program as it is compiled for its devices."""
        return self.program.lower()


def _bytes_on_a_device(leaf: Any) -> int:
    sharding = getattr(leaf, "sharding", None)
    shape = np.shape(leaf) if sharding is None else sharding.shard_shape(np.shape(leaf))
    # Keys have a type of their own: two words.
    width = 8 if jnp.issubdtype(leaf.dtype, jax.dtypes.extended) else np.dtype(leaf.dtype).itemsize
    return int(np.prod(shape, dtype=np.int64)) * width


def name_of(function: Callable) -> str:
    """What a function is called, with its module, in whatever partials it is wrapped."""
    while isinstance(function, partial):
        function = function.func if function.func is not partial else function.args[0]
    return f"{function.__module__}.{function.__qualname__}"


class Recompiled(RuntimeError):
    """A program that was compiled again, for arguments of another shape, type or place than before."""


class Kinds:
    """The kinds of arguments that a program was compiled for, of which `allowed` are expected; None: any number."""

    def __init__(self, allowed: int | None) -> None:
        self._allowed, self._seen = allowed, []

    def note(self, args: Any) -> None:
        """Remembers arguments that it is compiled for. Raises: Recompiled, naming what changed, where there are too many kinds."""
        kind = _kind(args)
        self._seen.append(kind)
        if self._allowed is None or len(self._seen) <= self._allowed:
            return
        nearest = min(self._seen[:-1], key=lambda other: len(_changes(other, kind)))
        changed = _changes(nearest, kind) or ["what JAX is set to, as the arguments are of the same kind"]
        more = f"; and {len(changed) - 4} more" if len(changed) > 4 else ""
        raise Recompiled(
            f"compiled for {len(self._seen)} kinds of arguments, and {self._allowed} expected: {'; '.join(changed[:4])}{more}"
        )


@dataclasses.dataclass
class _Early:
    """A program that was compiled before it was called."""

    program: Future
    called: bool = False


class Compiled:
    """A pure function under jit on a mesh. `trace`, `lower` and `ahead` need shapes alone.

    `programs` is for how many kinds of arguments it may be compiled, such as batches of several lengths; None: for any number. With `rows`
    what comes out has rows, which then lie where those of batches do.
    """

    def __init__(self, function: Callable, mesh: Mesh, programs: int | None = None, *, rows: bool = False):
        def laid_out(*args):
            result = function(*args)
            return jax.lax.with_sharding_constraint(result, batch_shardings(result, mesh))

        laid_out.__name__ = name_of(function).rpartition(".")[2]
        self._mesh, self._rows = mesh, rows
        self._jit: Any = jax.jit(laid_out if rows else function, compiler_options=compiler_options(mesh))
        self._guard(programs)

    def _guard(self, programs: int | None) -> None:
        self._kinds, self._called = None if programs is None else Kinds(programs), False
        self._early: dict[Any, _Early] = {}  # by the shapes that they take

    def __call__(self, *args):
        """What the function gives; arrays that wait in host memory come to the devices first. Raises: Recompiled, naming what changed."""
        args = in_device_memory(args)
        if _one_by_one():  # another run of it, which asks for nothing to be compiled once
            with jax.set_mesh(self._mesh):
                return self._jit(*args)
        found = self._called_early(args) if self._early else None
        if found is not None:
            return found
        before = self._jit._cache_size()  # which counts for all that have this function under jit
        with jax.set_mesh(self._mesh):
            result = self._jit(*args)
        if not self._called or self._jit._cache_size() > before:
            self._called = True
            self._note(args)
        return result

    def _called_early(self, args: Any) -> Any:
        """What a program gives that was compiled ahead for such arguments; None without one."""
        shapes = shapes_of(args)
        early = self._early.get(shapes)
        if early is None:
            return None
        program = early.program.result()
        try:
            result = program(*args)
        except (TypeError, ValueError):  # laid out otherwise than was foreseen, which it tells before it begins
            if not early.called:
                del self._early[shapes]
            return None
        if not early.called:
            early.called = True
            self._note(args)
        return result

    def _note(self, args: Any) -> None:
        if self._kinds is not None:
            self._kinds.note(args)

    def ahead(self, pool: Executor, *args) -> tuple[Any, Future]:
        """(the shapes of what comes out, those of rows with their places, and the program, which `pool` compiles).

        Calls with arguments of these shapes wait for it and take it.

        The arguments are as those of `trace`, and should lie where those of the calls will: else these have it compiled once more.
        """
        traced = self.trace(*shapes_in_device_memory(args))
        program = pool.submit(lambda: traced.lower().compile())
        self._early[shapes_of(traced.args)] = _Early(program)
        return batch_shapes(traced.out_shapes, self._mesh) if self._rows else traced.out_shapes, program

    def trace(self, *args) -> Traced:
        """The traced program for these arguments, which may be ShapeDtypeStructs with shardings."""
        with jax.set_mesh(self._mesh):
            return Traced(self._jit.trace(*args), args)

    def lower(self, *args):
        """The lowered program for these arguments, as `trace`."""
        return self.trace(*args).lower()


class CompiledStep(Compiled):
    """A step `(state, *args) -> (state, metrics)` whose state is donated, but for its frozen parts, which come back as they went in.

    The new state keeps the layout of the old one: what comes out can go in again.
    """

    def __init__(self, step: Callable, mesh: Mesh, programs: int | None = 1):
        def laid_out(live, frozen, *args):
            new_state, metrics = step(join_frozen(live, frozen), *args)
            new_live, _ = split_frozen(new_state)
            return jax.lax.with_sharding_constraint(new_live, tree_shardings(new_live, mesh)), metrics

        self._mesh, self._rows = mesh, False
        self._jit = jax.jit(laid_out, donate_argnums=(0,), compiler_options=compiler_options(mesh))
        # JAX looks for a NaN by taking the step again, operation by operation, for which the state must still be there.
        self._searched = jax.jit(laid_out, compiler_options=compiler_options(mesh))
        self._guard(programs)

    def __call__(self, state, *args):
        live, frozen = split_frozen(state)
        first = next(iter(jax.tree.leaves(live)), None)
        if isinstance(first, jax.Array) and not first.committed:
            # Laid out now, it is as it comes out, and the second step is not compiled for another kind of state.
            live = place(live, self._mesh)
        if _one_by_one():
            with jax.set_mesh(self._mesh):
                live, metrics = self._searched(live, *in_device_memory((frozen, *args)))
        else:
            live, metrics = super().__call__(live, frozen, *args)
        return join_frozen(live, frozen), metrics

    def trace(self, state, *args):
        return super().trace(*split_frozen(state), *args)


def _one_by_one() -> bool:
    """Whether JAX is to run programs operation by operation, or to look for the one that gave a NaN, which it does of jit alone."""
    settings: Any = jax.config
    return settings.jax_debug_nans or settings.jax_debug_infs or settings.jax_disable_jit


def shapes_of(args: Any) -> Any:
    """What tells arguments of one shape from those of another: structure, shapes and types."""
    leaves, tree = jax.tree.flatten(args)
    return tree, tuple((np.shape(leaf), getattr(leaf, "dtype", type(leaf))) for leaf in leaves)


def _kind(args: Any) -> dict[str, str]:
    """Of every argument the shape, type and place, by its path; an array whose memory was given away still tells them."""

    def told(leaf: Any) -> str:
        kind = f"{getattr(leaf, 'dtype', type(leaf).__name__)}{list(np.shape(leaf))}"
        if not isinstance(leaf, jax.Array):
            return f"{kind} of the host"
        # The type of a Python number gives way to others, and one that was put nowhere goes wherever others are.
        kind = f"weak {kind}" if getattr(leaf, "weak_type", False) else kind
        place = getattr(leaf.sharding, "spec", None)
        return f"{kind} as {place}" if leaf.committed else f"{kind} anywhere"

    leaves, _ = jax.tree_util.tree_flatten_with_path(args)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): told(leaf) for path, leaf in leaves}


def _changes(old: dict[str, str], new: dict[str, str]) -> list[str]:
    names = {**old, **new}
    return [f"{n}: {old.get(n, 'nothing')} -> {new.get(n, 'nothing')}" for n in names if old.get(n) != new.get(n)]


def compile_step(step: Callable, mesh: Mesh, programs: int | None = 1) -> Compiled:
    """A training step `(state, batch, ...) -> (state, metrics)` as one compiled program that reuses the state's memory.

    The new state is constrained to the layout of the old one, so that a step never moves parameters to other devices. A step that would
    be compiled for more than `programs` kinds of batches raises Recompiled.
    """
    return CompiledStep(step, mesh, programs)


def compile_function(function: Callable, mesh: Mesh, programs: int | None = None, *, rows: bool = False) -> Compiled:
    """A pure function of parameters and batches (scoring, generation) as one compiled program; nothing is donated.

    With `rows` what comes out has rows, which lie where those of batches do.
    """
    return Compiled(function, mesh, programs, rows=rows)


class Programs:
    """Compiles what a run needs, on its mesh.

    Each program is told as `make` and the configs whose numbers it is built of: `make(*configs)` is the pure function.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh

    def step(self, make: Callable[..., Callable], *configs: Any, programs: int | None = 1) -> Callable:
        """A training step, as `compile_step`."""
        return compile_step(make(*configs), self.mesh, programs)

    def function(
        self, make: Callable[..., Callable], *configs: Any, programs: int | None = None, rows: bool = False
    ) -> Callable:
        """A function of parameters and batches, as `compile_function`."""
        return compile_function(make(*configs), self.mesh, programs, rows=rows)

    @property
    def compiles_ahead(self) -> bool:
        """Whether what it gives can be compiled before it is called."""
        return not _one_by_one()

    def maker(self, make: Callable[..., Callable], *configs: Any) -> Callable:
        """A function that makes parameters or states, laid out on the mesh as these are."""
        made = make(*configs)
        return lambda *args: initialise(made, *in_device_memory(args), mesh=self.mesh)
