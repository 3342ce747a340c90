"""The checks that apply to a checkpoint and a tokenizer of the user's."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from rlhf_jax.data.tokens.tokenizer import find_tokenizer
from rlhf_jax.doctor.report import Check, Examination, at_most, equal, reported
from rlhf_jax.doctor.rollouts import ROWS, TEMPERATURES, against_itself, keys_of, prompts_of, sampler
from rlhf_jax.doctor.subjects import largest_difference, moved_left, right_padded
from rlhf_jax.doctor.texts import of_tokenizer
from rlhf_jax.models import build_model
from rlhf_jax.models.convert import find_checkpoint

PROMPT, RESPONSE = 16, 48
# Rounding grows with the width of a model and the size of its logits; a mistake is a thousand times larger.
SAME = 1e-4


def examinations(folder: Path) -> tuple[Examination, ...]:
    """What can be asked of the checkpoint and the tokenizer in this folder.

    Raises: FileNotFoundError or ValueError where one of them is missing or cannot be read.
    """
    path, config, params = find_checkpoint(folder)
    tokenizer = find_tokenizer(folder)
    params = jax.tree.map(jnp.asarray, params)
    name = path.name
    prompt = min(PROMPT, config.max_length // 2)
    response = min(RESPONSE, config.max_length - prompt)

    def tokens() -> Iterator[Check]:
        """The tokenizer."""
        yield from of_tokenizer("tokenizer", tokenizer)
        fits = tokenizer.vocab_size <= config.vocab
        yield equal(
            f"{name}: its vocabulary of {config.vocab} has room for the tokenizer's {tokenizer.vocab_size}", fits, True
        )

    def rollouts() -> Iterator[Check]:
        """Sampler and trainer on the checkpoint."""
        for dtype in ("float32", "bfloat16"):
            model = build_model(dataclasses.replace(config, dtype=dtype, head="lm"))
            write = sampler(model, response, (tokenizer.eos,))
            measure = jax.jit(partial(against_itself, policy=model))
            prompts = prompts_of(config.vocab, prompt)
            found = [measure(params, write(params, prompts, keys_of(), t)) for t in TEMPERATURES]
            worst = {figure: max(float(values[figure]) for values in found) for figure in found[0]}
            gap = f"{name}: sampler's log-probs (cached) - trainer's, {dtype}, nats, {ROWS} responses of up to {response} tokens"
            if dtype == "bfloat16":
                yield reported(gap, worst["sampler"])
                continue
            yield at_most(gap, worst["sampler"], SAME)
            yield at_most(
                f"{name}: KL(policy, policy) by k1, k2, k3, exact",
                max(worst[k] for k in ("k1", "k2", "k3", "exact")),
                SAME,
            )
            yield at_most(f"{name}: PPO ratio - 1 on the first minibatch", worst["ratio"], SAME)

    def padding() -> Iterator[Check]:
        """Padding on either side of the checkpoint's texts."""
        model = build_model(dataclasses.replace(config, head="lm"))
        batch = right_padded([max(prompt - row % 8, 3) for row in range(ROWS)], prompt, vocab=config.vocab)
        logprobs = jax.jit(model.logprobs)
        left = moved_left(batch)
        right_there, left_there = (
            jnp.sum(jnp.where(b.loss_mask, logprobs(params, b, 1.0), 0.0), axis=1) for b in (batch, left)
        )
        yield at_most(
            f"{name}: log-prob of a text, left-padded against right-padded",
            largest_difference(right_there, left_there),
            SAME,
        )

    return tokens, rollouts, padding
