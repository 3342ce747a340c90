"""Supervised fine-tuning."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.config import Optim
from rlhf_jax.data.batching.batches import evaluation_batches, packed_batches, pad_right, token_batches
from rlhf_jax.data.erasure.seen import seen_by
from rlhf_jax.data.tokens.texts import Texts
from rlhf_jax.frozen import join_frozen, split_frozen
from rlhf_jax.loops.adapters import trainee
from rlhf_jax.loops.ahead import Ahead
from rlhf_jax.loops.run import Advanced, Run, run_stage
from rlhf_jax.loops.sources import IMITATED, load_examples, note_seen
from rlhf_jax.losses.sft import sft_loss
from rlhf_jax.models import Model
from rlhf_jax.sharding import place_batch
from rlhf_jax.train import TrainState, init_state, make_step
from rlhf_jax.train.optimizer import make_optimizer
from rlhf_jax.types import LossFn, Params, TokenBatch


def weighted_average(parts: list[tuple[Mapping[str, jax.Array], jax.Array]]) -> dict[str, float]:
    """Metrics of several batches as one: means weighted by the batches' weights."""
    weights = np.array([float(weight) for _, weight in parts])
    total = max(weights.sum(), 1e-9)
    names = parts[0][0]
    return {name: float(np.dot(weights, [float(metrics[name]) for metrics, _ in parts]) / total) for name in names}


@dataclasses.dataclass(frozen=True)
class Measure:
    """params -> metrics of a loss over a padded data set, every example once."""

    program: Callable
    batches: Callable[[], Iterable[Any]]  # the data, on the devices

    def __call__(self, params: Params) -> dict[str, float]:
        return weighted_average([self.program(params, batch) for batch in self.batches()])

    def ask(self, ahead: Ahead, params: Params) -> None:
        """Has the program compiled."""
        ahead(self.program, params, next(iter(self.batches())))


def make_evaluation(run: Run, data, rows: int, make_loss: Callable[..., LossFn], *configs) -> Measure:
    """The measure of the loss `make_loss(*configs)` over a padded data set."""

    def make(*configs):
        loss = make_loss(*configs)

        def measured(params: Params, batch):
            _, aux = loss(params, batch)
            return aux.metrics, aux.weight

        return measured

    # Twice at most: of a model with adapters, and of what they were merged into.
    program = run.programs.function(make, *configs, programs=2)
    return Measure(program, lambda: (place_batch(batch, run.mesh) for batch in evaluation_batches(data, rows)))


def fresh_state(run: Run, params: Params, optim: Optim, *, ema: bool = False) -> TrainState:
    """The training state of these parameters, laid on the run's mesh."""
    live, frozen = split_frozen(params)
    # Told where its parts live, each device makes its own: moments are never whole on one of them.
    make = run.programs.maker(lambda optim: partial(init_state, tx=make_optimizer(optim), ema=ema), optim)
    state = make(live)
    averaged = None if state.ema is None else join_frozen(state.ema, frozen)
    return dataclasses.replace(state, params=join_frozen(state.params, frozen), ema=averaged)


def make_sft_step(model: Model, optim: Optim) -> tuple[LossFn, Callable]:
    """(loss, pure update) of SFT."""
    loss = partial(sft_loss, logprobs=model.logprobs)
    return loss, make_step(loss, make_optimizer(optim), microbatches=optim.microbatches)


def counted_sft_step(model: Model, optim: Optim) -> Callable:
    """The update of SFT, which also counts the tokens that are there."""
    _, update = make_sft_step(model, optim)

    def counted(state: TrainState, batch: TokenBatch) -> tuple[TrainState, dict]:
        state, metrics = update(state, batch)
        return state, {**metrics, "real_tokens": jnp.sum(batch.segments != 0)}

    return counted


def run_sft(
    run: Run, model: Model, params: Params, texts: Texts
) -> tuple[Params, Callable[[Params], dict[str, float]] | None]:
    """(parameters after the experiment's SFT stage, metrics of any policy on its held-out demonstrations, if there are any).

    The held-out loss is measured before, during and after.
    """
    experiment = run.experiment
    config = experiment.sft
    assert config is not None, "called for experiments with an SFT stage"
    examples = load_examples(run, config.data, IMITATED, together=True)
    encoded, length, pad = examples.encoded(texts), experiment.text.length, texts.tokenizer.pad
    if config.pack_length is None:
        buckets = experiment.text.buckets
        batches = token_batches(encoded, config.optim.rows, length, pad, experiment.seed, buckets=buckets)
    else:
        how = config.packing
        batches = packed_batches(encoded, config.optim.rows, config.pack_length, pad, experiment.seed, length, how=how)
    note_seen(run, "sft", seen_by(examples.records, examples.counts(texts), batches, config.optim.total))
    run.note_batches("sft", batches)
    run.noted["sft/rejected_rows"] = float(examples.rejected)
    begun = trainee(run, "sft", model, params)
    step = run.programs.step(partial(counted_sft_step, begun.model), config.optim, programs=batches.lengths)

    def advance(state: TrainState, number: int) -> Advanced:
        batch = run.batch(batches, number)
        state, metrics = step(state, batch)
        return Advanced(state, metrics, batch)

    measure = None
    if examples.held_out:
        held_out = pad_right(texts.encode(examples.held_out), experiment.text.length, texts.tokenizer.pad)
        # A model with adapters takes its own parameters too.
        rows, logprobs = experiment.evaluation.rows, begun.model.logprobs
        measure = make_evaluation(run, held_out, rows, lambda: partial(sft_loss, logprobs=logprobs))

    def programs(ahead: Ahead, state: TrainState) -> None:
        for number in batches.firsts(config.optim.total):
            ahead(step, state, run.batch(batches, number))
        if measure is not None:
            measure.ask(ahead, state.params)

    state = run_stage(
        run,
        "sft",
        fresh_state(run, begun.params, config.optim),
        advance,
        config.optim.total,
        programs=programs,
        evaluate=None if measure is None else lambda state: measure(state.params),
        eval_every=config.eval_every,
        show=("nll",),
    )
    return begun.whole(state.params), measure
