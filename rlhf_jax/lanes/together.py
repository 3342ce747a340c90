"""Lanes: runs in threads of their own, which wait for each other at every program, so that one call of it serves all."""

from __future__ import annotations

import contextvars
import dataclasses
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from rlhf_jax.compiled import Kinds, Programs
from rlhf_jax.frozen import join_frozen, split_frozen
from rlhf_jax.lanes.numbers import with_numbers
from rlhf_jax.sharding import in_device_memory

T = TypeVar("T")
SHARE = 0.8  # of a device's memory that programs may need


class TooLarge(RuntimeError):
    """A program that needs more memory for all lanes than there is; so many lanes would fit."""

    def __init__(self, needed: int, there: int, lanes: int) -> None:
        self.fitting = max(lanes * there // needed, 1)
        gib = f"{needed / 2**30:.2f} GiB for {lanes} lanes, and {there / 2**30:.2f} GiB may be used"
        super().__init__(f"a program needs {gib}: {self.fitting} at once would fit")


@dataclasses.dataclass
class _Program:
    """One program of all lanes: what each makes it of, and what was compiled, by the kind of arguments."""

    step: bool  # whose state is donated
    kinds: Kinds
    made: dict[int, tuple[Callable[..., Callable], tuple[Any, ...]]] = dataclasses.field(default_factory=dict)
    compiled: dict[Any, Callable] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class _Request:
    number: int  # of the program
    args: tuple[Any, ...]
    result: Any = None
    error: BaseException | None = None
    done: bool = False


class Lanes:
    """So many lanes on one device. `memory` is how many bytes a program may need there; default: most of what the device has.

    Where lanes have come to different programs, those that are behind go first; lanes that are done or have failed are left out.
    """

    def __init__(self, count: int, mesh: Mesh, memory: int | None = None) -> None:
        if mesh.size != 1:
            raise ValueError(f"lanes share one device, and this mesh has {mesh.size}")
        self.count, self.mesh = count, mesh
        self.memory = memory_of(mesh.devices.flat[0]) if memory is None else memory
        self._programs: list[_Program] = []
        self._running: set[int] = set()
        self._asked: dict[int, _Request] = {}
        self._changed = threading.Condition()
        self._stopped = False

    def run(self, works: Sequence[Callable[[Programs], T]]) -> list[T | BaseException]:
        """What each work returns or raises, in order. Interrupted, it lets all of them end as interrupted, and raises what came."""
        if len(works) != self.count:
            raise ValueError(f"{len(works)} works for {self.count} lanes")
        outcomes: list[Any] = [None] * self.count
        self._running = set(range(self.count))
        ended = [threading.Event() for _ in works]

        def follow(lane: int) -> None:
            try:
                outcomes[lane] = works[lane](LanePrograms(self, lane))
            except BaseException as error:
                outcomes[lane] = error
            finally:
                self._leave(lane)
                ended[lane].set()

        threads = [
            threading.Thread(target=contextvars.copy_context().run, args=(follow, lane), name=f"lane {lane}")
            for lane in range(self.count)
        ]
        for thread in threads:
            thread.start()
        came: BaseException | None = None
        for lane in range(self.count):
            while not ended[lane].is_set():
                try:
                    ended[lane].wait()
                except BaseException as error:  # a signal, which the main thread alone is told of
                    came = error
                    if isinstance(error, KeyboardInterrupt):
                        self._stop()
        for thread in threads:
            thread.join()
        if came is not None:
            raise came
        return outcomes

    def program(self, lane: int, number: int, make: Callable, configs: tuple, step: bool, programs: int | None) -> None:
        """A lane's part of its program of this number."""
        with self._changed:
            if number == len(self._programs):
                self._programs.append(_Program(step, Kinds(programs)))
            self._programs[number].made[lane] = (make, configs)

    def call(self, lane: int, number: int, args: tuple[Any, ...]) -> Any:
        """What the program gives this lane, when all that are running have asked for something."""
        request = _Request(number, args)
        with self._changed:
            self._asked[lane] = request
            self._serve()
            while not (request.done or self._stopped):
                self._changed.wait()
        if request.error is not None:
            raise request.error
        if not request.done:
            raise KeyboardInterrupt
        return request.result

    def _leave(self, lane: int) -> None:
        with self._changed:
            self._running.discard(lane)
            self._asked.pop(lane, None)
            self._serve()

    def _stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _serve(self) -> None:
        """Runs a program, if all running lanes wait for one: the first in the order of programs, for the most lanes."""
        if not self._asked or len(self._asked) < len(self._running) or self._stopped:
            return
        first = min(request.number for request in self._asked.values())
        kinds: dict[Any, list[int]] = {}
        for lane, request in sorted(self._asked.items()):
            if request.number == first:
                kinds.setdefault(kind_of(request.args), []).append(lane)
        kind, lanes = max(kinds.items(), key=lambda item: len(item[1]))
        requests = [self._asked.pop(lane) for lane in lanes]
        try:
            results = self._run(self._programs[first], kind, dict(zip(lanes, requests, strict=True)))
            for lane, request in zip(lanes, requests, strict=True):
                request.result = results[lane]
        except Exception as error:
            for request in requests:
                request.error = error
        for request in requests:
            request.done = True
        self._changed.notify_all()

    def _run(self, program: _Program, kind: Any, requests: dict[int, _Request]) -> list[Any]:
        """The results of all lanes; those of lanes that did not ask mean nothing."""
        given = next(iter(requests.values())).args
        # What is donated must not be there twice.
        rest = [requests[lane].args if lane in requests else _copied(given) for lane in range(self.count)]
        if kind not in program.compiled:
            program.kinds.note(given)
            program.compiled[kind] = self._compile(program, rest)
        live, others = zip(*((args[0], args[1:]) for args in rest), strict=True)
        return program.compiled[kind](live, others)

    def _compile(self, program: _Program, args: Sequence[tuple[Any, ...]]) -> Callable:
        """(first argument of each lane, further ones of each lane) -> results of each lane, one program."""
        known = next(iter(program.made.values()))
        made = [program.made.get(lane, known) for lane in range(self.count)]  # of a lane that is gone any will do
        make, columns = made[0][0], list(zip(*(configs for _, configs in made), strict=True))

        def one(lane: jax.Array, args: tuple[Any, ...]) -> Any:
            return make(*(with_numbers(column, lane) for column in columns))(*args)

        def together(first: Sequence[Any], others: Sequence[Any]) -> list[Any]:
            each = [(a, *b) for a, b in zip(first, others, strict=True)]
            stacked = jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *each)
            out = jax.tree.map(_strong, jax.vmap(one)(jnp.arange(self.count), stacked))
            return [jax.tree.map(lambda x, lane=lane: x[lane], out) for lane in range(self.count)]

        live, others = zip(*((a[0], a[1:]) for a in args), strict=True)
        jitted = jax.jit(together, donate_argnums=(0,) if program.step else ())
        compiled = jitted.lower(live, others).compile()
        found = compiled.memory_analysis()
        if found is not None:
            needed = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
            needed -= found.alias_size_in_bytes
            if needed > self.memory and self.count > 1:
                raise TooLarge(needed, self.memory, self.count)
        return compiled


