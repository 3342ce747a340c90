"""What a stage trains: all of a model, or adapters of it (LoRA), which are merged at its end."""

from __future__ import annotations

import dataclasses

import jax

from rlhf_jax.config import LoRA
from rlhf_jax.loops.run import Run
from rlhf_jax.models import Model
from rlhf_jax.models.lora import adapted, merged, with_lora
from rlhf_jax.sharding import compile_function, place
from rlhf_jax.types import Params


@dataclasses.dataclass(frozen=True)
class Trainee:
    """A model as a stage trains it. `model` takes `params`, and also the model's own parameters, so that a reference shares them."""

    model: Model
    params: Params
    run: Run
    lora: LoRA | None

    def whole(self, params: Params) -> Params:
        """The model's own parameters of trained ones: adapters merged into the weights, everything else as it is."""
        if self.lora is None:
            return params
        lora = self.lora
        return compile_function(lambda params: merged(params, lora), self.run.mesh)(params)


def trainee(run: Run, stage: str, model: Model, params: Params) -> Trainee:
    """What a stage of this run trains, beginning with these parameters."""
    lora = run.experiment.lora
    if lora is None:
        return Trainee(model, params, run, None)
    start = place(adapted(params, lora, jax.random.fold_in(run.key(stage), 1)), run.mesh)
    return Trainee(with_lora(model, lora), start, run, lora)
