"""Which mesh and how many microbatches are fastest on a topology, and what makes a program fit that does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from rlhf_jax.config import Experiment
from rlhf_jax.plan.chips import Topology
from rlhf_jax.plan.planner import Tell, meshes, plan, remedies, told, with_microbatches
from rlhf_jax.plan.roofline import Cost
from rlhf_jax.plan.table import seconds, size


@dataclasses.dataclass(frozen=True)
class Tried:
    """One way to lay an experiment on a topology, and what its programs cost."""

    experiment: Experiment
    words: str
    costs: tuple[Cost, ...]

    @property
    def fits(self) -> bool:
        return all(cost.fits for cost in self.costs)

    @property
    def rank(self) -> tuple[float, float]:
        """The least time, and the time where links overlap with nothing."""
        return sum(cost.seconds for cost in self.costs), sum(cost.serial_seconds for cost in self.costs)


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search has tried: what fits, the fastest first, then what does not, in the order of trying."""

    tried: tuple[Tried, ...]

    @property
    def best(self) -> Experiment:
        """The fastest of those that fit; where none does, the one that the search began with."""
        return self.tried[0].experiment

    def table(self) -> str:
        """A Markdown table of all that was tried."""
        lines = ["| mesh | at least | without overlap | memory | |", "|---|---|---|---|---|"]
        for each in self.tried:
            least, serial = each.rank
            peak = max(cost.peak for cost in each.costs)
            words = ("fits", seconds(least), seconds(serial)) if each.fits else ("does not fit", "-", "-")
            lines.append(f"| {each.words} | {words[1]} | {words[2]} | {size(peak)} | {words[0]} |")
        return "\n".join(lines) + "\n"


def search(
    experiment: Experiment, topology: Topology, *, only: str | None, most: int, tell: Tell = lambda said: None
) -> Found:
    """Compiles at most so many ways to lay the experiment on the topology, the given one first. Raises: as `plan`."""
    tried = []
    for words, each in ways(experiment, topology.chips):
        if len(tried) == most:
            break
        tell(f"{len(tried) + 1} of {most} at most: {words}")
        tried.append(Tried(each, words, plan(each, topology, only=only)))
    fitting = sorted((each for each in tried if each.fits), key=lambda each: each.rank)
    return Found((*fitting, *(each for each in tried if not each.fits)))


def ways(experiment: Experiment, chips: int) -> Iterator[tuple[str, Experiment]]:
    """(in words, experiment): as it is, on every mesh that it fits on, and with more microbatches."""
    yield f"{told(experiment.mesh)} as given", experiment
    others = [each for each in meshes(experiment, chips) if each.mesh != experiment.mesh]
    # Neighbours first: those that differ least in how far a layer is split.
    for each in sorted(others, key=lambda each: (each.mesh.tensor * each.mesh.data, each.mesh.tensor)):
        yield told(each.mesh), each
    for factor in (2, 4):
        try:
            yield f"{told(experiment.mesh)}, {factor} x the microbatches", with_microbatches(experiment, factor)
        except ValueError:  # rows that do not divide
            return


def remedy(experiment: Experiment, topology: Topology, large: Sequence[str], tell: Tell = lambda said: None) -> str:
    """The smallest change with which the programs that are too large fit, in words."""
    for words, changed in remedies(experiment, topology.chips):
        tell(f"tries {words}")
        if all(cost.fits for name in large for cost in plan(changed, topology, only=name)):
            return f"it fits with {words}"
    return "nothing of that kind makes it fit: rematerialisation, other meshes, more microbatches; take a larger slice"
