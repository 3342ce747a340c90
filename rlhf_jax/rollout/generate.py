"""Generation: prompts are read once, then a compiled loop writes one token a turn to every response that is being written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from rlhf_jax.models.api import Model
from rlhf_jax.models.cache import names_of
from rlhf_jax.models.params import in_dtype
from rlhf_jax.rollout.sampling import penalised, sample_tokens
from rlhf_jax.rollout.slots import Queue, Responses, Slots, no_responses, open_slots, put_down, read_prompts, seat
from rlhf_jax.sharding import alone, in_one_piece, in_pieces, over_rows, pieces
from rlhf_jax.types import Params, Rollout, TokenBatch

WORTH = 8
"""One in so many slots free is worth that those which wait are let in."""


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
    slots: int | None = None,
    repetition_penalty: Float[Array, ""] | float | None = None,
    begin: Sequence[int] = (),
    stop_table: Int[np.ndarray, "S V"] | None = None,
) -> Rollout:
    """Responses of up to `new_tokens` tokens to left-padded prompts [P, W]; a row ends with its first token in `stop`.

    There are as many as keys: B / P to each prompt, side by side, which share what was read of it. With `slots` so many are written at
    once, and where some have ended others begin; tokens and log-probs are the same, to rounding. On a mesh each device has slots and
    responses of its own.

    Comes out as [B, W + new_tokens]: the stop token belongs to the response; what follows it is padding by `segments` (token id 0),
    whatever ids the tokenizer uses. `logprobs` are those of the distribution sampled from.

    Of that, tokens which stand in the prompt or the response already are made less likely by the `repetition_penalty`; an encoder-decoder
    writes no prompt. The tokens in `begin` come first, certain (log-prob 0). With a `stop_table` a response also ends with the token that
    completes one of its texts (rollout/stop_texts.py).

    Weights are brought before into the dtype in which the model computes, and with `gather_once` gathered. Source: Touvron et al. 2023
    (arXiv:2307.09288), section 3.2.3: under FSDP generation was about twenty times slower without that.

    Raises: ValueError where the prompts do not divide the keys, slots do not lie on the devices that the responses lie on, or a table has
    another vocabulary.
    """
    rows, asked = keys.shape[0], prompts.tokens.shape[0]
    at_once = rows if slots is None else min(slots, rows)
    if rows % asked:
        raise ValueError(f"{rows} keys for {asked} prompts; each prompt must have as many")
    if stop_table is not None and stop_table.shape[1] != model.config.vocab:
        raise ValueError(f"a stop_table of {stop_table.shape[1]} tokens for a model of {model.config.vocab}")
    devices = pieces("batch", rows)
    if pieces("batch", at_once) != devices:
        raise ValueError(f"slots={slots}; the {rows} responses lie on {devices} devices, which must divide the slots")
    repeated = jax.tree.map(lambda x: jnp.repeat(x, rows // asked, axis=0), prompts)
    # Prompts that are not on the devices of their responses are read for each of these.
    read = prompts if pieces("batch", asked) == devices else repeated
    share = Fraction(at_once, rows)
    manner = Manner(new_tokens, tuple(stop), choose, repetition_penalty, tuple(begin), stop_table)
    write = partial(_write, model=model, manner=manner, share=share)

    def answered(params: Params) -> Responses:
        if in_pieces() or not alone("batch", rows):
            return write(params, temperature, read, keys)
        # Each device has all weights, and goes on by itself: none waits for another at every token.
        return over_rows(write, names_of, read, keys, whole=(params, jnp.asarray(temperature)))

    # Once for all tokens: a turn reads all weights, and does little else.
    params = in_dtype(params, model.config.dtype)
    if not model.config.gather_once:
        out = answered(params)
    else:
        with in_one_piece(params) as whole:
            out = answered(whole)
    return join(repeated, out.tokens, out.logprobs, out.written, out.finished, temperature)


@dataclasses.dataclass(frozen=True)
class Manner:
    """How responses are written: from the arguments of `generate`."""

    new_tokens: int
    stop: tuple[int, ...]
    choose: Callable
    repetition_penalty: Float[Array, ""] | float | None
    begin: tuple[int, ...]
    stop_table: Int[np.ndarray, "S V"] | None

    def token(self, s: Slots, logits: Float[Array, "S V"], temperature) -> tuple[Int[Array, "S"], Float[Array, "S"]]:
        """(the next token of each slot, its log-prob)."""
        text = s.text
        if self.repetition_penalty is not None:
            written = jnp.where(text.written, text.tokens, logits.shape[1])
            logits = penalised(logits, jnp.concatenate([s.prompt, written], axis=1), self.repetition_penalty)
        token, logprob = self.choose(logits, s.key, text.count, temperature)
        if self.begin:
            given = text.count < len(self.begin)
            first = jnp.asarray(self.begin, token.dtype)[jnp.minimum(text.count, len(self.begin) - 1)]
            token, logprob = jnp.where(given, first, token), jnp.where(given, 0.0, logprob)
        return token, logprob

    def ended(self, s: Slots, token: Int[Array, "S"]) -> tuple[Int[Array, "S"], Bool[Array, "S"]]:
        """(how much of a text that ends it stands at the end of each slot behind this token, whether the token ends it)."""
        ends = jnp.any(token[:, None] == jnp.asarray(self.stop, token.dtype)[None, :], axis=1)
        if self.stop_table is None:
            return s.matched, ends
        matched = jnp.asarray(self.stop_table)[s.matched, token].astype(s.matched.dtype)
        return matched, ends | (matched == len(self.stop_table) - 1)


def _write(
    params: Params,
    temperature: Float[Array, ""] | float,
    prompts: TokenBatch,
    keys: Key[Array, "B"],
    *,
    model: Model,
    manner: Manner,
    share: Fraction,
) -> Responses:
    """The responses, this share of them at once."""
    rows, width, new_tokens = keys.shape[0], prompts.tokens.shape[1], manner.new_tokens
    slots = int(rows * share)
    devices = pieces("batch", slots)
    own = slots // devices  # slots of each device
    turning = model.ready(params, own)
    enough = max(own // WORTH, 1)
    # What ends the loop is that all responses have; no more turns than these are needed, whatever lengths they have.
    turns = new_tokens if slots == rows else new_tokens + (new_tokens + 1) * rows // (slots - devices * (enough - 1))

    def draw(s: Slots, hidden: jax.Array) -> Slots:
        """The next token of every response that goes on."""
        text = s.text
        token, logprob = manner.token(s, model.unembed(turning, hidden), temperature)
        matched, ends = manner.ended(s, token)
        here = s.alive[:, None] & (jnp.arange(new_tokens)[None, :] == text.count[:, None])
        stopped = s.alive & ends
        text = Responses(
            tokens=jnp.where(here, token[:, None], text.tokens),
            logprobs=jnp.where(here, logprob[:, None], text.logprobs),
            count=text.count + s.alive,
            finished=text.finished | stopped,
        )
        goes_on = s.alive & ~stopped & (text.count < new_tokens)
        position = s.position + s.alive
        fresh = jnp.zeros_like(s.fresh)
        return dataclasses.replace(s, text=text, alive=goes_on, fresh=fresh, position=position, matched=matched)

    def advance(turn: jax.Array, s: Slots) -> tuple[jax.Array, Slots]:
        """The last token of every response is read, and the next one drawn."""
        last = jnp.take_along_axis(s.text.tokens, jnp.maximum(s.text.count - 1, 0)[:, None], axis=1)[:, 0]
        # All write to one column, and when the last was written, to the first again: no response takes more turns than there are.
        column = width + turn % new_tokens
        hidden, cache = model.decode(turning, last, s.position, column, s.alive & ~s.fresh, s.cache)
        s = dataclasses.replace(s, cache=cache)
        return turn + 1, draw(s, jnp.where(s.fresh[:, None], s.hidden, hidden))

    def until_free(turn: jax.Array, s: Slots, waiting: jax.Array) -> tuple[jax.Array, Slots]:
        """Turns, until all have ended, or enough on a device where others wait."""

        def goes_on(state):
            turn, s = state
            free = jnp.sum(~s.alive.reshape(devices, own), axis=1)
            full = ~jnp.any(jnp.any(waiting.reshape(devices, -1), axis=1) & (free >= enough))
            return (turn < turns) & jnp.any(s.alive) & full

        return jax.lax.while_loop(goes_on, lambda state: advance(*state), (turn, s))

    def unfinished(state: tuple[jax.Array, Slots, Queue]) -> jax.Array:
        turn, s, queue = state
        return (turn < turns) & (jnp.any(s.alive) | jnp.any(queue.waiting))

    def refill(state: tuple[jax.Array, Slots, Queue]) -> tuple[jax.Array, Slots, Queue]:
        turn, s, queue = state
        turn, s = until_free(turn, s, queue.waiting)
        return turn, *over_rows(partial(seat, count=enough), names_of, s, queue)

    queue, more = _all_waiting(params, prompts, keys, model=model, new_tokens=new_tokens, slots=slots)
    s, queue = over_rows(partial(open_slots, share=share, more=more), names_of, queue)
    turn, s = jnp.int32(0), draw(s, s.hidden)
    if slots == rows:
        _, s = until_free(turn, s, queue.waiting)
    else:
        _, s, queue = jax.lax.while_loop(unfinished, refill, (turn, s, queue))
    return over_rows(put_down, names_of, s, queue)


def _all_waiting(
    params: Params, prompts: TokenBatch, keys: Key[Array, "B"], *, model: Model, new_tokens: int, slots: int
) -> tuple[Queue, Any]:
    """(all responses, whose prompts are read; by how much the cache of a slot is larger than what was read, None: it is that)."""
    rows, width = keys.shape[0], prompts.tokens.shape[1]
    # Where none waits, what is read of the prompts lies where it stays, for all responses to each where the model can.
    together = rows // prompts.tokens.shape[0] if slots == rows and model.fork is not None else 1
    length = width if slots < rows or together > 1 else width + new_tokens
    hidden, read = read_prompts(lambda asked: model.prefill(params, asked, length), prompts, slots)
    position = jnp.sum(prompts.segments != 0, axis=1, dtype=jnp.int32) - 1
    written = (prompts.segments != 0) & (model.config.kind == "decoder")
    known = jnp.where(written, prompts.tokens, model.config.vocab)
    queue = Queue(hidden, known, position, read, keys, jnp.ones((rows,), bool), no_responses(rows, new_tokens))
    if together > 1:
        assert model.fork is not None
        return dataclasses.replace(queue, cache=model.fork(read, together, new_tokens)), None
    cache = jax.eval_shape(
        lambda params, prompts: model.prefill(params, prompts, width + new_tokens)[1], params, prompts
    )
    more = jax.tree.map(
        lambda whole, part: tuple(a - b for a, b in zip(whole.shape, part.shape, strict=True)), cache, read
    )
    return queue, more


@dataclasses.dataclass(frozen=True)
class Ending:
    """How responses end: with `eos`, or cut behind the first `token` that has at least `after` response tokens before it."""

    eos: int
    token: int | None = None
    after: int = 0


def responses(model: Model, ending: Ending, new_tokens: int, **how: Any) -> Callable[..., Rollout]:
    """The pure function (params, prompts, keys, temperature) -> rollout of responses that end this way; `how` goes to `generate`."""
    write = partial(generate, model=model, new_tokens=new_tokens, stop=(ending.eos,), **how)
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
        columns=(prompts.tokens.shape[1], tokens.shape[1]),
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
