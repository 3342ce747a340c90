"""Attention as arithmetic: the weighted mean of what a token sees, by the platform's own kernel or plainly."""

from __future__ import annotations

import dataclasses
import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rlhf_jax.models.kernels import cudnn, cudnn_fits, platform, splash, splash_fits
from rlhf_jax.models.visible import Visible
from rlhf_jax.sharding import constrain, pieces

BLOCK, BLOCKS = 128, 8
"""Queries of at least so many columns are taken at once, and in at most so many parts, as each is compiled by itself."""


def softcap(x: jax.Array, cap: float | None) -> jax.Array:
    """cap tanh(x / cap), which stays below cap; x itself without one. Source: Gemma Team 2024 (arXiv:2408.00118), section 2."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def attend(
    q: Float[Array, "B T H K"],
    keys: Float[Array, "B G S K"],
    values: Float[Array, "B G S K"],
    visible: Visible,
    *,
    scale: float | None = None,
    cap: float | None = None,
    bias: Float[Array, "b H T S"] | None = None,
    window: int | None = None,
    local: Bool[Array, ""] | bool = True,
    shared: tuple[Float[Array, "P G W K"], Float[Array, "P G W K"]] | None = None,
) -> Float[Array, "B T H K"]:
    """`attend_plainly`, or the same by the kernel of the platform where that takes such arguments.

    On TPUs that is splash attention, on GPUs cudnn's; neither makes the scores of all queries and keys at once. With a bias it is plain.
    Rows that are folded by groups are attended in two parts, what they share and what is behind it. With keys and values that rows of a
    cache have `shared` it is `attend_to_both`.
    Elsewhere queries are taken in blocks: keys behind the last query of a block are left out, and where all layers have a window those
    before the first one's.
    """
    if visible.group is not None:
        assert bias is None, "positions that scores depend on are those of rows by themselves"
        return _in_groups(q, keys, values, visible, scale=scale, cap=cap, window=window, local=local)
    if shared is not None:
        assert visible.shared is not None and bias is None, "held by the cache of a decoder"
        masks = visible.shared.mask(window, local), visible.mask(window, local)
        return attend_to_both(q, shared, (keys, values), masks, scale, cap)
    here = platform()
    if here == "tpu" and bias is None and splash_fits(q, keys, visible):
        return splash(q, keys, values, visible, scale=scale, cap=cap, window=window, local=local)
    if here == "gpu" and bias is None and cap is None and cudnn_fits(q, keys):
        causal = visible.causal and visible.column is None and q.shape[1] == keys.shape[2]
        return cudnn(q, keys, values, visible.mask(window, local), scale=scale, causal=causal)
    mask, parts = visible.mask(window, local), []
    for own, seen in _blocks(q.shape[1], visible, window if local is True else None):
        part = None if bias is None else bias[:, :, own, seen]
        read = keys[:, :, seen], values[:, :, seen], mask[:, own, seen]
        parts.append(attend_plainly(q[:, own], *read, scale, cap, part))
    return jnp.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]


def _in_groups(q: jax.Array, keys: jax.Array, values: jax.Array, visible: Visible, **how: Any) -> jax.Array:
    """`attend` of rows folded by groups: what these share to itself, what each row has of its own to that and to itself."""
    group, segments = visible.group, visible.queries
    assert group is not None, "called for groups"
    width, of_one = group.shared(q.shape[1]), dataclasses.replace(visible, group=None)
    shared = dataclasses.replace(of_one, queries=segments[:, :width], keys=segments[:, :width])
    first = attend(q[:, :width], keys[:, :, :width], values[:, :, :width], shared, **how)
    own = segments[:, width:].reshape(-1, group.last)
    seen = jnp.concatenate([jnp.repeat(segments[:, :width], group.rows, axis=0), own], axis=1)
    behind = dataclasses.replace(of_one, queries=own, keys=seen, column=width)
    queries = q[:, width:].reshape(-1, group.last, *q.shape[2:])
    then = attend(queries, group.own_keys(keys), group.own_keys(values), behind, **how)
    return jnp.concatenate([first, then.reshape(q.shape[0], -1, *q.shape[2:])], axis=1)


def _blocks(length: int, visible: Visible, window: int | None) -> list[tuple[slice, slice]]:
    """(columns of queries, columns of the keys that any of these may see) of each block; of a cache, or both ways, one of all."""
    column = 0 if visible.column is None else visible.column
    if not visible.causal or not isinstance(column, int) or pieces("length", length) > 1:
        return [(slice(None), slice(None))]
    count = min(-(-length // BLOCK), BLOCKS)
    edges = [length * number // count for number in range(count + 1)]
    before = column + length if window is None else window - 1
    edges = itertools.pairwise(edges)
    return [(slice(first, end), slice(max(column + first - before, 0), column + end)) for first, end in edges]


def attend_to_both(
    q: Float[Array, "B T H K"],
    shared: tuple[Float[Array, "P G W K"], Float[Array, "P G W K"]],
    own: tuple[Float[Array, "B G S K"], Float[Array, "B G S K"]],
    masks: tuple[Bool[Array, "B T W"], Bool[Array, "B T S"]],
    scale: float | None = None,
    cap: float | None = None,
) -> Float[Array, "B T H K"]:
    """`attend_plainly` to what B / P rows side by side have shared, which is read once for them, and to what each has of its own.

    Source: Juravsky et al. 2024, Hydragen (arXiv:2402.05099); here with one softmax for both.
    """
    rows, length, heads, size = q.shape
    prompts, groups, width = shared[0].shape[:3]
    each = length * (heads // groups)
    keys, values, own_keys, own_values = (constrain(x, "batch", "kv", None, "head_dim") for x in (*shared, *own))

    # Heads, which devices may share, before rows, so that what lies on a device stays there.
    def together(x: jax.Array) -> jax.Array:  # [B, G, each, X] -> [P, G, each B / P, X]
        x = x.reshape(prompts, -1, groups, each, x.shape[-1]).transpose(0, 2, 3, 1, 4)
        return x.reshape(prompts, groups, -1, x.shape[-1])

    def apart(x: jax.Array) -> jax.Array:  # and back
        x = x.reshape(prompts, groups, each, -1, x.shape[-1]).transpose(0, 3, 1, 2, 4)
        return x.reshape(rows, groups, each, x.shape[-1])

    q = q.reshape(rows, length, groups, heads // groups, size).transpose(0, 2, 1, 3, 4)
    q = q.reshape(rows, groups, each, size) * jnp.asarray(size**-0.5 if scale is None else scale, q.dtype)
    first = apart(jnp.einsum("pgqk,pgsk->pgqs", together(q), keys))
    scores = jnp.concatenate([first, jnp.einsum("bgqk,bgsk->bgqs", q, own_keys)], axis=-1)
    scores = softcap(scores.reshape(rows, groups, length, heads // groups, -1).astype(jnp.float32), cap)
    mask = jnp.concatenate(masks, axis=-1)[:, None, :, None]
    weights = jax.nn.softmax(jnp.where(mask, scores, -1e30), axis=-1).astype(values.dtype)
    weights = weights.reshape(rows, groups, each, -1)
    mean = partial(jnp.einsum, preferred_element_type=jnp.float32)  # rounded once, as a sum over all columns is
    out = apart(mean("pgqs,pgsk->pgqk", together(weights[..., :width]), values))
    out = (out + mean("bgqs,bgsk->bgqk", weights[..., width:], own_values)).astype(q.dtype)
    out = out.reshape(rows, groups, length, heads // groups, size).transpose(0, 2, 1, 3, 4)
    return out.reshape(rows, length, heads, size)


def attend_plainly(
    q: Float[Array, "B T H K"],
    keys: Float[Array, "B G S K"],
    values: Float[Array, "B G S K"],
    mask: Bool[Array, "B T S"],
    scale: float | None = None,
    cap: float | None = None,
    bias: Float[Array, "b H T S"] | None = None,
) -> Float[Array, "B T H K"]:
    """Softmax attention with grouped queries (Ainslie et al. 2023), heads of one group folded into rows; softmax in float32.

    Where a text lies on several devices, each has its own queries, and all keys and values.

    Scores are q k times `scale` (by default K ** -0.5), `softcap` of it, with `bias` added.

    A query without anything to attend to (padding) gets a plain mean: finite, and never used.
    """
    rows, length, heads, size = q.shape
    groups = keys.shape[1]
    keys, values = (constrain(x, "batch", "kv", None, "head_dim") for x in (keys, values))
    # Heads of a group behind the tokens: pieces of a text stay pieces when the two are folded.
    q = q.reshape(rows, length, groups, heads // groups, size).transpose(0, 2, 1, 3, 4)
    # Scaled here, as there are fewer of them than scores.
    q = q.reshape(rows, groups, -1, size) * jnp.asarray(size**-0.5 if scale is None else scale, q.dtype)
    scores = jnp.einsum("bgqk,bgsk->bgqs", q, keys)
    scores = softcap(scores.reshape(rows, groups, length, heads // groups, -1).astype(jnp.float32), cap)
    if bias is not None:
        scores = scores + bias.reshape(-1, groups, heads // groups, *bias.shape[2:]).swapaxes(2, 3)
    weights = jax.nn.softmax(jnp.where(mask[:, None, :, None], scores, -1e30), axis=-1).astype(values.dtype)
    out = jnp.einsum("bgqs,bgsk->bgqk", weights.reshape(rows, groups, -1, keys.shape[2]), values)
    out = out.reshape(rows, groups, length, heads // groups, size).transpose(0, 2, 1, 3, 4)
    return out.reshape(rows, length, heads, size)
