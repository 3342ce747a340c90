"""Tiny random encoders made by transformers, with every head, and how far ours are from them."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from builders import moved_left, right_padded
from families import (
    LENGTH,
    LENGTHS,
    SIZES,
    VOCAB,
    Pair,
    gradient_in_our_layout,
    random_model,
    scratch,
    tensor,
    worst_error,
)

from rlhf_jax.models import Model, build_model
from rlhf_jax.models.convert.load import load_pretrained
from rlhf_jax.models.convert.save import save_pretrained
from rlhf_jax.types import Params, TokenBatch

MASKED, CLASSIFIER = transformers.AutoModelForMaskedLM, transformers.AutoModelForSequenceClassification
BERT = ("BertConfig", SIZES | {"type_vocab_size": 3})
ROBERTA = ("RobertaConfig", SIZES | {"type_vocab_size": 1, "max_position_embeddings": LENGTH + 2})
LABELS = {"id2label": {0: "ask", 1: "sum up", 2: "write"}, "label2id": {"ask": 0, "sum up": 1, "write": 2}}

ENCODERS: dict[str, tuple[Any, tuple[str, dict[str, Any]], dict[str, Any]]] = {
    "BERT, masked": (MASKED, BERT, {}),
    "BERT, masked, untied, another activation": (
        MASKED,
        BERT,
        {"tie_word_embeddings": False, "hidden_act": "gelu_new"},
    ),
    "BERT, 1 label": (CLASSIFIER, BERT, {"num_labels": 1}),
    "BERT, 3 labels": (CLASSIFIER, BERT, LABELS),
    "RoBERTa, masked": (MASKED, ROBERTA, {}),
    "RoBERTa, masked, untied": (MASKED, ROBERTA, {"tie_word_embeddings": False}),
    "RoBERTa, 1 label": (CLASSIFIER, ROBERTA, {"num_labels": 1}),
    "RoBERTa, 3 labels": (CLASSIFIER, ROBERTA, LABELS),
}


@functools.cache
def encoder_pair(name: str) -> Pair:
    """The tiny encoder of this name."""
    build, (kind, settings), more = ENCODERS[name]
    return saved_pair(name, random_model(getattr(transformers, kind)(**settings, **more), build))


def saved_pair(name: str, theirs: Any) -> Pair:
    """A model of transformers and ours, read from what it saved."""
    folder = scratch() / name
    theirs.save_pretrained(folder)
    ours = load_pretrained(folder)
    return Pair(theirs, folder, ours, build_model(ours.config))


def outputs_of(model: Model, params: Params, batch: TokenBatch) -> jax.Array:
    """What the head gives: logits [B, T, V], class logits [B, C], or scores as [B, 1]."""
    match model.config.head:
        case "lm":
            return model.logits(params, batch)
        case "classes":
            return model.class_logits(params, batch)
    return model.scores(params, batch)[:, None]


@functools.cache
def compiled(name: str) -> Any:
    """`outputs_of` this encoder, compiled."""
    return jax.jit(functools.partial(outputs_of, encoder_pair(name).model))


def their_outputs(model: Any, batch: TokenBatch) -> torch.Tensor:
    """The logits of transformers. BERT is told positions; RoBERTa counts what is not its padding id, which stands in the padding."""
    positions = {"position_ids": tensor(batch.positions)} if model.config.model_type == "bert" else {}
    return model(tensor(batch.tokens), attention_mask=tensor(np.asarray(batch.segments) != 0), **positions).logits


def rows_of(lengths: list[int], width: int) -> TokenBatch:
    """Texts without the ids of padding, which are all that stands behind them."""
    batch = right_padded(lengths, width, vocab=VOCAB)
    return dataclasses.replace(batch, tokens=jnp.where(batch.segments != 0, 3 + batch.tokens % (VOCAB - 3), 1))


def real(outputs: Any, batch: TokenBatch) -> np.ndarray:
    """Of logits per token, those of real ones, row after row; of outputs per row, all."""
    outputs = np.asarray(outputs)
    return outputs[np.asarray(batch.segments) != 0] if outputs.ndim == 3 else outputs


def outputs_difference(name: str) -> float:
    """The largest difference of a logit, over whole, right-padded and left-padded rows.

    The classifiers of transformers read the first column, padding or not, so that left-padded rows are held against right-padded ones.
    """
    both, gaps = encoder_pair(name), []
    for batch in (rows_of([20, 20], 20), rows_of(LENGTHS, 20)):
        with torch.no_grad():
            theirs = real(their_outputs(both.theirs, batch), batch)
        gaps += [
            np.abs(real(compiled(name)(both.ours.params, b), b) - theirs).max() for b in (batch, moved_left(batch))
        ]
        if both.ours.config.head == "lm":
            with torch.no_grad():
                left = real(their_outputs(both.theirs, moved_left(batch)), moved_left(batch))
            gaps.append(np.abs(left - theirs).max())
    return float(max(gaps))


def packed_difference_of(name: str) -> float:
    """The largest difference between two texts in one row and in rows of their own; of outputs per row, of the first text's."""
    apart, both = rows_of([9, 11], 20), encoder_pair(name)
    tokens = np.asarray(apart.tokens)
    together = TokenBatch(
        jnp.asarray(np.concatenate([tokens[:1, :9], tokens[1:, :11]], axis=1)),
        jnp.asarray([[*range(9), *range(11)]], jnp.int32),
        jnp.asarray([[1] * 9 + [2] * 11], jnp.int32),
        jnp.ones((1, 20), bool),
    )
    rows, row = (real(compiled(name)(both.ours.params, batch), batch) for batch in (apart, together))
    return float(np.abs(rows[: len(row)] - row).max())


def encoder_gradient_error(name: str) -> float:
    """|ours - theirs| / |theirs| of the gradient of a random sum of the outputs, the worst parameter's."""
    both, batch = encoder_pair(name), rows_of(LENGTHS, 20)
    shape = jax.eval_shape(compiled(name), both.ours.params, batch).shape
    weights = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    if len(shape) == 3:
        weights *= np.asarray(batch.segments)[:, :, None] != 0

    def loss(params):
        return jnp.sum(weights * outputs_of(both.model, params, batch)) / weights.size

    both.theirs.zero_grad()
    ((torch.tensor(weights) * their_outputs(both.theirs, batch)).sum() / weights.size).backward()
    return worst_error(jax.jit(jax.grad(loss))(both.ours.params), gradient_in_our_layout(both))


@functools.cache
def exported_encoder(name: str) -> Path:
    """The tiny encoder, read and written by us."""
    folder, ours = scratch() / f"{name} exported", encoder_pair(name).ours
    save_pretrained(folder, ours.config, ours.params, family=ours.family, labels=ours.labels)
    return folder


def encoder_export_difference(name: str) -> float:
    """The largest difference of a logit between their model and the one that transformers reads from our export."""
    both, batch = encoder_pair(name), rows_of(LENGTHS, 20)
    again = type(both.theirs).from_pretrained(exported_encoder(name)).eval()
    with torch.no_grad():
        gap = their_outputs(again, batch) - their_outputs(both.theirs, batch)
    return float(np.abs(real(gap.numpy(), batch)).max())
