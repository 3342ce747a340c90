"""Lanes: runs in threads of their own, which wait for each other at every program, so that one call of it serves all."""

from __future__ import annotations

import contextvars
import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rlhf_jax.compiled import Kinds, Programs, name_of
from rlhf_jax.frozen import join_frozen, split_frozen
from rlhf_jax.lanes.numbers import with_numbers
from rlhf_jax.memory import held_on, memory_of
from rlhf_jax.sharding import in_device_memory

T = TypeVar("T")
LANES = "lanes"  # the axis of devices that have lanes of their own


class TooLarge(RuntimeError):
    """A program that needs more memory for all lanes of a device than there is; so many of them may fit."""

    def __init__(self, why: str, fitting: int) -> None:
        super().__init__(f"{why}: {fitting} at once may fit there")
        self.fitting = fitting


@dataclasses.dataclass
class _Program:
    """One program of all lanes: what each makes it of, and what was compiled, by the kind of arguments."""

    name: str
    step: bool  # whose state is donated
    made: dict[int, tuple[Callable[..., Callable], tuple[Any, ...]]] = dataclasses.field(default_factory=dict)
    compiled: dict[Any, Callable] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class _Request:
    number: int  # of the program
    kind: Any  # of the arguments
    args: tuple[Any, ...]
    result: Any = None
    error: BaseException | None = None
    done: bool = False


def run_lanes(
    works: Sequence[Callable[[Programs], T]],
    meshes: Sequence[Mesh],
    *,
    memory: int | None = None,
    shared: bool | None = None,
    before: Callable[[], None] = lambda: None,
) -> list[T | BaseException]:
    """What each work returns or raises, in order. The works are dealt to the meshes, of one device each, and share the programs there.

    With `shared` the devices share them too: they are compiled once for all, and called for all. Default: those of a CPU do; accelerators
    have each their own, and wait for no other.

    `memory` is how many bytes lanes and a program of theirs may need on a device; default: most of what there is and nobody else
    holds, of which devices of a CPU have each a part.
    `before()` is called in a lane's thread before each of its programs, and may raise. Interrupted, all works end as interrupted, and when
    the last has, it raises what came.
    """
    meshes = meshes[: len(works)]
    if memory is None:
        first = meshes[0].devices.flat[0]
        memory = memory_of(first, len(meshes)) - held_on(first)
    if shared is None:
        shared = meshes[0].devices.flat[0].platform == "cpu"
    parts = [meshes] if shared else [[mesh] for mesh in meshes]
    teams = [Team(len(works[place :: len(parts)]), part, memory) for place, part in enumerate(parts)]
    outcomes: list[Any] = [None] * len(works)
    ended = [threading.Event() for _ in works]

    def follow(number: int) -> None:
        team, lane = teams[number % len(teams)], number // len(teams)
        try:
            # Where programs run whose arguments have no place yet, such as a key.
            with jax.default_device(team.device_of(lane)):
                outcomes[number] = works[number](LanePrograms(team, lane, before))
        except BaseException as error:
            outcomes[number] = error
        finally:
            team.leave(lane)
            ended[number].set()

    came: BaseException | None = None
    waiting = [
        threading.Thread(target=contextvars.copy_context().run, args=(follow, number), name=f"lane {number}")
        for number in range(len(works))
    ]
    try:
        for thread in waiting:
            thread.start()
    except BaseException as error:  # a signal, or more threads than there may be
        came = error
        for team in teams:
            team.stop()
        for thread, event in zip(waiting, ended, strict=True):
            if thread.ident is None:
                event.set()
    for event in ended:
        while not event.is_set():
            try:
                event.wait()
            except BaseException as error:  # a signal, which the main thread alone is told of
                came = came or error
                if isinstance(error, KeyboardInterrupt):
                    for team in teams:
                        team.stop()
    if came is not None:
        raise came
    return outcomes


