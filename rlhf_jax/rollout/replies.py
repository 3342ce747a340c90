"""Whole sets of prompts answered: rollouts in batches of one shape, and their text."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from rlhf_jax.compiled import Programs
from rlhf_jax.config import EVERYTHING, Sampling
from rlhf_jax.data.batching.batches import columns_for, evaluation_batches, last_columns, pad_prompts
from rlhf_jax.data.tokens.encode import Encoded
from rlhf_jax.data.tokens.tokenizer import Tokenizer
from rlhf_jax.models.api import Model
from rlhf_jax.processes import on_host
from rlhf_jax.rollout.generate import Ending, responses
from rlhf_jax.rollout.sampling import greedy_tokens, row_keys, sample_tokens
from rlhf_jax.rollout.stop_texts import StopTexts
from rlhf_jax.sharding import place_batch
from rlhf_jax.types import Params, Rollout


def response_ids(rollout: Rollout) -> list[list[int]]:
    """The response tokens of each row, stop token included."""
    tokens, mask = on_host((rollout.batch.tokens, rollout.batch.loss_mask))
    return [tokens[row][mask[row]].tolist() for row in range(len(tokens))]


def response_texts(rollout: Rollout, tokenizer: Tokenizer) -> list[str]:
    """The text of each response, its eos left out."""
    texts = []
    for ids in response_ids(rollout):
        if ids and ids[-1] == tokenizer.eos:
            ids = ids[:-1]
        texts.append(tokenizer.decode(ids))
    return texts


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Answers prompts, `rows` at a time, with one compiled program for all of them, or for each length that their batches may have."""

    tokenizer: Tokenizer
    mesh: Mesh
    rows: int
    prompt_lengths: Sequence[int]  # columns of prompts, of which a batch has the least that hold it; shortest first
    program: Callable
    stop: StopTexts | None = None  # which are no part of a reply, nor what stands behind them

    def rollouts(
        self,
        params: Params,
        prompts: Sequence[Encoded],
        key: jax.Array,
        *,
        temperature: float = 1.0,
        sample: int = 0,
    ) -> Iterator[tuple[Rollout, np.ndarray]]:
        """(rollout, which rows count) for the prompts in order; sample number `sample` of each prompt under this key."""
        for given, counts in self.asked(prompts, key, temperature=temperature, sample=sample):
            yield self.program(params, *given), counts

    def asked(
        self,
        prompts: Sequence[Encoded],
        key: jax.Array,
        *,
        temperature: float = 1.0,
        sample: int = 0,
        length: int | None = None,
    ) -> Iterator[tuple[tuple[Any, ...], np.ndarray]]:
        """(what the program takes beside parameters, which rows count) for the prompts in order; in so many columns, if it is said."""
        batches = evaluation_batches(pad_prompts(prompts, self.prompt_lengths[-1], self.tokenizer.pad), self.rows)
        for batch, columns in zip(batches, self.columns(prompts), strict=True):
            index = np.asarray(batch.index)
            keys = row_keys(key, 0, index, np.full_like(index, sample))
            held = last_columns(batch.prompts, columns if length is None else length)
            yield (*place_batch((held, keys), self.mesh), np.float32(temperature)), index >= 0

    def columns(self, prompts: Sequence[Encoded]) -> list[int]:
        """How many columns the prompts of each batch have; rows that only fill the last one may lose their beginning in it."""
        starts = range(0, len(prompts), self.rows)
        return [columns_for(prompts[start : start + self.rows], self.prompt_lengths) for start in starts]

    def texts(self, rollout: Rollout) -> list[str]:
        """The text of each response, up to the first of those that end it."""
        texts = response_texts(rollout, self.tokenizer)
        return texts if self.stop is None else [self.stop.cut(text) for text in texts]

    def replies(self, params: Params, prompts: Sequence[Encoded], key: jax.Array, **how) -> list[str]:
        """One reply text per prompt."""
        texts = []
        for rollout, counts in self.rollouts(params, prompts, key, **how):
            texts += [text for text, real in zip(self.texts(rollout), counts, strict=True) if real]
        return texts


def make_sampler(
    model: Model,
    tokenizer: Tokenizer,
    programs: Programs,
    *,
    rows: int,
    prompt_lengths: Sequence[int],
    new_tokens: int,
    ending: Ending | None = None,
    greedy: bool = False,
    sampling: Sampling = EVERYTHING,
    slots: int | None = None,
    begin: Sequence[int] = (),
    stop: StopTexts | None = None,
) -> Sampler:
    """A sampler of replies of up to `new_tokens` tokens that end with eos, or as said; greedy ones do not depend on the key, nor on which
    tokens `sampling` lets the others be drawn from.

    Of `rows` replies as many are written at once as there are `slots`. Every reply begins with the tokens in `begin`, and ends before the
    first of the texts in `stop`.
    """
    how = {"slots": slots, "begin": begin, "stop_table": None if stop is None else stop.table}

    def make(sampling: Sampling) -> Callable[..., Rollout]:
        choose = greedy_tokens if greedy else partial(sample_tokens, sampling=sampling)
        penalty = sampling.repetition_penalty
        ends = ending or Ending(tokenizer.eos)
        return responses(model, ends, new_tokens, choose=choose, repetition_penalty=penalty, **how)

    return Sampler(tokenizer, programs.mesh, rows, prompt_lengths, programs.function(make, sampling, rows=True), stop)
