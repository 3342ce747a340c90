"""Accelerators as their makers publish them, and slices of them as topologies."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one accelerator can do at most."""

    name: str
    flops: float  # a second, dense, bfloat16
    memory: float  # bytes
    bandwidth: float  # bytes a second, of that memory
    link: float  # bytes a second, into a chip over one link, or over the switch
    axes: int  # of the torus that links make; 0: a switch
    wraps: int  # an axis of a multiple of so many chips is a ring, another one a line
    source: str  # links: Austin et al. 2025, How to Scale Your Model, "TPU specs"


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", 197e12, 16 * GIB, 819e9, 45e9, 2, 16, "https://cloud.google.com/tpu/docs/v5e"),
        Chip("v5p", 459e12, 95 * GIB, 2765e9, 90e9, 3, 4, "https://cloud.google.com/tpu/docs/v5p"),
        Chip("v6e", 918e12, 32 * GIB, 1638e9, 90e9, 2, 16, "https://cloud.google.com/tpu/docs/v6e"),
        Chip("h100", 989e12, 80e9, 3350e9, 450e9, 0, 0, "https://www.nvidia.com/en-us/data-center/h100/"),
        Chip("h200", 989e12, 141e9, 4800e9, 450e9, 0, 0, "https://www.nvidia.com/en-us/data-center/h200/"),
    )
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """So many chips, and how they are linked."""

    chip: Chip
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def compiles(self) -> bool:
        """Whether programs for it can be compiled where there is none: TPUs by libtpu."""
        return self.chip.axes > 0

    def bandwidth(self, group: int) -> float:
        """Bytes a second that a chip receives in a ring algorithm among so many of its neighbours.

        A group that is all chips uses every axis of a torus at once, a smaller one is taken to lie along one axis. A ring brings data from
        both sides; at the ends of a line they come from one. Source: Austin et al. 2025, How to Scale Your Model, "Sharded matrices".
        """
        sides = [2 if size % self.chip.wraps == 0 else 1 for size in self.shape if size > 1]
        if group >= self.chips:
            return self.chip.link * sum(sides)
        return self.chip.link * max(sides, default=1)

    def devices(self) -> Sequence[Any]:
        """Chips that programs can be compiled for. Raises: ValueError where libtpu is not there, or has no such slice."""
        if not self.compiles:
            raise ValueError(f"{self.name}: there is a compiler without the chip for TPUs alone")
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no server to ask what this machine is
        # It compiles only, and leaves a TPU to other processes.
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        from jax.experimental import topologies

        try:
            with _without_stderr():
                # A host has four chips, unless there are fewer.
                few: dict[str, Any] = {"chips_per_host_bounds": (*self.shape, 1, 1)[:3]} if self.chips < 4 else {}
                found = topologies.get_topology_desc(platform="tpu", topology_name=self.name, **few).devices
        except Exception as error:  # of JAX or of libtpu, of several kinds
            said = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{self.name} cannot be compiled for; is libtpu installed (pip install 'rlhf_jax[tpu]')? {said}"
            ) from error
        if len(found) != self.chips:
            raise ValueError(f"libtpu has {len(found)} devices for {self.name}, expected {self.chips}")
        return found


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """Keeps what libtpu misses on a machine without a TPU from the user; it writes to the file itself, not to Python's."""
    sys.stderr.flush()
    with open(os.devnull, "w") as nowhere:
        kept = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def parse_topology(text: str) -> Topology:
    """The topology "CHIP:AxBxC". Raises: ValueError for another form, KeyError for an unknown chip."""
    match = re.fullmatch(r"([a-z]\w*):(\d+(?:x\d+)*)", text)
    if match is None:
        raise ValueError(f"topology {text!r}: expected CHIP:SHAPE, such as v5e:4x4, v5p:4x4x4 or h200:8")
    if match[1] not in CHIPS:
        close = difflib.get_close_matches(match[1], CHIPS) or list(CHIPS)
        raise KeyError(f"no chip {match[1]!r}; did you mean {' or '.join(close)}?")
    chip, shape = CHIPS[match[1]], tuple(map(int, match[2].split("x")))
    axes = chip.axes or 1
    if len(shape) != axes or 0 in shape:
        raise ValueError(
            f"topology {text!r}: a slice of {chip.name} has {axes} axes, such as {chip.name}:{'x'.join('4' * axes)}"
        )
    return Topology(chip, shape)
