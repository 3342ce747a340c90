"""One run of one seed: its directory, mesh, keys and data, and the loop that every stage goes through."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh

from rlhf_jax import processes
from rlhf_jax.checkpoint import Checkpoints
from rlhf_jax.compiled import Programs
from rlhf_jax.config import Experiment, Mixture
from rlhf_jax.data.batching.padding import Cut
from rlhf_jax.data.mixtures import Gathered
from rlhf_jax.data.sources import find_data_root
from rlhf_jax.loops.ahead import Ahead, compile_ahead
from rlhf_jax.loops.faults import Faults
from rlhf_jax.loops.preemption import Notice, Preempted
from rlhf_jax.mesh import make_mesh
from rlhf_jax.report.metrics import Later, MetricsWriter
from rlhf_jax.report.progress import progress
from rlhf_jax.sharding import in_host_memory, own_rows, place_rows
from rlhf_jax.types import Params

State = TypeVar("State")
Batch = TypeVar("Batch")
Made = TypeVar("Made", covariant=True)
STAGES = ("init", "sft", "collect", "reward", "value", "ppo", "evaluate", "normalise", "preference", "ilql", "classify")


@runtime_checkable
class Stream(Protocol[Made]):
    """Batches by step, of `size` rows, of which a part can be made alone."""

    @property
    def cut(self) -> Cut: ...

    @property
    def size(self) -> int: ...

    def part(self, step: int, places: np.ndarray | None = None) -> Made: ...


@dataclasses.dataclass(frozen=True)
class Advanced:
    """A step of a stage that was dispatched, but not waited for."""

    state: Any
    metrics: Mapping[str, Any]
    batch: Any  # what it learned from, which is kept where its update is left out
    later: Later | None = None  # metrics that need the host


Advance = Callable[[Any, int], Advanced]
"""(state, step) -> the next state, with metrics. It is a function of these two alone, however often it is called."""


@dataclasses.dataclass(frozen=True)
class Run:
    """Where an experiment runs. Of several processes each has a directory, and all write one set of checkpoints, in `shared`.

    `on_step(stage, steps done)` is called after each step, once its checkpoint has begun to be written. `take(stage, advance, state, step)`
    stands between the loop and each step. `notice` is asked after each step whether the machine is to be taken away. `programs` compiles
    what the stages ask for.
    """

    experiment: Experiment
    directory: Path
    programs: Programs
    data_root: Path | None = None
    shared: Path | None = None  # default: the directory
    on_step: Callable[[str, int], None] | None = None
    take: Callable[[str, Advance, Any, int], Advanced] = lambda stage, advance, state, step: advance(state, step)
    notice: Notice = dataclasses.field(default_factory=Notice)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)  # of this process, by stage
    # The same without the first step, which compiles what is not compiled yet, and without evaluation and checkpoints.
    step_seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    noted: dict[str, float] = dataclasses.field(default_factory=dict)  # figures of the data: examples, cut, rejected
    resumed: dict[str, int] = dataclasses.field(default_factory=dict)  # the step that each stage went on from
    gathered: dict[Mixture, Gathered] = dataclasses.field(default_factory=dict)  # the records of each mixture

    @property
    def mesh(self) -> Mesh:
        """The devices of its programs."""
        return self.programs.mesh

    @property
    def checkpoints(self) -> Path:
        """Where each stage has its checkpoints."""
        return (self.shared or self.directory) / "checkpoints"

    def batch(self, batches: Stream[Batch], step: int) -> Batch:
        """The batch of a step on the devices; each process makes the rows that its own devices hold."""
        own = own_rows(self.mesh, batches.size)
        return place_rows(batches.part(step, own), self.mesh, own, batches.size)

    def set_aside(self, params: Params) -> Params:
        """The parameters of a model that nothing trains any more, in the memory where the experiment wants such to wait."""
        return in_host_memory(params) if self.experiment.waiting == "host" else params

    def key(self, stage: str) -> jax.Array:
        """The random key of a stage: a function of the experiment's seed and the stage alone."""
        return jax.random.fold_in(jax.random.key(self.experiment.seed), STAGES.index(stage))

    def check_batches(self, stage: str, batches: Stream) -> None:
        """Raises: ValueError where processes have other texts, or cut them into other tokens."""
        if processes.count() > 1:
            processes.check_same(f"the first batch of stage {stage}", digest(batches.part(0)))

    def note_batches(self, stage: str, batches: Stream) -> None:
        """Adds how many examples a stage has, and how many of them were too long, to the figures. Raises: as `check_batches`."""
        self.check_batches(stage, batches)
        cut = batches.cut
        self.noted[f"{stage}/examples"] = float(cut.examples)
        self.noted[f"{stage}/cut_prompts"] = float(cut.prompts)
        self.noted[f"{stage}/cut_replies"] = float(cut.replies)

    def data(self) -> Path:
        """The data root. Raises: FileNotFoundError with what was looked for."""
        return find_data_root(self.data_root)


def digest(tree: Any) -> str:
    """A number that stands for all that the host's arrays of a tree hold."""
    return hashlib.sha256(b"".join(np.ascontiguousarray(leaf).tobytes() for leaf in jax.tree.leaves(tree))).hexdigest()


