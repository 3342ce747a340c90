"""What one program costs on a topology: memory of a chip, work, traffic, and the time that no run of it can be shorter than."""

from __future__ import annotations

import dataclasses
import re
import time
from typing import Any

from rlhf_jax.compiled import Traced
from rlhf_jax.plan.chips import Topology
from rlhf_jax.plan.hlo import Collective, Program

EXHAUSTED = (
    re.compile(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm", re.IGNORECASE),
    re.compile(r"temporaries \(([\d.]+)([KMGT])\) exceeds available HBM"),
)
"""How the TPU's compiler says that a program is too large: with its arguments, or what it needs besides."""
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a program needs of one chip, and the least times of its parts in seconds.

    Matrix products run at the chip's peak in bfloat16, memory and links at theirs; other arithmetic, latencies and waiting are left out.
    """

    name: str
    topology: Topology
    flops: float  # of matrix products, over all chips, those that are done again in the backward pass too
    model_flops: float  # the same without what is done again
    arguments: int  # bytes of a chip
    peak: int  # bytes of a chip at the fullest moment; only the arguments where there is no compiler
    traffic: int | None  # bytes of a chip's memory, read and written; None where there is no compiler
    collectives: tuple[Collective, ...]
    kernels: tuple[str, ...]
    compile_seconds: float

    @property
    def fits(self) -> bool:
        """Whether a chip's memory holds it."""
        return self.peak <= self.topology.chip.memory

    @property
    def compute_seconds(self) -> float:
        return self.flops / self.topology.chips / self.topology.chip.flops

    @property
    def memory_seconds(self) -> float:
        return (self.arguments if self.traffic is None else self.traffic) / self.topology.chip.bandwidth

    @property
    def link_seconds(self) -> float:
        return sum(each.moved / self.topology.bandwidth(each.group) for each in self.collectives)

    @property
    def seconds(self) -> float:
        """The least time of a run where computing, memory and links work at the same time."""
        return max(self.compute_seconds, self.memory_seconds, self.link_seconds)

    @property
    def serial_seconds(self) -> float:
        """The same where links work while nothing else does."""
        return max(self.compute_seconds, self.memory_seconds) + self.link_seconds

    @property
    def utilisation(self) -> float:
        """The share of the chips' peak that the model's own operations can have at most. Source: Chowdhery et al. 2022, appendix B."""
        return self.model_flops / self.topology.chips / self.topology.chip.flops / max(self.seconds, 1e-30)

    @property
    def bound(self) -> str:
        """What takes longest."""
        times = {"compute": self.compute_seconds, "memory": self.memory_seconds, "links": self.link_seconds}
        return max(times, key=lambda name: times[name])

    def exchanged(self) -> dict[str, tuple[int, float]]:
        """Kind of collective -> (how many, bytes that a chip receives by them)."""
        found: dict[str, tuple[int, float]] = {}
        for each in self.collectives:
            count, moved = found.get(each.kind, (0, 0.0))
            found[each.kind] = count + each.times, moved + each.moved
        return found

    def as_json(self) -> dict[str, Any]:
        """The same as objects, texts and numbers."""
        return {
            "program": self.name,
            "topology": self.topology.name,
            "fits": self.fits,
            **{name: getattr(self, name) for name in ("flops", "model_flops", "arguments", "peak", "traffic")},
            **{name: getattr(self, name) for name in ("compute_seconds", "memory_seconds", "link_seconds", "seconds")},
            **{name: getattr(self, name) for name in ("serial_seconds", "utilisation", "bound", "compile_seconds")},
            "collectives": {kind: {"count": n, "bytes": moved} for kind, (n, moved) in self.exchanged().items()},
            "kernels": list(self.kernels),
        }


def cost_of(name: str, traced: Traced, topology: Topology, flops: float, model_flops: float) -> Cost:
    """The cost of a traced program, which is compiled where that can be done.

    Of a program that needs more memory than a chip has nothing else is known; one whose arguments do is not compiled at all.
    """
    known = dict(name=name, topology=topology, flops=flops, model_flops=model_flops, arguments=traced.argument_bytes)
    nothing = dict(traffic=None, collectives=(), kernels=())
    if not topology.compiles or traced.argument_bytes > topology.chip.memory:
        return Cost(**known, **nothing, peak=traced.argument_bytes, compile_seconds=0.0)  # pyright: ignore
    started = time.perf_counter()
    try:
        compiled = traced.lower().compile()
    except Exception as error:  # JaxRuntimeError, which has no kinds
        used = [pattern.search(str(error)) for pattern in EXHAUSTED]
        if not any(used):
            raise
        amounts = [int(float(found[1]) * UNITS[found[2].upper()]) if found else 0 for found in used]
        peak = max(amounts[0], amounts[1] + traced.argument_bytes if used[1] else 0)
        return Cost(**known, **nothing, peak=peak, compile_seconds=time.perf_counter() - started)  # pyright: ignore
    memory, program = compiled.memory_analysis(), Program(compiled.as_text())
    return Cost(
        **known,  # pyright: ignore
        peak=max(memory.peak_memory_in_bytes, memory.argument_size_in_bytes + memory.temp_size_in_bytes),
        traffic=program.traffic,
        collectives=program.collectives,
        kernels=program.kernels,
        compile_seconds=time.perf_counter() - started,
    )
