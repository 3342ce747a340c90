"""Classifiers: which of several classes a text is of."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rlhf_jax.losses.reward import weighted_mean
from rlhf_jax.types import Aux, LabelBatch, Params, TokenBatch

ClassFn = Callable[[Params, TokenBatch], jax.Array]
"""(params, batch) -> logits of the classes, [B, C]."""


def class_loss(params: Params, batch: LabelBatch, *, class_logits: ClassFn) -> tuple[jax.Array, Aux]:
    """Cross-entropy of the class that each text is of, nats per text: L = - sum_i w_i log p(y_i | x_i) / sum_i w_i."""
    logits, actual = class_logits(params, batch.text), batch.label.astype(jnp.int32)
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), actual[:, None], axis=1)[:, 0]
    loss = weighted_mean(losses, batch.weight)
    right = (jnp.argmax(logits, axis=-1) == actual).astype(jnp.float32)
    metrics = {"loss": loss, "accuracy": weighted_mean(right, batch.weight)}
    return loss, Aux(weight=jnp.sum(batch.weight), metrics=metrics)