class LanePrograms(Programs):
    """The programs of one lane."""

    def __init__(self, lanes: Lanes, lane: int) -> None:
        super().__init__(lanes.mesh)
        self._lanes, self._lane, self._made = lanes, lane, 0

    def step(self, make: Callable[..., Callable], *configs: Any, programs: int | None = 1) -> Callable:
        def on_live(*configs: Any) -> Callable:
            step = make(*configs)

            def apart(live: Any, frozen: Any, *args: Any) -> tuple[Any, Any]:
                state, metrics = step(join_frozen(live, frozen), *args)
                return split_frozen(state)[0], metrics

            return apart

        program = self._program(on_live, configs, True, programs)

        def call(state: Any, *args: Any) -> tuple[Any, Any]:
            live, frozen = split_frozen(state)
            live, metrics = program(live, frozen, *args)
            return join_frozen(live, frozen), metrics

        return call

    def function(self, make: Callable[..., Callable], *configs: Any, programs: int | None = None) -> Callable:
        return self._program(make, configs, False, programs)

    def maker(self, make: Callable[..., Callable], *configs: Any) -> Callable:
        return self._program(make, configs, False, None)

    def _program(self, make: Callable, configs: tuple, step: bool, programs: int | None) -> Callable:
        number, self._made = self._made, self._made + 1
        self._lanes.program(self._lane, number, make, configs, step, programs)
        return lambda *args: self._lanes.call(self._lane, number, in_device_memory(args))


def kind_of(args: Any) -> Any:
    """What a program is compiled for: structure, shapes and types."""
    leaves, tree = jax.tree.flatten(args)
    return tree, tuple((np.shape(leaf), jax.typeof(leaf).dtype, getattr(leaf, "weak_type", False)) for leaf in leaves)


def memory_of(device: Any) -> int:
    """Bytes of a device that programs may need; of a CPU, of what is free now."""
    told = device.memory_stats() or {}
    if "bytes_limit" in told:
        return int(SHARE * told["bytes_limit"])
    return int(SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES"))


def _strong(x: jax.Array) -> jax.Array:
    """x with the type that it has, where it would give way to others: so it can go in again."""
    return jax.lax.convert_element_type(x, x.dtype) if jnp.issubdtype(x.dtype, jnp.number) else x


def _copied(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)