def open_run(experiment: Experiment, directory: Path, programs: Programs | None = None, **options) -> Run:
    """A run on the devices that the experiment's mesh asks for, or with programs of others."""
    directory.mkdir(parents=True, exist_ok=True)
    return Run(experiment, directory, programs or Programs(make_mesh(experiment.mesh)), **options)


def run_stage(
    run: Run,
    stage: str,
    state: State,
    advance: Advance,
    steps: int,
    *,
    programs: Callable[[Ahead, State], None] | None = None,
    evaluate: Callable[[State], Mapping[str, Any]] | None = None,
    eval_every: int | None = None,
    show: tuple[str, ...] = (),
) -> State:
    """The state after `steps` steps, from the newest intact checkpoint of this stage if there is one.

    Where steps are left, what `programs` asks for is compiled before the first of them, side by side. Metrics and checkpoints are written
    on the way; `evaluate` runs before the first step, every `eval_every` steps and after the last. The
    checkpoint whose held-out loss, the first metric of `show`, is lowest is kept beside the newest ones. What is written is the same
    whether the run was interrupted or not. A step that fails leaves a checkpoint of what there was before it, a notice one of what came.
    Raises: NotFinite where too many updates in a row had to be left out; Preempted.
    """
    started, counted = time.monotonic(), 0.0
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(run.checkpoints / stage))
        start = run.resumed[stage] = checkpoints.latest or 0
        if start:
            state = checkpoints.restore(start, state)
        if programs is not None and start < steps and run.programs.compiles_ahead:
            compile_ahead(stage, lambda ahead: programs(ahead, state))
        bar = stack.enter_context(progress(steps, stage, done=start))
        faults = Faults(run.directory, stage, checkpoints, run.experiment.max_skipped, bar.say)
        writer = stack.enter_context(MetricsWriter(run.directory, stage, resume_step=start, look=faults.look))
        held_out = f"{stage}/held_out"
        measured = stack.enter_context(MetricsWriter(run.directory, held_out, resume_step=start + bool(start)))
        faults.remember()
        if evaluate is not None and not start:
            measured.write(held_out, 0, evaluate(state))
            measured.flush()  # at once, so that lines stand in one order whenever a run was interrupted
        stack.enter_context(run.notice.held())
        since = None
        for step in range(start, steps):
            done, known, kept = step + 1, step, False  # `known` is how many steps the state is of
            try:
                found = run.take(stage, advance, state, step)
                state, known = found.state, done
                faults.keep(step, found.batch)
                writer.write(stage, step, found.metrics, later=found.later)
                measure = evaluate if done == steps or (eval_every and done % eval_every == 0) else None
                save = run.notice.asked() or done == steps or done % run.experiment.checkpoint_every == 0
                if measure is not None or save or since is None:
                    writer.flush()  # waits for the step, so that the clock stands between steps
                    counted += 0.0 if since is None else time.monotonic() - since
                    loss = None
                    if measure is not None:
                        metrics = measure(state)
                        measured.write(held_out, done, metrics)
                        measured.flush()
                        loss = finite(metrics.get(show[0])) if show else None
                    if save or is_best(checkpoints, loss):
                        checkpoints.save(done, state, held_out=loss)
                        kept = True
                    since = time.monotonic()
            except (Exception, KeyboardInterrupt) as error:
                processes.all_fail(error)  # or what stands below would wait for the others
                rescue(checkpoints, writer, known, state, bar.say)
                raise
            if run.on_step is not None:
                run.on_step(stage, done)
            bar.update(done, "  ".join(f"{name} {writer.latest[name]:.3g}" for name in show if name in writer.latest))
            if run.notice.given:
                if not kept:  # it came behind the question above
                    writer.flush()
                    checkpoints.save(done, state)
                raise Preempted(f"{stage}: saved at step {done} of {steps}")
    run.seconds[stage], run.step_seconds[stage] = time.monotonic() - started, counted
    return state


def finite(value: Any) -> float | None:
    """The number, or None where it is none that others can be compared with."""
    return float(value) if value is not None and math.isfinite(float(value)) else None


def is_best(checkpoints: Checkpoints, loss: float | None) -> bool:
    """Whether a held-out loss is below that of every checkpoint."""
    best = None if loss is None else checkpoints.best
    return loss is not None and (best is None or loss < best[1])


def rescue(checkpoints: Checkpoints, writer: MetricsWriter, known: int, state: Any, say: Callable[[str], None]) -> None:
    """Saves the state that a failing step leaves behind, of `known` steps, if it is still there and its metrics are written.

    The step may have been using its memory. What goes wrong here is told, and hides nothing of what went wrong before.
    """
    try:
        writer.flush()
        whole = known > 0 and writer.last == known - 1 and not any(map(is_gone, jax.tree.leaves(state)))
        if not processes.same(f"{known} {whole}"):  # interrupted at different steps
            return
        if whole and checkpoints.latest != known:
            checkpoints.save(known, state)
    except Exception as error:
        say(f"the state of step {known} could not be saved: {error}")


def is_gone(leaf: Any) -> bool:
    """Whether the memory of an array was given to a step."""
    return isinstance(leaf, jax.Array) and leaf.is_deleted()