class Team:
    """Lanes that share programs, and may need `memory` bytes on a device; lanes are dealt to the meshes, of one device each, in turn.

    A call of a program begins when all lanes that are running have asked for one; devices exchange nothing in it. Where lanes have come to
    different programs, those that are behind go first. Lanes that did not ask, or are done, are computed with the arguments of one that
    did, for nothing.
    """

    def __init__(self, count: int, meshes: Sequence[Mesh], memory: int) -> None:
        large = [mesh.size for mesh in meshes if mesh.size != 1]
        if large:
            raise ValueError(f"lanes share one device, and this mesh has {large[0]}")
        self.count, self.meshes, self.memory = count, meshes, memory
        self.turns = -(-count // len(meshes))  # lanes of a device
        self._before = held_on(self.device_of(0))  # by others
        self._devices = Mesh(np.array([mesh.devices.flat[0] for mesh in meshes]), (LANES,))
        self._programs: list[_Program] = []
        self._running = set(range(count))
        self._asked: dict[int, _Request] = {}
        self._changed = threading.Condition()
        self._stopped = False

    def mesh_of(self, lane: int) -> Mesh:
        """Where the lane's own arrays lie."""
        return self.meshes[lane % len(self.meshes)]

    def device_of(self, lane: int) -> Any:
        """The one device of that mesh."""
        return self.mesh_of(lane).devices.flat[0]

    def program(self, lane: int, number: int, name: str, make: Callable, configs: tuple, step: bool) -> None:
        """A lane's part of its program of this number. Raises: RuntimeError where that of another lane is another function."""
        with self._changed:
            if number == len(self._programs):
                self._programs.append(_Program(name, step))
            program = self._programs[number]
            if (program.name, program.step) != (name, step):
                raise RuntimeError(f"lanes do not go through the same programs: one has {program.name}, another {name}")
            program.made[lane] = (make, configs)

    def call(self, lane: int, number: int, kind: Any, args: tuple[Any, ...]) -> Any:
        """What the program gives this lane, when all that are running have asked for something."""
        request = _Request(number, kind, args)
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

    def leave(self, lane: int) -> None:
        """The lane asks for nothing any more."""
        with self._changed:
            self._running.discard(lane)
            self._asked.pop(lane, None)
            self._serve()

    def stop(self) -> None:
        """What lanes wait for, and whatever they ask for from now on, ends as interrupted. It waits for nothing itself."""
        self._stopped = True

        def wake() -> None:
            with self._changed:  # held while a program is compiled, or runs
                self._changed.notify_all()

        threading.Thread(target=wake, name="wake").start()

    def _serve(self) -> None:
        """Runs a program, if all running lanes wait for one: the first in the order of programs, for the most lanes."""
        if not self._asked or len(self._asked) < len(self._running) or self._stopped:
            return
        first = min(request.number for request in self._asked.values())
        kinds: dict[Any, list[int]] = {}
        for lane, request in sorted(self._asked.items()):
            if request.number == first:
                kinds.setdefault(request.kind, []).append(lane)
        kind, lanes = max(kinds.items(), key=lambda item: len(item[1]))
        requests = [self._asked.pop(lane) for lane in lanes]
        try:
            results = self._run(self._programs[first], kind, dict(zip(lanes, requests, strict=True)))
            for lane, request in zip(lanes, requests, strict=True):
                request.result = results[lane]
        except Exception as error:
            if "RESOURCE_EXHAUSTED" in str(error) and self.turns > 1:
                error = TooLarge(f"{self.turns} lanes of a device have run out of memory", self.turns // 2)
            for request in requests:
                request.error = error
        for request in requests:
            request.done = True
        self._changed.notify_all()

    def _run(self, program: _Program, kind: Any, requests: dict[int, _Request]) -> dict[int, Any]:
        """The results of the lanes that asked."""
        places, known = len(self.meshes), next(iter(requests.values())).args
        idle: dict[
            Any, tuple[Any, ...]
        ] = {}  # what lanes that did not ask are given beside their first argument, by device

        def given(lane: int) -> tuple[Any, ...]:
            device = self.device_of(lane)
            if lane in requests:
                return jax.device_put(requests[lane].args, device)
            if device not in idle:
                idle[device] = jax.device_put(known[1:], device)
            # What is donated must not be there twice.
            return (jax.device_put(known[0], device, may_alias=not program.step), *idle[device])

        turns = [[given(lane) for lane in range(first, first + places)] for first in range(0, self.count, places)]
        args = [jax.tree.map(self._on_all, *turn) for turn in turns]
        live, others = zip(*((arg[0], arg[1:]) for arg in args), strict=True)
        if kind not in program.compiled:
            program.compiled[kind] = self._compile(program, live, others)
        results = program.compiled[kind](live, others)

        def own(lane: int) -> Any:
            return jax.tree.map(lambda x: x.addressable_shards[lane % places].data, results[lane // places])

        return {lane: own(lane) for lane in requests}

    def _on_all(self, *leaves: jax.Array) -> jax.Array:
        """An array of all devices, of which each has its own."""
        # To JAX one that all have a copy of: programs here never ask a device for what another has.
        return jax.make_array_from_single_device_arrays(leaves[0].shape, NamedSharding(self._devices, P()), leaves)

    def _compile(self, program: _Program, live: Sequence[Any], others: Sequence[Any]) -> Callable:
        """(first argument of each lane, further ones of each lane) of a device -> results of each lane; for all devices."""
        places, turns = len(self.meshes), self.turns
        known = next(iter(program.made.values()))
        made = [program.made.get(lane, known) for lane in range(self.count)]  # of a lane that is gone any will do
        make, columns = made[0][0], list(zip(*(configs for _, configs in made), strict=True))

        def one(lane: jax.Array, args: tuple[Any, ...]) -> Any:
            out = make(*(with_numbers(column, lane) for column in columns))(*args)
            return jax.tree.map(_strong, out)

        def together(first: Sequence[Any], others: Sequence[Any]) -> list[Any]:
            each = [(a, *b) for a, b in zip(first, others, strict=True)]
            place = jax.lax.axis_index(LANES)
            if turns == 1:
                return [one(place, each[0])]
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
            out = jax.vmap(one)(jnp.arange(turns) * places + place, stacked)
            return [jax.tree.map(lambda x, turn=turn: x[turn], out) for turn in range(turns)]

        apart = jax.shard_map(together, mesh=self._devices, in_specs=P(), out_specs=P(), check_vma=False)
        jitted = jax.jit(apart, donate_argnums=(0,) if program.step else ())
        compiled = jitted.lower(live, others).compile()
        found = compiled.memory_analysis()
        if found is not None:
            # What lanes keep beside the arguments, such as models that wait for their turn, takes room too.
            held = max(held_on(self.device_of(0)) - self._before, found.argument_size_in_bytes)
            needed = held + found.output_size_in_bytes + found.temp_size_in_bytes - found.alias_size_in_bytes
            if needed > self.memory and turns > 1:
                gib = f"{needed / 2**30:.2f} GiB for {turns} lanes, and {self.memory / 2**30:.2f} GiB may be used"
                raise TooLarge(f"a program needs {gib}", max(turns * self.memory // needed, 1))
        return compiled


class LanePrograms(Programs):
    """The programs of one lane; `before()` is called before each."""

    def __init__(self, team: Team, lane: int, before: Callable[[], None]) -> None:
        super().__init__(team.mesh_of(lane))
        self._team, self._lane, self._before, self._made = team, lane, before, 0

    def step(self, make: Callable[..., Callable], *configs: Any, programs: int | None = 1) -> Callable:
        def on_live(*configs: Any) -> Callable:
            step = make(*configs)

            def apart(live: Any, frozen: Any, *args: Any) -> tuple[Any, Any]:
                state, metrics = step(join_frozen(live, frozen), *args)
                return split_frozen(state)[0], metrics

            return apart

        program = self._program(name_of(make), on_live, configs, True, programs)

        def call(state: Any, *args: Any) -> tuple[Any, Any]:
            live, frozen = split_frozen(state)
            live, metrics = program(live, frozen, *args)
            return join_frozen(live, frozen), metrics

        return call

    def function(
        self, make: Callable[..., Callable], *configs: Any, programs: int | None = None, rows: bool = False
    ) -> Callable:
        return self._program(name_of(make), make, configs, False, programs)

    @property
    def compiles_ahead(self) -> bool:
        return False  # a program is of all lanes, and made when they ask for it

    def maker(self, make: Callable[..., Callable], *configs: Any) -> Callable:
        return self._program(name_of(make), make, configs, False, None)

    def _program(self, name: str, make: Callable, configs: tuple, step: bool, programs: int | None) -> Callable:
        number, self._made = self._made, self._made + 1
        self._team.program(self._lane, number, name, make, configs, step)
        kinds, seen = Kinds(programs), set()

        def call(*args: Any) -> Any:
            self._before()
            args = in_device_memory(args)
            kind = kind_of(args)
            if kind not in seen:
                # A step's second are the frozen parts of its first, and no argument of the caller's.
                check_types(name, (args[0], *args[2:]) if step else args)
                seen.add(kind)
                kinds.note(args)
            return self._team.call(self._lane, number, kind, args)

        return call


def kind_of(args: Any) -> Any:
    """What a program is compiled for: structure, shapes and types."""
    leaves, tree = jax.tree.flatten(args)
    return tree, tuple((kind.shape, kind.dtype) for kind in map(jax.typeof, leaves))


def check_types(name: str, args: Any) -> None:
    """Raises: TypeError for a weakly typed argument, as numbers of Python are, which would give way to the types of others: not in lanes,
    where it is an array of all devices."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(args):
        kind = jax.typeof(leaf)
        if kind.weak_type:
            place = jax.tree_util.keystr(path, simple=True, separator="/")
            raise TypeError(
                f"{name}: of its arguments {place} is a number of Python, or made of such, and has no type of its own; lanes need one: "
                f"np.{kind.dtype}(...)"
            )


def _strong(x: Any) -> jax.Array:
    """x with the type that it has, where it would give way to others: so it can go in again."""
    x = jnp.asarray(x)
    return jax.lax.convert_element_type(x, x.dtype) if jnp.issubdtype(x.dtype, jnp.number) else x
