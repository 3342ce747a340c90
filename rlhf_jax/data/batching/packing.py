"""Several examples in one row: which ones share it, and the row with their segments."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from rlhf_jax.data.batching.padding import cut, leave_out
from rlhf_jax.data.tokens.encode import Encoded
from rlhf_jax.types import TokenBatch

Packing = Literal["first_fit", "best_fit"]
OPEN_ROWS = 64  # first fit looks at so many


def pack(sizes: Sequence[int], length: int, how: Packing = "first_fit") -> list[list[int]]:
    """Which examples of these sizes share a row of `length` tokens; one that is longer has a row of its own.

    first_fit: each, in the order given, into the first of the newest unfinished rows that has room. best_fit: the longest first, each into
    the row in which it leaves the least room (Ding et al. 2024, arXiv:2404.10830); fuller rows, of examples of unlike lengths.
    """
    short = np.minimum(np.array(sizes, np.int64), length)
    return _first_fit(short.tolist(), length) if how == "first_fit" else _best_fit(short, length)


def _first_fit(sizes: list[int], length: int) -> list[list[int]]:
    rows: list[list[int]] = []
    room: list[int] = []
    for place, size in enumerate(sizes):
        first = max(len(rows) - OPEN_ROWS, 0)
        row = next((n for n in range(first, len(rows)) if room[n] >= size), None)
        if row is None:
            row = len(rows)
            rows.append([])
            room.append(length)
        rows[row].append(place)
        room[row] -= size
    return rows


def _best_fit(sizes: np.ndarray, length: int) -> list[list[int]]:
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(length + 1)]  # unfinished rows by the room they have
    rooms: list[int] = []  # the rooms that there are, in order
    for place in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[place])
        least = bisect.bisect_left(rooms, size)
        if least < len(rooms):
            room = rooms[least]
            row = with_room[room].pop()
            if not with_room[room]:
                rooms.pop(least)
        else:
            room, row = length, len(rows)
            rows.append([])
        rows[row].append(place)
        if room > size:
            if not with_room[room - size]:
                bisect.insort(rooms, room - size)
            with_room[room - size].append(row)
    return rows


def pack_right(examples: Sequence[Encoded], length: int, pad: int) -> TokenBatch:
    """Rows [N, length], each with several examples as segments 1, 2, ...; positions restart in each. Too long is `cut`."""
    return packed_rows(examples, pack([example.size for example in examples], length), length, pad)


def packed_rows(examples: Sequence[Encoded], rows: Sequence[Sequence[int]], length: int, pad: int) -> TokenBatch:
    """The rows [len(rows), length] of the examples of these numbers; one that does not fit into a row alone is `cut`."""
    tokens = np.full((len(rows), length), pad, np.int32)
    positions, segments = (np.zeros_like(tokens) for _ in range(2))
    loss_mask = np.zeros(tokens.shape, bool)
    for row, places in enumerate(rows):
        column = 0
        for segment, place in enumerate(places, start=1):
            short = cut(examples[place], length)
            start, end = column + len(short.prompt), column + short.size
            here = slice(column, end)
            tokens[row, here], segments[row, here] = short.prompt + short.reply, segment
            positions[row, here] = np.arange(short.size)
            loss_mask[row, start:end] = True
            leave_out(loss_mask[row, :end], short, start)
            column = end
    record: Any = (tokens, positions, segments, loss_mask)
    return TokenBatch(*record)
