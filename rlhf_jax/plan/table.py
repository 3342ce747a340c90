"""Costs as a table that a person reads, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlhf_jax.plan.roofline import Cost

COLUMNS = (
    "program",
    "memory",
    "of it arguments",
    "work",
    "compute",
    "memory traffic",
    "links",
    "at least",
    "MFU at most",
    "bound by",
)
ASSUMED = """Times are what a run takes at least: matrix products at the chip's peak in bfloat16 (all of attention, masked or not), main
memory and links at theirs, all at once; what is elementwise, latencies and waiting are left out. MFU: the model's own operations, without
those that the backward pass does again, over that time and the peak. Traffic of memory is counted from instructions, perhaps too high."""
UNCOMPILED = (
    "There is a compiler without the chip for TPUs alone: here memory is that of the arguments, and links are left out."
)


def table(costs: Sequence[Cost]) -> str:
    """A Markdown table with a row for each program, the verdict, and what exchanges data."""
    if not costs:
        return ""
    topology = costs[0].topology
    chip = topology.chip
    lines = [
        f"{topology.name}: {topology.chips} chips of {size(chip.memory)}, {chip.flops / 1e12:.0f} TFLOP/s, {chip.bandwidth / 1e9:.0f} GB/s "
        f"of memory, {chip.link / 1e9:.0f} GB/s a link ({chip.source})",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
    ]
    lines += [f"| {' | '.join(_cells(cost))} |" for cost in costs]
    for cost in costs:
        exchanged = ", ".join(f"{n} {kind} ({size(moved)})" for kind, (n, moved) in sorted(cost.exchanged().items()))
        kernels = ", ".join(cost.kernels)
        notes = [*([exchanged] if exchanged else []), *([f"kernels {kernels}"] if kernels else [])]
        if notes:
            lines += ["", f"{cost.name}: {'; '.join(notes)}; compiled in {cost.compile_seconds:.0f} s"]
    return (
        "\n".join([*lines, "", verdict(costs), "", ASSUMED if topology.compiles else f"{ASSUMED} {UNCOMPILED}"]) + "\n"
    )


def verdict(costs: Sequence[Cost]) -> str:
    """Whether all of it fits."""
    large = [cost for cost in costs if not cost.fits]
    if not large:
        return f"fits: the largest needs {size(max(cost.peak for cost in costs))} of {size(costs[0].topology.chip.memory)} a chip"
    said = ", ".join(f"{cost.name} needs {size(cost.peak)}" for cost in large)
    return f"does not fit: {said} of {size(large[0].topology.chip.memory)} a chip"


def _cells(cost: Cost) -> list[str]:
    known = cost.traffic is not None
    return [
        cost.name,
        size(cost.peak),
        size(cost.arguments),
        f"{cost.flops / 1e12:.3g} TFLOP",
        seconds(cost.compute_seconds),
        seconds(cost.memory_seconds) if known or not cost.topology.compiles else "-",
        seconds(cost.link_seconds) if known else "-",
        seconds(cost.seconds) if cost.fits else "-",
        f"{100 * cost.utilisation:.0f} %" if cost.fits else "-",
        cost.bound if cost.fits else "does not fit",
    ]


def size(count: float) -> str:
    """Bytes in GiB or MiB."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.2f} MiB"


def seconds(time: float) -> str:
    """A time in seconds, or milliseconds."""
    return f"{time:.2f} s" if time >= 1 else f"{1e3 * time:.3g} ms"


def as_json(experiment: str, costs: Sequence[Cost]) -> dict[str, Any]:
    """All that is known, as objects, texts and numbers."""
    return {
        "experiment": experiment,
        "fits": all(cost.fits for cost in costs),
        "programs": [cost.as_json() for cost in costs],
    }
