"""Reward models: from comparisons, sampled or read, and from labelled texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from rlhf_jax.config import Optim
from rlhf_jax.data.batching.batches import (
    Mixture,
    evaluation_batches,
    label_batches,
    pad_labels,
    pad_pairs,
    preference_batches,
)
from rlhf_jax.data.schema import Labelled
from rlhf_jax.data.tokens.texts import Texts
from rlhf_jax.loops.adapters import trainee
from rlhf_jax.loops.ahead import Ahead
from rlhf_jax.loops.run import Advanced, Run, run_stage
from rlhf_jax.loops.sft import fresh_state, make_evaluation
from rlhf_jax.losses.reward import comparison_loss, label_loss
from rlhf_jax.models import Model
from rlhf_jax.processes import on_host
from rlhf_jax.sharding import place_batch
from rlhf_jax.train import TrainState, make_step
from rlhf_jax.train.optimizer import make_optimizer
from rlhf_jax.types import LossFn, Params, TokenBatch


def make_reward_step(model: Model, optim: Optim, *, labelled: bool = False) -> tuple[LossFn, Callable]:
    """(loss, pure update) of a reward model on comparisons, or on labelled texts."""
    loss = partial(label_loss if labelled else comparison_loss, scores=model.scores)
    return loss, make_step(loss, make_optimizer(optim), microbatches=optim.microbatches)


def run_reward(
    run: Run, model: Model, params: Params, texts: Texts, parts: Mixture, kind: type, held_out: Sequence
) -> Params:
    """Parameters of the reward model after its stage: `parts` and `held_out` are encoded comparisons, or labelled texts by `kind`."""
    experiment = run.experiment
    config = experiment.reward
    assert config is not None, "called for experiments with a reward stage"
    labelled = kind is Labelled
    pad_all = pad_labels if labelled else pad_pairs
    length, pad, rows = experiment.text.length, texts.tokenizer.pad, config.optim.rows
    if labelled:
        batches = label_batches(parts, rows, length, pad, experiment.seed)
    else:
        batches = preference_batches(parts, rows, length, pad, experiment.seed, buckets=experiment.text.buckets)
    run.note_batches("reward", batches)
    begun = trainee(run, "reward", model, params, adapters=config.init == "policy")
    make = partial(make_reward_step, begun.model, labelled=labelled)
    step = run.programs.step(lambda optim: make(optim)[1], config.optim, programs=batches.lengths)

    def advance(state: TrainState, number: int) -> Advanced:
        batch = run.batch(batches, number)
        state, metrics = step(state, batch)
        return Advanced(state, metrics, batch)

    measure = None
    if held_out:
        data, at_once = pad_all(held_out, length, pad), experiment.evaluation.rows
        measure = make_evaluation(run, data, at_once, lambda optim: make(optim)[0], config.optim)

    def programs(ahead: Ahead, state: TrainState) -> None:
        for number in batches.firsts(config.optim.total):
            ahead(step, state, run.batch(batches, number))
        if measure is not None:
            measure.ask(ahead, state.params)

    state = run_stage(
        run,
        "reward",
        fresh_state(run, begun.params, config.optim),
        advance,
        config.optim.total,
        programs=programs,
        evaluate=None if measure is None else lambda state: measure(state.params),
        eval_every=config.eval_every,
        show=("loss", "accuracy"),
    )
    return begun.whole(state.params)


def score_all(run: Run, model: Model, params: Params, data: TokenBatch) -> np.ndarray:
    """The reward model's score of each row of a padded data set, [N]."""
    program = run.programs.function(lambda: model.scores)
    batches = evaluation_batches(data, run.experiment.evaluation.rows)
    scores = [on_host(program(params, place_batch(batch, run.mesh))) for batch in batches]
    return np.concatenate(scores)[: len(data.tokens)]


def rescaled(params: Params, gain: float, bias: float) -> Params:
    """The reward model whose every score s has become gain * s + bias.

    They are folded into the head, so that a second call adds to the first and cannot undo it unseen.
    """
    head = params["score"]
    return params | {"score": {"kernel": head["kernel"] * gain, "bias": head["bias"] * gain + bias}}
