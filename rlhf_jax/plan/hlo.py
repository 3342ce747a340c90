"""What a compiled program does, read from its HLO: collectives and traffic of memory, loops counted as often as they run.

XLA's own cost analysis counts the body of a loop once, and our layers are a loop.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from functools import cached_property

BYTES = {
    "pred": 1,
    "bf16": 2,
    "f16": 2,
    "f32": 4,
    "f64": 8,
    "c64": 8,
    "token": 0,
}  # others have their bits in their names
ARRAY = re.compile(r"\b(pred|token|bf16|c64|[sufe]\d+(?:e\d+m\d+\w*)?)\[([\d,]*)\](?:\{[^}]*?(S\(\d+\))?\})?")
HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
KERNEL = 'custom_call_target="tpu_custom_call"'
FREE = (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all"),
    *("partition-id", "replica-id", "iota"),
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction by which chips exchange data, as often as a run of the program comes to it."""

    kind: str  # as in COLLECTIVES
    bytes: int  # on each chip, once: of what comes out; of a reduce-scatter of what goes in
    group: int  # chips that exchange with each other
    times: int
    where: str  # the operation of ours that it came from

    @property
    def moved(self) -> float:
        """Bytes that a chip receives in all, by the best of the usual algorithms (rings)."""
        share = (self.group - 1) / self.group
        return self.times * self.bytes * {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    shape: str
    op: str
    rest: str  # operands and attributes

    @property
    def operands(self) -> list[str]:
        """Names of the operands."""
        depth, end = 1, len(self.rest)
        for place, letter in enumerate(self.rest):
            depth += (letter == "(") - (letter == ")")
            if not depth:
                end = place
                break
        return re.findall(r"%([\w.\-]+)", self.rest[:end])

    def called(self, what: str) -> str | None:
        """The computation that an attribute names."""
        found = re.search(rf"\b{what}=%?([\w.\-]+)", self.rest)
        return found[1] if found else None


class Program:
    """A compiled program, of the text that `jax.stages.Compiled.as_text` gives."""

    def __init__(self, text: str):
        self._computations: dict[str, dict[str, Instruction]] = {}
        self._entry = ""
        current: dict[str, Instruction] = {}
        for line in text.splitlines():
            if header := HEADER.match(line):
                current = self._computations.setdefault(header[2], {})
                self._entry = header[2] if header[1] else self._entry
            elif found := INSTRUCTION.match(line):
                current[found[1]] = Instruction(*found.groups())
        if not self._entry:
            raise ValueError("this is no text of a compiled program: it has no ENTRY")

    @cached_property
    def collectives(self) -> tuple[Collective, ...]:
        """Every collective, in no order.

        A TPU's program has pieces of one in several places, some of them in loops of others that it goes on beside: they have one channel,
        and count once, as often as the piece that runs least often.
        """
        found: dict[str, Collective] = {}
        for channel, each in self._collectives():
            if channel not in found or each.times < found[channel].times:
                found[channel] = each
        return tuple(found.values())

    @cached_property
    def traffic(self) -> int:
        """Bytes that a chip reads from its main memory and writes to it: operands and results of all that is not fused away.

        Of a fusion that reads or writes a slice of an array, the slice. What the compiler keeps in faster memory, S(1) and so on, is free.
        """
        return self._traffic(self._entry)

    @property
    def instructions(self) -> int:
        """How many instructions the text has, each once."""
        return sum(map(len, self._computations.values()))

    @cached_property
    def kernels(self) -> tuple[str, ...]:
        """Names of the kernels for TPUs that were written by hand (Pallas)."""
        found = {
            re.sub(r"[.\d]+$", "", each.name)
            for computation in self._computations.values()
            for each in computation.values()
            if each.op == "custom-call" and KERNEL in each.rest
        }
        return tuple(sorted(found))

    def _run(self, name: str, times: int) -> Iterator[tuple[str, Instruction, int]]:
        """(computation, instruction, how often) of all that runs by itself, rather than as part of a fusion."""
        for each in self._computations[name].values():
            yield name, each, times
            if each.op == "while":
                body, condition = each.called("body"), each.called("condition")
                assert body is not None and condition is not None, "a loop has both"
                yield from self._run(body, times * self._trips(each, condition))
            elif each.op in ("call", "conditional", "async-start"):
                called = re.findall(r"(?:to_apply|calls|\w+_computation)=%?([\w.\-]+)", each.rest)
                several = re.search(r"branch_computations=\{([^}]*)\}", each.rest)
                called += re.findall(r"%([\w.\-]+)", several[1]) if several else []
                # One branch runs: the one that touches most memory, such as an update, rather than leaving all as it is.
                for computation in [max(called, key=self._traffic)] if each.op == "conditional" else called:
                    yield from self._run(computation, times)

    def _traffic(self, name: str) -> int:
        return sum(times * self._touched(inside, each) for inside, each, times in self._run(name, 1))

    def _trips(self, loop: Instruction, condition: str) -> int:
        """How often a loop runs: as the compiler has noted, else up to the constant that its counter is compared with."""
        if known := re.search(r"known_trip_count[^\d]*(\d+)", loop.rest):
            return int(known[1])
        numbers = [
            int(found[1])
            for inside in (
                condition,
                *filter(None, (each.called("calls") for each in self._computations[condition].values())),
            )
            for each in self._computations[inside].values()
            if each.op == "constant" and (found := re.match(r"(\d+)\)", each.rest))
        ]
        return max(numbers, default=1)

    def _collectives(self) -> Iterator[tuple[str, Collective]]:
        for name, each, count in self._run(self._entry, 1):
            inside = [each]
            if each.op == "fusion" and (called := each.called("calls")) is not None:
                inside = list(self._deep(called))
            for one in inside:
                kind = one.op.removesuffix("-start")
                if kind not in COLLECTIVES:
                    continue
                channel = re.search(r"channel_id=(\d+)", one.rest)
                yield channel[1] if channel else f"{name}/{one.name}", _collective(one, kind, count)

    def _deep(self, name: str) -> Iterator[Instruction]:
        for each in self._computations[name].values():
            yield each
            if each.op == "fusion" and (called := each.called("calls")) is not None:
                yield from self._deep(called)

    def _touched(self, name: str, each: Instruction) -> int:
        """Bytes of main memory that an instruction reads and writes."""
        if each.op in FREE or each.op.endswith("-done"):
            return 0
        computation = self._computations[name]
        sizes = [
            _in_main_memory(computation[operand].shape) if operand in computation else 0 for operand in each.operands
        ]
        if each.op.endswith("-start"):
            return _moved_by(each, sum(sizes))
        written = _in_main_memory(each.shape)
        if each.op == "dynamic-slice" or each.op == "gather":
            return 2 * written
        if each.op == "dynamic-update-slice":
            return 2 * sizes[1]
        if each.op == "fusion" and (called := each.called("calls")) is not None:
            carried = self._carried(called)
            if carried:
                shapes = [computation[operand].shape if operand in computation else "" for operand in each.operands]
                sizes = [0 if carried & {*_kinds(shape)} else size for shape, size in zip(shapes, sizes, strict=True)]
                written = sum(
                    _bytes(*shape) for shape in _shapes(each.shape) if not shape[2] and shape[:2] not in carried
                )
            return self._fused(called, sizes, written)
        return sum(sizes) + written

    def _carried(self, name: str) -> set[tuple[str, str]]:
        """What a fusion takes in and hands on for a collective that goes on beside it, as (kind, dimensions)."""
        found: set[tuple[str, str]] = set()
        for each in self._deep(name):
            if each.op.removesuffix("-start") in COLLECTIVES:
                inside = next(one for one in self._computations.values() if one.get(each.name) is each)
                found.update(_kinds(each.shape), *(_kinds(inside[operand].shape) for operand in each.operands))
        return found

    def _fused(self, name: str, sizes: list[int], written: int) -> int:
        total = 0
        for each in self._computations[name].values():
            if each.op != "parameter":
                continue
            number = int(each.rest.partition(")")[0])
            size = sizes[number] if number < len(sizes) else 0
            pieces = self._pieces(name, each.name) if size else None
            if pieces is None:
                total += size
                continue
            read, updated = pieces
            total += min(read, size)
            if updated:  # in place, as the root: what is written is the slices
                written = max(written - size, 0) + updated
        return total + written

    def _pieces(self, name: str, parameter: str) -> tuple[int, int] | None:
        """Bytes of the slices that a fusion reads of a parameter, and of those that it writes into it; None where it touches all of it.

        A fusion inside of it, such as what makes an operand of a matrix product, touches what its own instructions do.
        """
        inside, read, updated = self._computations[name], 0, 0
        readers = list(_readers(inside, parameter))
        for under, each in readers:
            if each.op in ("dynamic-slice", "gather"):
                read += _size(each.shape)
            elif each.op == "dynamic-update-slice" and each.operands[0] == under:
                updated += _size(inside[each.operands[1]].shape)
            elif each.op == "fusion" and (called := each.called("calls")) is not None:
                for number in (number for number, operand in enumerate(each.operands) if operand == under):
                    pieces = self._pieces(called, self._parameter(called, number))
                    if pieces is None:
                        return None
                    read, updated = read + pieces[0], updated + pieces[1]
            else:
                return None
        return (read, updated) if readers else None

    def _parameter(self, name: str, number: int) -> str:
        """The name of a computation's parameter of that number."""
        return next(
            each.name
            for each in self._computations[name].values()
            if each.op == "parameter" and each.rest.startswith(f"{number})")
        )


def _readers(inside: dict[str, Instruction], name: str) -> Iterator[tuple[str, Instruction]]:
    """(under which name, instruction) of what reads a value, or the same value in another shape."""
    for each in inside.values():
        if name in each.operands:
            if each.op == "bitcast":
                yield from _readers(inside, each.name)
            else:
                yield name, each


def _moved_by(each: Instruction, read: int) -> int:
    """Bytes of main memory that an asynchronous copy, slice or collective reads and writes; its result names what goes in as well."""
    shapes = _shapes(each.shape)
    made = shapes[0] if each.op == "copy-start" else shapes[1] if len(shapes) > 1 else shapes[0]
    size = _bytes(*made)
    return min(read, size) + (0 if made[2] else size)


def _collective(each: Instruction, kind: str, times: int) -> Collective:
    shapes = _shapes(each.shape)
    if each.op.endswith("-start") and len(shapes) > 1:  # what goes in, what comes out, and flags
        shapes = shapes[1:2]
    size, group = sum(_bytes(*shape) for shape in shapes), _group(each.rest)
    name = re.search(r'op_name="([^"]*)"', each.rest)
    return Collective(kind, size * group if kind == "reduce-scatter" else size, group, times, name[1] if name else "")


def _group(rest: str) -> int:
    """How many chips exchange, by whichever of the ways in which HLO writes groups."""
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found[2]) if axis in sizes)
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(found[1])
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return found[1].count(",") + 1
    return 2


def _shapes(text: str) -> list[tuple[str, str, str]]:
    return [(found[1], found[2], found[3] or "") for found in ARRAY.finditer(text)]


def _kinds(text: str) -> list[tuple[str, str]]:
    return [shape[:2] for shape in _shapes(text)]


def _bytes(kind: str, dimensions: str, space: str = "") -> int:
    width = BYTES[kind] if kind in BYTES else max(int(re.findall(r"\d+", kind)[0]) / 8, 0.5)
    return int(width * math.prod(int(size) for size in dimensions.split(",") if size))


def _size(text: str) -> int:
    return sum(_bytes(*shape) for shape in _shapes(text))


def _in_main_memory(text: str) -> int:
    return sum(_bytes(*shape) for shape in _shapes(text) if not shape[2])
