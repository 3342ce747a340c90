"""Slots, in which responses are written, and the queue of those that wait for one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from rlhf_jax.models.cache import names_of
from rlhf_jax.sharding import constrain, deal, dealt_back, pieces
from rlhf_jax.types import TokenBatch, pytree


@pytree
class Responses:
    """Responses, or as much of them as there is: `count` tokens of each, and their log-probs in nats."""

    tokens: Int[Array, "B N"]
    logprobs: Float[Array, "B N"]
    count: Int[Array, "B"]
    finished: Bool[Array, "B"]  # by a stop token or a text that ends it

    @property
    def written(self) -> Bool[Array, "B N"]:
        """Which tokens there are."""
        return jnp.arange(self.tokens.shape[1])[None, :] < self.count[:, None]


@pytree
class Slots:
    """Places in which responses are written, each at its own pace."""

    text: Responses
    row: Int[Array, "S"]  # which response stands here
    key: Key[Array, "S"]
    alive: Bool[Array, "S"]  # whether it goes on
    fresh: Bool[Array, "S"]  # whether its first token is still to be drawn, from `hidden`
    position: Int[Array, "S"]  # of its last token, in prompt and response together
    hidden: Float[Array, "S D"]  # behind its prompt
    prompt: Int[Array, "S W"]  # the ids that count as written before
    matched: Int[
        Array, "S"
    ]  # how much of a text that would end it stands at its end, as a state of `rollout/stop_texts.py`
    cache: Any


@pytree
class Queue:
    """The responses of a batch: what was read of their prompts, which of them wait, and those that are done."""

    hidden: Float[Array, "P D"]
    prompt: Int[Array, "P W"]
    position: Int[Array, "P"]  # of the last token
    cache: Any  # with columns for the prompts, and for responses where none waits: of each prompt, or forked, of each response
    key: Key[Array, "B"]
    waiting: Bool[Array, "B"]
    done: Responses


def no_responses(rows: int, new_tokens: int) -> Responses:
    """Responses of which there is nothing yet."""
    columns = jnp.zeros((rows, new_tokens))
    return Responses(columns.astype(jnp.int32), columns, jnp.zeros((rows,), jnp.int32), jnp.zeros((rows,), bool))


def read_prompts(prefill: Callable[[TokenBatch], Any], prompts: TokenBatch, at_once: int) -> Any:
    """What `prefill` makes of all prompts, which it reads in equal parts, with rows of every device, that have no fewer rows than so many.

    What is alive between layers is then that of a part; keys and values are those of all prompts.
    """
    rows = prompts.tokens.shape[0]
    devices = pieces("batch", rows)
    own = rows // devices
    parts = max((n for n in range(1, own + 1) if own % n == 0 and rows // n >= at_once), default=1)
    if parts == 1:
        return prefill(prompts)

    def joined(x: jax.Array) -> jax.Array:
        whole = dealt_back(x, _rows_axis(x[0]))
        return constrain(whole, *names_of(whole.ndim))

    return jax.tree.map(joined, jax.lax.map(prefill, deal(prompts, parts)))


def open_slots(queue: Queue, share: Fraction, more: Any) -> tuple[Slots, Queue]:
    """The first of all responses, this share of them, in slots; each part of the cache has `more` along its axes, which is empty, or None
    where it is that of all responses already."""
    rows, prompts = queue.waiting.shape[0], queue.position.shape[0]
    count = int(rows * share)

    def first(x: jax.Array, axis: int = 0) -> jax.Array:
        x = x if rows == prompts else jnp.repeat(x, rows // prompts, axis=axis)
        return jax.lax.slice_in_dim(x, 0, count, axis=axis)

    def part(x: jax.Array, more: tuple[int, ...]) -> jax.Array:
        x = first(x, _rows_axis(x))
        return jnp.pad(x, [(0, extent) for extent in more]) if any(more) else x

    everybody = jnp.ones((count,), bool)
    slots = Slots(
        text=no_responses(count, queue.done.tokens.shape[1]),
        row=jnp.arange(count, dtype=jnp.int32),
        key=queue.key[:count],
        alive=everybody,
        fresh=everybody,
        position=first(queue.position),
        hidden=first(queue.hidden),
        prompt=first(queue.prompt),
        matched=jnp.zeros((count,), jnp.int32),
        cache=queue.cache if more is None else jax.tree.map(part, queue.cache, more),
    )
    return slots, dataclasses.replace(queue, waiting=jnp.arange(rows) >= count)


def seat(slots: Slots, queue: Queue, count: int) -> tuple[Slots, Queue]:
    """Up to `count` of those that wait, in order, in slots that are free; what stood there is done."""
    rows, prompts = queue.waiting.shape[0], queue.position.shape[0]
    place = jnp.argsort(slots.alive, stable=True)[:count]
    row = rows - jnp.sum(queue.waiting, dtype=jnp.int32) + jnp.arange(count, dtype=jnp.int32)
    seated = ~slots.alive[place] & (row < rows)
    queue = _put_down(slots, queue, place, seated)
    row, prompt = jnp.minimum(row, rows - 1), jnp.minimum(row, rows - 1) // (rows // prompts)
    where = jnp.where(seated, place, slots.row.shape[0])  # beyond the last: nowhere

    def put(x: jax.Array, new: Any) -> jax.Array:
        return x.at[where].set(new, mode="drop")

    slots = Slots(
        text=jax.tree.map(lambda x: put(x, jnp.zeros((), x.dtype)), slots.text),
        row=put(slots.row, row),
        key=put(slots.key, queue.key[row]),
        alive=put(slots.alive, True),
        fresh=put(slots.fresh, True),
        position=put(slots.position, queue.position[prompt]),
        hidden=put(slots.hidden, queue.hidden[prompt]),
        prompt=put(slots.prompt, queue.prompt[prompt]),
        matched=put(slots.matched, 0),
        cache=jax.tree.map(lambda x, read: _put_columns(x, where, read, prompt), slots.cache, queue.cache),
    )
    waiting = queue.waiting.at[jnp.where(seated, row, rows)].set(False, mode="drop")
    return slots, dataclasses.replace(queue, waiting=waiting)


def put_down(slots: Slots, queue: Queue) -> Responses:
    """All responses, when none waits and those that stand in slots are done."""
    places = jnp.arange(slots.row.shape[0])
    return _put_down(slots, queue, places, jnp.ones_like(slots.alive)).done


def _put_down(slots: Slots, queue: Queue, place: Int[Array, "C"], counts: Bool[Array, "C"]) -> Queue:
    """The queue with the responses that stand in these slots as done, but for those that do not count."""
    row = jnp.where(counts, slots.row[place], queue.waiting.shape[0])  # beyond the last: nowhere
    done = jax.tree.map(lambda x, text: x.at[row].set(text[place], mode="drop"), queue.done, slots.text)
    return dataclasses.replace(queue, done=done)


def _put_columns(x: jax.Array, where: jax.Array, read: jax.Array, prompt: jax.Array) -> jax.Array:
    """The part of a cache with that of some prompts in some slots; the columns behind these are empty."""
    rows = _rows_axis(x)
    if x.ndim < 4:
        read = jnp.pad(read, ((0, 0), (0, x.shape[1] - read.shape[1])))
    place = tuple(where if axis == rows else slice(extent) for axis, extent in enumerate(read.shape))
    return x.at[place].set(jnp.take(read, prompt, axis=rows), mode="drop")


def _rows_axis(x: jax.Array) -> int:
    """Where the rows of a part of a cache are: of keys and values, with the layers before them or not, or of less."""
    return max(x.ndim - 4, 0)
