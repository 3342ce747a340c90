"""An experiment on a topology: every program's cost, what would make it fit, and which mesh is fastest."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax

from rlhf_jax.compiled import Traced
from rlhf_jax.config import ONE_DEVICE, Experiment, MeshConfig
from rlhf_jax.mesh import make_mesh
from rlhf_jax.models import attention, output
from rlhf_jax.plan.chips import Topology
from rlhf_jax.plan.flops import matmul_flops
from rlhf_jax.plan.programs import trace_rollout, trace_updates
from rlhf_jax.plan.roofline import Cost, cost_of

Tell = Callable[[str], None]


def plan(
    experiment: Experiment, topology: Topology, *, only: str | None = None, tell: Tell = lambda said: None
) -> tuple[Cost, ...]:
    """The cost of each program of an experiment whose mesh has the chips of the topology; `only` the one of that name.

    Raises: ValueError where the mesh has other chips, and where programs cannot be compiled for the topology; KeyError for an
    unknown program.
    """
    if experiment.mesh.devices != topology.chips:
        raise ValueError(
            f"mesh {told(experiment.mesh)} has {experiment.mesh.devices} devices, and {topology.name} has {topology.chips}"
        )
    mesh = make_mesh(experiment.mesh, topology.devices() if topology.compiles else None)
    programs = traced_programs(experiment, mesh)
    if only is not None and only not in programs:
        raise KeyError(f"no program {only!r}; {experiment.name} has {', '.join(programs)}")
    work = work_of(experiment, [name for name in programs if only in (None, name)])
    costs = []
    for name, (flops, model_flops) in work.items():
        tell(f"{name} for {topology.name}, {told(experiment.mesh)}")
        costs.append(cost_of(name, programs[name], topology, flops, model_flops))
    return tuple(costs)


def traced_programs(experiment: Experiment, mesh: Any) -> dict[str, Traced]:
    """Every program of an experiment by name: its updates, and what else an iteration of PPO runs."""
    return trace_updates(experiment, mesh) | ({} if experiment.ppo is None else trace_rollout(experiment, mesh))


def work_of(experiment: Experiment, names: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Program -> its operations, and the same without what is done again in the backward pass.

    Attention is counted whole, as if nothing were masked; a loop of responses as if every row had all its tokens.
    """
    ppo, turns = experiment.ppo, 1
    if ppo is not None:
        rows = ppo.prompts * ppo.samples
        turns = ppo.new_tokens * math.ceil(rows / (ppo.slots or rows))
    same, mesh = dataclasses.replace(experiment, mesh=ONE_DEVICE), make_mesh(ONE_DEVICE)
    whole: Replaced = (attention, "_blocks", lambda length, *_: [(slice(None), slice(None))])
    with _replaced(whole):
        done = traced_programs(same, mesh)
    with _replaced(whole, *NOTHING_AGAIN):
        once = traced_programs(with_remat(same, "none"), mesh)
    return {
        name: (matmul_flops(done[name].jaxpr, turns=turns), matmul_flops(once[name].jaxpr, turns=turns))
        for name in names
    }


Replaced = tuple[Any, str, Callable[..., Any]]
"""A module, the name of a function in it, and what stands in for that."""


def _first_of(forward: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *given: forward(*given)[0]


NOTHING_AGAIN: tuple[Replaced, ...] = (
    (jax, "checkpoint", lambda function, **how: function),
    (output, "_logprobs_of", _first_of(output._logprobs_forward)),
    (output, "_stats_of", _first_of(output._stats_forward)),
)
"""What is traced with these keeps all that its backward pass needs: the output layer, too, whose chunks have no option for that."""


@contextlib.contextmanager
def _replaced(*places: Replaced) -> Iterator[None]:
    """What is traced while this is open has the other functions."""
    usual = [getattr(place, name) for place, name, _ in places]
    try:
        for place, name, function in places:
            setattr(place, name, function)
        yield
    finally:
        for (place, name, _), function in zip(places, usual, strict=True):
            setattr(place, name, function)


def with_remat(experiment: Experiment, remat: Literal["none", "products", "layers"]) -> Experiment:
    """The experiment whose models make this much of each layer again in the backward pass."""
    reward = experiment.reward_model
    return dataclasses.replace(
        experiment,
        policy=dataclasses.replace(experiment.policy, remat=remat),
        reward_model=None if reward is None else dataclasses.replace(reward, remat=remat),
    )


def told(mesh: MeshConfig) -> str:
    """data x fsdp x tensor, and context where it splits anything."""
    context = f" context={mesh.context}" if mesh.context > 1 else ""
    return f"data={mesh.data} fsdp={mesh.fsdp} tensor={mesh.tensor}{context}"


def meshes(experiment: Experiment, chips: int) -> Iterator[Experiment]:
    """The experiment on every mesh of so many chips that its rows and heads can be split over, all of fsdp first.

    Its context stays, where it divides the chips.
    """
    context = experiment.mesh.context if chips % experiment.mesh.context == 0 else 1
    for tensor in _divisors(chips // context):
        for data in _divisors(chips // context // tensor):
            fsdp = chips // context // tensor // data
            try:
                yield dataclasses.replace(experiment, mesh=MeshConfig(data, fsdp, tensor, context))
            except ValueError:  # which says what does not divide
                continue


def remedies(experiment: Experiment, chips: int) -> Iterator[tuple[str, Experiment]]:
    """What to change where a program does not fit, the smallest change first: (in words, the experiment with it)."""
    least = experiment.policy.remat == "layers"
    if not least:
        yield "policy.remat=layers", with_remat(experiment, "layers")
    begun, also = with_remat(experiment, "layers"), "" if least else "policy.remat=layers and "
    for each in meshes(begun, chips):
        if each.mesh != experiment.mesh and each.mesh.data == 1:
            yield f"{also}mesh {told(each.mesh)}", each
    for factor in (2, 4, 8, 16):
        try:
            yield f"{also}{factor} x the microbatches", with_microbatches(begun, factor)
        except ValueError:
            break


def with_microbatches(experiment: Experiment, factor: int) -> Experiment:
    """The experiment whose updates add up gradients of `factor` times as many microbatches. Raises: ValueError where rows do not divide."""
    stages: dict[str, Any] = {}
    for name in ("sft", "reward", "preference", "ilql", "classify", "ppo"):
        stage = getattr(experiment, name)
        optims = {field: getattr(stage, field, None) for field in ("optim", "value_optim")}
        changed = {
            field: dataclasses.replace(optim, microbatches=optim.microbatches * factor)
            for field, optim in optims.items()
            if optim is not None
        }
        if changed:
            stages[name] = dataclasses.replace(stage, **changed)
    return dataclasses.replace(experiment, **stages)


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]
