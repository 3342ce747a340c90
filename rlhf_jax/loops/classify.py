"""Classification: an encoder learns which class a text is of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from rlhf_jax.config import ModelConfig, Optim
from rlhf_jax.data.batching.batches import evaluation_batches, label_batches, pad_labels
from rlhf_jax.data.erasure.seen import seen_from_the_start
from rlhf_jax.data.schema import Classified
from rlhf_jax.data.tokens.texts import Texts
from rlhf_jax.eval.classification import class_figures
from rlhf_jax.loops.adapters import trainee
from rlhf_jax.loops.ahead import Ahead
from rlhf_jax.loops.run import Advanced, Run, run_stage
from rlhf_jax.loops.sft import fresh_state, make_evaluation
from rlhf_jax.loops.sources import load_examples, note_seen
from rlhf_jax.losses.classification import class_loss
from rlhf_jax.models import Model, build_model
from rlhf_jax.models.params import carry_over, count_parameters
from rlhf_jax.processes import on_host
from rlhf_jax.sharding import place_batch
from rlhf_jax.train import TrainState, make_step
from rlhf_jax.train.optimizer import make_optimizer
from rlhf_jax.types import LossFn, Params, TokenBatch


@dataclasses.dataclass(frozen=True)
class Classification:
    """What a classifier has to show: figures, what a calibration plot needs, and held-out texts with what was said of them."""

    figures: dict[str, float]
    calibration: dict[str, list[float]]
    samples: list[dict[str, Any]]


def make_class_step(model: Model, optim: Optim) -> tuple[LossFn, Callable]:
    """(loss, pure update) of a classifier."""
    loss = partial(class_loss, class_logits=model.class_logits)
    return loss, make_step(loss, make_optimizer(optim), microbatches=optim.microbatches)


def classifier_start(run: Run, shape: ModelConfig, trunk: Params) -> Params:
    """The classifier's first parameters: a trunk with fresh heads."""
    return carry_over(trunk, run.programs.maker(lambda: build_model(shape).init)(run.key("classify")))


def run_classify(run: Run, trunk: Params, texts: Texts) -> Classification:
    """Trains the experiment's classifier from a trunk, and measures it on held-out texts, if there are any."""
    experiment = run.experiment
    config, shape = experiment.classify, experiment.classifier_shape
    assert config is not None and shape is not None, "called for experiments with a classify stage"
    examples = load_examples(run, config.data, Classified)
    note_seen(run, "classify", seen_from_the_start(examples.records))
    parts, length, pad = examples.encoded(texts), experiment.text.length, texts.tokenizer.pad
    batches = label_batches(parts, config.optim.rows, length, pad, experiment.seed)
    run.note_batches("classify", batches)
    start = classifier_start(run, shape, trunk)
    begun = trainee(run, "classify", build_model(shape), start)
    make = partial(make_class_step, begun.model)
    step = run.programs.step(lambda optim: make(optim)[1], config.optim)

    def advance(state: TrainState, number: int) -> Advanced:
        batch = run.batch(batches, number)
        state, metrics = step(state, batch)
        return Advanced(state, metrics, batch)

    held_out = pad_labels(texts.encode(examples.held_out), length, pad) if examples.held_out else None
    measure = None
    if held_out is not None:
        rows = experiment.evaluation.rows
        measure = make_evaluation(run, held_out, rows, lambda optim: make(optim)[0], config.optim)

    def programs(ahead: Ahead, state: TrainState) -> None:
        ahead(step, state, run.batch(batches, 0))
        if measure is not None:
            measure.ask(ahead, state.params)

    state = run_stage(
        run,
        "classify",
        fresh_state(run, begun.params, config.optim),
        advance,
        config.optim.total,
        programs=programs,
        evaluate=None if measure is None else lambda state: measure(state.params),
        eval_every=config.eval_every,
        show=("loss", "accuracy"),
    )
    known = {
        "classify/parameters": float(count_parameters(start)),
        "classify/rejected_rows": float(examples.rejected),
    }
    if held_out is None:
        return Classification(known, {}, [])
    logits = class_logits_of(run, begun.model, state.params, held_out.text)
    actual, names = np.asarray(held_out.label).astype(np.int64), config.labels
    predicted = np.argmax(logits, axis=1)
    probability = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    found = class_figures(predicted, actual, len(names))
    figures = {
        "accuracy": found.accuracy,
        "macro_precision": found.macro_precision,
        "macro_recall": found.macro_recall,
        "macro_f1": found.macro_f1,
        "commonest": float(found.support.max() / found.support.sum()),
        "texts": float(len(actual)),
        **{f"f1_{name}": float(value) for name, value in zip(names, found.f1, strict=True)},
    }
    calibration = {
        "confidence": probability.max(axis=1).tolist(),
        "right": (predicted == actual).astype(float).tolist(),
    }
    shown = list(examples.held_out)[: experiment.evaluation.samples_shown]
    samples = [
        {"prompt": record.text, "label": record.label, "predicted": names[predicted[place]]}
        for place, record in enumerate(shown)
        if isinstance(record, Classified)
    ]
    return Classification(known | {f"classify/{name}": value for name, value in figures.items()}, calibration, samples)


def class_logits_of(run: Run, model: Model, params: Params, data: TokenBatch) -> np.ndarray:
    """The logits of each row of a padded data set, [N, C]."""
    program = run.programs.function(lambda: model.class_logits)
    batches = evaluation_batches(data, run.experiment.evaluation.rows)
    rows = [on_host(program(params, place_batch(batch, run.mesh))) for batch in batches]
    return np.concatenate(rows)[: len(data.tokens)]
