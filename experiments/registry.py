"""The registry: a name, its paper and claim, the scales it runs at, and the function that makes its config."""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from rlhf_jax.config import Experiment
from rlhf_jax.config.study import Study
from rlhf_jax.eval.preference import mean_and_error
from rlhf_jax.overrides import unknown_name
from rlhf_jax.plan.chips import parse_topology

if TYPE_CHECKING:
    from rlhf_jax.report.study import StudyResult

MODULES = (
    "quickstart",
    "smoke",
    "real",
    "chinese",
    "huang2024",
    "longpre2023",
    "instructgpt2022",
    "snell2022",
    "stiennon2020",
    "touvron2023",
    "exact.entries",
    "exact.reward_entries",
    "exact.offline_entries",
)
SCALES = ("cpu", "gpu", "tpu")

Make = Callable[[str], Experiment | Study]
Made = TypeVar("Made", bound=Make)
RunStudy = Callable[[Any, int], "StudyResult"]
"""(study, number of seeds) -> what came out, of all seeds from the study's own on."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """Something a run must show: `value` over seeds, and whether it holds; None where the seeds leave it open.

    `error` is the standard error over seeds; without one that is finite nothing is concluded.
    """

    signature: str
    statistic: str
    value: float
    error: float
    holds: bool | None

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the value."""
        return self.value - 1.96 * self.error, self.value + 1.96 * self.error


def above(signature: str, statistic: str, value: float, error: float, bound: float = 0.0) -> Claim:
    """That a value exceeds a bound: it holds where its whole interval does, does not where none of it does, else it is open."""
    claim = Claim(signature, statistic, value, error, None)
    low, high = claim.interval
    return dataclasses.replace(claim, holds=True if low > bound else False if high <= bound else None)


def exceeds(figures: Mapping[str, list[float]], one: str, other: str, signature: str, *, by: float = 0.0) -> Claim:
    """That one figure exceeds another by more than `by`, over the seeds that they share."""
    difference, error = mean_and_error([a - b for a, b in zip(figures[one], figures[other], strict=True)])
    return above(signature, f"{one} - {other} > {by:g} with its interval", difference, error, by)


def measured(figures: Mapping[str, list[float]], name: str) -> tuple[float, float]:
    """(mean over seeds, its standard error): over seeds; with one seed, which has no spread, that over its prompts or pairs."""
    mean, error = mean_and_error(figures[name])
    return mean, error if len(figures[name]) > 1 else figures.get(f"{name}_error", [math.nan])[0]


Judge = Callable[[Mapping[str, list[float]]], list[Claim]]
"""Figures by name, one value per seed -> the claims of the experiment."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One registered experiment; `costs` says what each scale takes, and so which scales there are."""

    name: str
    paper: str
    claim: str
    costs: Mapping[str, str]
    make: Make
    judge: Judge | None
    run_study: str | None = None  # of a study: "module:function", imported when it runs; None: the pipeline of stages
    topology: str | None = None  # the slice that the scale tpu is laid out for, as `rlhf_jax.plan` names it

    @property
    def doc(self) -> str:
        return (self.make.__doc__ or "").strip()

    def study_program(self) -> RunStudy:
        """The function that runs a study."""
        assert self.run_study is not None, "a study is registered with what runs it"
        module, _, function = self.run_study.partition(":")
        return getattr(importlib.import_module(module), function)

    def experiment(self, scale: str) -> Any:
        """The config at a scale. Raises: ValueError for a scale that the experiment does not have."""
        if scale not in self.costs:
            raise ValueError(f"{self.name} has no scale {scale!r}; it has {', '.join(self.costs)}")
        return self.make(scale)


_ENTRIES: dict[str, Entry] = {}


def register(
    name: str,
    *,
    paper: str,
    claim: str,
    costs: Mapping[str, str],
    judge: Judge | None = None,
    run_study: str | None = None,
    topology: str | None = None,
):
    """Enters `make(scale) -> Experiment` under a name, or with `run_study` a `Study`.

    Its docstring states source, expected cost and expected outcome. Raises: ValueError for a scale tpu without the topology that it is
    laid out for, such as v5p:4x4x4, and for a topology without that scale.
    """
    if ("tpu" in costs) != (topology is not None):
        raise ValueError(
            f"experiment {name!r} has scales {', '.join(costs)} and topology={topology!r}; the scale tpu has one, such as 'v5p:4x4x4'"
        )
    if topology is not None and not parse_topology(topology).compiles:
        raise ValueError(f"experiment {name!r} has topology={topology!r}, which is no slice of a TPU")

    def enter(make: Made) -> Made:
        if name in _ENTRIES:
            raise ValueError(f"experiment {name!r} is registered twice")
        _ENTRIES[name] = Entry(name, paper, claim, costs, make, judge, run_study, topology)
        return make

    return enter


def entries() -> dict[str, Entry]:
    """All experiments by name."""
    for module in MODULES:
        importlib.import_module(f"experiments.{module}")
    return dict(sorted(_ENTRIES.items()))


def find(name: str) -> Entry:
    """The experiment of that name. Raises: KeyError with the closest names."""
    known = entries()
    if name not in known:
        raise KeyError(unknown_name(f"experiment {name!r}", name, known))
    return known[name]
