"""Learning from comparisons without a reward model: DPO and its relatives, held to the policy they start from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from rlhf_jax.config import Preference
from rlhf_jax.data.batches import Mixture, pad_pairs, preference_batches
from rlhf_jax.data.encode import EncodedPair
from rlhf_jax.loops.run import Run, run_stage
from rlhf_jax.loops.sft import fresh_state, make_evaluation
from rlhf_jax.loops.sources import Texts
from rlhf_jax.losses.preference import make_objective, preference_loss, with_reference
from rlhf_jax.models import Model
from rlhf_jax.sharding import compile_function, compile_step, place_batch
from rlhf_jax.train import TrainState, make_step
from rlhf_jax.train.optimizer import make_optimizer
from rlhf_jax.types import LossFn, Params


def make_preference_step(model: Model, config: Preference) -> tuple[LossFn, Callable]:
    """(loss, pure update) on pairs that carry what the reference thinks of them."""
    objective = make_objective(config.objective, config.beta)
    loss = partial(preference_loss, logprobs=model.logprobs, objective=objective)
    return loss, make_step(loss, make_optimizer(config.optim), microbatches=config.optim.microbatches)


def run_preference(
    run: Run, model: Model, reference: Params, texts: Texts, parts: Mixture, held_out: Sequence[EncodedPair]
) -> Params:
    """The policy after the experiment's preference stage, starting from and held to `reference`."""
    experiment, config = run.experiment, run.experiment.preference
    assert config is not None, "called for experiments with a preference stage"
    length, pad = experiment.text.length, texts.tokenizer.pad
    batches = preference_batches(parts, config.optim.rows, length, pad, experiment.seed)
    refer = partial(with_reference, logprobs=model.logprobs)
    loss, update = make_preference_step(model, config)
    reference_program, step = compile_function(refer, run.mesh), compile_step(update, run.mesh)

    def advance(state: TrainState, number: int):
        pairs = reference_program(reference, place_batch(batches[number], run.mesh))
        state, metrics = step(state, pairs)
        return state, metrics, None

    measure = None
    if held_out:
        pairs = pad_pairs(held_out, length, pad)
        measure = make_evaluation(
            lambda both, batch: loss(both[0], refer(both[1], batch)), run, pairs, experiment.evaluation.rows
        )
    state = run_stage(
        run,
        "preference",
        fresh_state(run, reference, config.optim),
        advance,
        config.optim.total,
        evaluate=None if measure is None else lambda state: measure((state.params, reference)),
        eval_every=config.eval_every,
        show=("loss", "accuracy", "margin"),
    )
    return state.params
