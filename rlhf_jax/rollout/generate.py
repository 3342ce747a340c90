"""Generation: prefill, then one token per turn of a compiled loop that ends when every row has."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from rlhf_jax.models.api import Model
from rlhf_jax.models.params import in_dtype
from rlhf_jax.rollout.sampling import sample_tokens
from rlhf_jax.sharding import in_one_piece
from rlhf_jax.types import Params, Rollout, TokenBatch


def generate(
    params: Params,
    prompts: TokenBatch,
    keys: Key[Array, "B"],
    temperature: Float[Array, ""] | float,
    *,
    model: Model,
    new_tokens: int,
    stop: Sequence[int] = (),
    choose: Callable = sample_tokens,
) -> Rollout:
    """Responses of up to `new_tokens` tokens to left-padded prompts [B, P]; a row ends with its first token in `stop`.

    Comes out as [B, P + new_tokens]: the stop token belongs to the response; what follows it is padding by `segments` (token id 0),
    whatever ids the tokenizer uses. `logprobs` are those of the distribution sampled from.

    A model with `gather_once` has its weights gathered before, in the dtype in which it computes. Source: Touvron et al. 2023
    (arXiv:2307.09288), section 3.2.3: under FSDP generation was about twenty times slower without that.
    """
    write = partial(_write, model=model, new_tokens=new_tokens, stop=stop, choose=choose)
    if not model.config.gather_once:
        return write(params, prompts, keys, temperature)
    with in_one_piece(in_dtype(params, model.config.dtype)) as whole:
        return write(whole, prompts, keys, temperature)


def _write(params, prompts, keys, temperature, *, model: Model, new_tokens: int, stop: Sequence[int], choose: Callable):
    rows, width = prompts.tokens.shape
    hidden, cache = model.prefill(params, prompts, width + new_tokens)
    next_position = jnp.sum(prompts.segments != 0, axis=1, dtype=jnp.int32)
    stops = jnp.asarray(list(stop), jnp.int32)

    def draw(hidden, column, alive):
        tokens, logprobs = choose(model.unembed(params, hidden), keys, column, temperature)
        stopped = alive & jnp.any(tokens[:, None] == stops[None, :], axis=1)
        return jnp.where(alive, tokens, 0), jnp.where(alive, logprobs, 0.0), stopped

    def put(array, column, value):
        return jax.lax.dynamic_update_slice(array, value[:, None].astype(array.dtype), (0, column))

    alive = jnp.ones((rows,), bool)
    token, logprob, stopped = draw(hidden, 0, alive)
    zeros = jnp.zeros((rows, new_tokens))
    state = {
        "column": jnp.int32(1),
        "token": token,
        "tokens": put(zeros.astype(jnp.int32), 0, token),
        "logprobs": put(zeros, 0, logprob),
        "written": put(zeros.astype(bool), 0, alive),
        "alive": alive & ~stopped,
        "finished": stopped,
        "cache": cache,
    }

    def running(s):
        return (s["column"] < new_tokens) & jnp.any(s["alive"])

    def advance(s):
        column, alive = s["column"], s["alive"]
        place = next_position + column - 1
        hidden, cache = model.decode(params, s["token"], place, width + column - 1, alive, s["cache"])
        token, logprob, stopped = draw(hidden, column, alive)
        return {
            "column": column + 1,
            "token": token,
            "tokens": put(s["tokens"], column, token),
            "logprobs": put(s["logprobs"], column, logprob),
            "written": put(s["written"], column, alive),
            "alive": alive & ~stopped,
            "finished": s["finished"] | stopped,
            "cache": cache,
        }

    out = jax.lax.while_loop(running, advance, state)
    return join(prompts, out["tokens"], out["logprobs"], out["written"], out["finished"], temperature)


@dataclasses.dataclass(frozen=True)
class Ending:
    """How responses end: with `eos`, or cut behind the first `token` that has at least `after` response tokens before it."""

    eos: int
    token: int | None = None
    after: int = 0


def responses(
    model: Model, ending: Ending, new_tokens: int, choose: Callable = sample_tokens
) -> Callable[..., Rollout]:
    """The pure function (params, prompts, keys, temperature) -> rollout of responses that end this way."""
    write = partial(generate, model=model, new_tokens=new_tokens, stop=(ending.eos,), choose=choose)
    token = ending.token
    return write if token is None else lambda *args: truncate(write(*args), token, ending.after)


def join(prompts: TokenBatch, tokens, logprobs, written, finished, temperature) -> Rollout:
    """Prompts [B, P] and responses [B, N] as one rollout [B, P + N]; `written` says which response columns are real."""
    positions = jnp.sum(prompts.segments != 0, axis=1, dtype=jnp.int32)[:, None] + jnp.arange(tokens.shape[1])[None, :]
    return Rollout(
        batch=TokenBatch(
            tokens=jnp.concatenate([prompts.tokens, tokens], axis=1),
            positions=jnp.concatenate([prompts.positions, jnp.where(written, positions, 0)], axis=1),
            segments=jnp.concatenate([prompts.segments, written.astype(jnp.int32)], axis=1),
            loss_mask=jnp.concatenate([jnp.zeros_like(prompts.loss_mask), written], axis=1),
        ),
        logprobs=jnp.concatenate([jnp.zeros(prompts.tokens.shape), logprobs], axis=1),
        finished=finished,
        temperature=jnp.asarray(temperature, jnp.float32),
    )


def truncate(rollout: Rollout, stop: int, after: int = 0) -> Rollout:
    """Responses cut behind the first `stop` token that has at least `after` response tokens before it; `finished` says who has one.

    Source: Ziegler et al. 2019, released code (truncate token 13 at or after position 16).
    """
    mask = rollout.batch.loss_mask
    place = jnp.cumsum(mask, axis=1) - mask.astype(jnp.int32)  # how many response tokens stand before this one
    stops = mask & (rollout.batch.tokens == stop) & (place >= after)
    behind = jnp.cumsum(stops, axis=1) - stops.astype(jnp.int32) > 0
    keep = mask & ~behind
    real = (rollout.batch.segments != 0) & ~(mask & behind)
    batch = dataclasses.replace(
        rollout.batch,
        tokens=jnp.where(real, rollout.batch.tokens, 0),
        positions=jnp.where(real, rollout.batch.positions, 0),
        segments=jnp.where(real, rollout.batch.segments, 0),
        loss_mask=keep,
    )
    return dataclasses.replace(
        rollout, batch=batch, logprobs=jnp.where(keep, rollout.logprobs, 0.0), finished=jnp.any(stops, axis=1)
    )
