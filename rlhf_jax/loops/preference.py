"""Learning from comparisons without a reward model: DPO and its relatives on pairs, KTO on single replies, held to where they start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from rlhf_jax.config import Preference
from rlhf_jax.data.batching.batches import Mixture, pad_pairs, preference_batches
from rlhf_jax.data.batching.unpaired import pad_replies, reply_batches
from rlhf_jax.data.tokens.texts import Texts
from rlhf_jax.loops.adapters import trainee
from rlhf_jax.loops.ahead import Ahead
from rlhf_jax.loops.run import Advanced, Run, run_stage
from rlhf_jax.loops.sft import Measure, fresh_state, make_evaluation
from rlhf_jax.losses.preference import (
    kto_baseline,
    kto_loss,
    make_objective,
    preference_loss,
    with_baseline,
    with_reference,
)
from rlhf_jax.models import Model
from rlhf_jax.train import TrainState, make_step
from rlhf_jax.train.optimizer import make_optimizer
from rlhf_jax.types import LabelledReplies, LossFn, Params, PreferenceBatch, ReferencedLabels, ReferencedPairs


def make_preference_step(model: Model, config: Preference) -> tuple[LossFn, Callable]:
    """(loss, pure update) on what `completed` returns."""
    if config.objective == "kto":
        loss = partial(kto_loss, logprobs=model.logprobs, beta=config.beta)
    else:
        objective = make_objective(config.objective, config.beta)
        loss = partial(preference_loss, logprobs=model.logprobs, objective=objective)
    return loss, make_step(loss, make_optimizer(config.optim), microbatches=config.optim.microbatches)


def completed(
    params: Params, reference: Params, batch: PreferenceBatch | LabelledReplies, *, model: Model
) -> ReferencedPairs | ReferencedLabels:
    """The batch with what the reference thinks of it; of single replies also how far the policy is from it on replies to other prompts."""
    if isinstance(batch, PreferenceBatch):
        return with_reference(reference, batch, logprobs=model.logprobs)
    baseline, _ = kto_baseline(params, reference, batch, logprobs=model.logprobs)
    return with_baseline(reference, batch, baseline, logprobs=model.logprobs)


def run_preference(
    run: Run,
    model: Model,
    reference: Params,
    texts: Texts,
    parts: Mixture,
    held_out: Sequence,
) -> Params:
    """The policy after the experiment's preference stage, starting from and held to `reference`.

    `parts` and `held_out` are encoded pairs; for KTO they may be labelled replies.
    """
    experiment, config = run.experiment, run.experiment.preference
    assert config is not None, "called for experiments with a preference stage"
    length, pad = experiment.text.length, texts.tokenizer.pad
    if config.objective == "kto":
        batches = reply_batches(parts, config.optim.rows, length, pad, experiment.seed)
    else:
        buckets = experiment.text.buckets
        batches = preference_batches(parts, config.optim.rows, length, pad, experiment.seed, buckets=buckets)
    run.note_batches("preference", batches)
    begun = trainee(run, "preference", model, reference)
    model = begun.model
    complete = run.programs.function(lambda: partial(completed, model=model), programs=batches.lengths, rows=True)
    step = run.programs.step(lambda c: make_preference_step(model, c)[1], config, programs=batches.lengths)

    def advance(state: TrainState, number: int) -> Advanced:
        batch = complete(state.params, reference, run.batch(batches, number))
        state, metrics = step(state, batch)
        return Advanced(state, metrics, batch)

    measure = held_out_measure(run, model, held_out, length, pad) if held_out else None

    def programs(ahead: Ahead, state: TrainState) -> None:
        for number in batches.firsts(config.optim.total):
            ahead(step, state, ahead(complete, state.params, reference, run.batch(batches, number)))
        if isinstance(measure, Measure):
            measure.ask(ahead, (state.params, reference))

    state = run_stage(
        run,
        "preference",
        fresh_state(run, begun.params, config.optim),
        advance,
        config.optim.total,
        programs=programs,
        evaluate=None if measure is None else lambda state: measure((state.params, reference)),
        eval_every=config.eval_every,
        show=("loss", "accuracy", "margin"),
    )
    return begun.whole(state.params)


def held_out_measure(
    run: Run,
    model: Model,
    held_out: Sequence,
    length: int,
    pad: int,
) -> Callable[[tuple[Params, Params]], dict[str, float]]:
    """(policy, reference) -> the loss's metrics over held-out pairs or replies; z0 of KTO is that of all of them, whatever the rows."""
    experiment, config = run.experiment, run.experiment.preference
    assert config is not None
    rows, logprobs = experiment.evaluation.rows, model.logprobs
    if config.objective != "kto":
        pairs = pad_pairs(held_out, length, pad)

        def of_pairs(config: Preference):
            loss, _ = make_preference_step(model, config)
            return lambda both, batch: loss(both[0], with_reference(both[1], batch, logprobs=logprobs))

        return make_evaluation(run, pairs, rows, of_pairs, config)

    def of_replies(config: Preference):
        loss, _ = make_preference_step(model, config)

        def measured(given, batch):
            params, reference, baseline = given
            return loss(params, with_baseline(reference, batch, baseline, logprobs=logprobs))

        return measured

    def between():
        return lambda both, batch: kto_baseline(both[0], both[1], batch, logprobs=logprobs)

    replies = pad_replies(held_out, length, pad, experiment.seed)
    distance = make_evaluation(run, replies, rows, between)
    measure = make_evaluation(run, replies, rows, of_replies, config)
    return lambda both: measure((*both, np.float32(distance(both)["baseline"])))
