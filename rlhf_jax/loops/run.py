"""One run of one seed: its directory, mesh, keys and data, and the loop that every stage goes through."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
from jax.sharding import Mesh

from rlhf_jax.checkpoint import Checkpoints
from rlhf_jax.config import Experiment, Mixture
from rlhf_jax.data.batching.padding import Cut
from rlhf_jax.data.mixtures import Gathered
from rlhf_jax.data.sources import find_data_root
from rlhf_jax.report.metrics import MetricsWriter
from rlhf_jax.report.progress import progress
from rlhf_jax.sharding import make_mesh

State = TypeVar("State")
STAGES = ("init", "sft", "collect", "reward", "value", "ppo", "evaluate", "normalise", "preference", "ilql", "classify")


@runtime_checkable
class Advance(Protocol):
    """(state, step) -> (state, metrics, metrics that need the host): one step of a stage, dispatched but not waited for."""

    def __call__(
        self, state: Any, step: int, /
    ) -> tuple[Any, Mapping[str, Any], Callable[[], Mapping[str, float]] | None]: ...


@dataclasses.dataclass(frozen=True)
class Run:
    """Where an experiment runs. `on_step(stage, steps done)` is called after each step, once its checkpoint is due and written."""

    experiment: Experiment
    directory: Path
    mesh: Mesh
    data_root: Path | None = None
    on_step: Callable[[str, int], None] | None = None
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)  # of this process, by stage
    # The same without the first step, which compiles, and without evaluation and checkpoints.
    step_seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    noted: dict[str, float] = dataclasses.field(default_factory=dict)  # figures of the data: examples, cut, rejected
    resumed: dict[str, int] = dataclasses.field(default_factory=dict)  # the step that each stage went on from
    gathered: dict[Mixture, Gathered] = dataclasses.field(default_factory=dict)  # the records of each mixture

    def key(self, stage: str) -> jax.Array:
        """The random key of a stage: a function of the experiment's seed and the stage alone."""
        return jax.random.fold_in(jax.random.key(self.experiment.seed), STAGES.index(stage))

    def note_cut(self, stage: str, cut: Cut) -> None:
        """Adds how many examples a stage has, and how many of them were too long, to the figures."""
        self.noted[f"{stage}/examples"] = float(cut.examples)
        self.noted[f"{stage}/cut_prompts"] = float(cut.prompts)
        self.noted[f"{stage}/cut_replies"] = float(cut.replies)

    def data(self) -> Path:
        """The data root. Raises: FileNotFoundError with what was looked for."""
        return find_data_root(self.data_root)


def open_run(experiment: Experiment, directory: Path, **options) -> Run:
    """A run on the devices that the experiment's mesh asks for."""
    directory.mkdir(parents=True, exist_ok=True)
    return Run(experiment, directory, make_mesh(experiment.mesh), **options)


def run_stage(
    run: Run,
    stage: str,
    state: State,
    advance: Advance,
    steps: int,
    *,
    evaluate: Callable[[State], Mapping[str, Any]] | None = None,
    eval_every: int | None = None,
    show: tuple[str, ...] = (),
) -> State:
    """The state after `steps` steps, from the newest intact checkpoint of this stage if there is one.

    Metrics and checkpoints are written on the way; `evaluate` runs before the first step, every `eval_every` steps and after the last.
    What is written is the same whether the run was interrupted or not.
    """
    started, counted = time.monotonic(), 0.0
    with Checkpoints(run.directory / "checkpoints" / stage) as checkpoints:
        start = run.resumed[stage] = checkpoints.latest or 0
        if start:
            state = checkpoints.restore(start, state)
        with (
            MetricsWriter(run.directory, stage, resume_step=start) as writer,
            MetricsWriter(run.directory, f"{stage}/held_out", resume_step=start + bool(start)) as held_out,
            progress(steps, stage, done=start) as bar,
        ):
            if evaluate is not None and not start:
                held_out.write(f"{stage}/held_out", 0, evaluate(state))
            since = None
            for step in range(start, steps):
                state, metrics, later = advance(state, step)
                writer.write(stage, step, metrics, later=later)
                done = step + 1
                measure = evaluate if done == steps or (eval_every and done % eval_every == 0) else None
                save = done == steps or done % run.experiment.checkpoint_every == 0
                if measure is not None or save or since is None:
                    writer.flush()  # waits for the step, so that the clock stands between steps
                    counted += 0.0 if since is None else time.monotonic() - since
                    if measure is not None:
                        held_out.write(f"{stage}/held_out", done, measure(state))
                    if save:
                        held_out.flush()
                        checkpoints.save(done, state)
                    since = time.monotonic()
                if run.on_step is not None:
                    run.on_step(stage, done)
                bar.update(
                    done, "  ".join(f"{name} {writer.latest[name]:.3g}" for name in show if name in writer.latest)
                )
    run.seconds[stage], run.step_seconds[stage] = time.monotonic() - started, counted
    return state
