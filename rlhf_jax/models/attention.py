"""Attention as arithmetic: which tokens may see which, and the weighted mean of what they see, by the platform's own kernel."""

from __future__ import annotations

import math

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rlhf_jax.models.kernels import cudnn, cudnn_fits, platform, splash, splash_fits
from rlhf_jax.types import pytree


@pytree
class Visible:
    """Which keys each query may attend to: those of its own segment (0 sees and is nothing), in a causal layer none behind it.

    Columns of one row are as far apart as their positions, as segments have no gaps, so that a window counts columns.
    """

    queries: Int[Array, "B T"]
    keys: Int[Array, "B S"]
    column: Int[Array, ""] | None = None  # of the first query among the keys; None: both begin together
    causal: bool = flax.struct.field(pytree_node=False, default=True)

    @property
    def first(self) -> jax.Array | int:
        """The column of the first query."""
        return 0 if self.column is None else self.column

    def mask(self, window: int | None = None, local: Bool[Array, ""] | bool = True) -> Bool[Array, "B T S"]:
        """The same for each query and key; in a `local` layer a query sees itself and the window - 1 columns before it."""
        seen = (self.queries[:, :, None] == self.keys[:, None, :]) & (self.queries[:, :, None] != 0)
        if not self.causal:
            return seen
        apart = self.first + jnp.arange(self.queries.shape[1])[:, None] - jnp.arange(self.keys.shape[1])[None, :]
        seen = seen & (apart >= 0)[None]
        return seen if window is None else seen & ((apart < window) | ~jnp.asarray(local))[None]


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
    bias: Float[Array, "H T S"] | None = None,
    window: int | None = None,
    local: Bool[Array, ""] | bool = True,
) -> Float[Array, "B T H K"]:
    """`attend_plainly`, or the same by the kernel of the platform where that takes such arguments.

    On TPUs that is splash attention, on GPUs cudnn's; neither makes the scores of all queries and keys at once. With a bias it is plain.
    """
    here = platform()
    if here == "tpu" and bias is None and splash_fits(q, keys, visible):
        return splash(q, keys, values, visible, scale=scale, cap=cap, window=window, local=local)
    if here == "gpu" and bias is None and cap is None and cudnn_fits(q, keys):
        return cudnn(q, keys, values, visible.mask(window, local), scale=scale)
    return attend_plainly(q, keys, values, visible.mask(window, local), scale, cap, bias)


def attend_plainly(
    q: Float[Array, "B T H K"],
    keys: Float[Array, "B G S K"],
    values: Float[Array, "B G S K"],
    mask: Bool[Array, "B T S"],
    scale: float | None = None,
    cap: float | None = None,
    bias: Float[Array, "H T S"] | None = None,
) -> Float[Array, "B T H K"]:
    """Softmax attention with grouped queries (Ainslie et al. 2023), heads of one group folded into rows; softmax in float32.

    Scores are q k times `scale` (by default K ** -0.5), `softcap` of it, with `bias` added.

    A query without anything to attend to (padding) gets a plain mean: finite, and never used.
    """
    rows, length, heads, size = q.shape
    groups = keys.shape[1]
    q = q.reshape(rows, length, groups, heads // groups, size).transpose(0, 2, 3, 1, 4)
    scores = jnp.einsum("bgqk,bgsk->bgqs", q.reshape(rows, groups, -1, size), keys)
    scores = scores / math.sqrt(size) if scale is None else scores * scale
    scores = softcap(scores.reshape(rows, groups, heads // groups, length, -1).astype(jnp.float32), cap)
    if bias is not None:
        scores = scores + bias.reshape(1, groups, heads // groups, length, -1)
    weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, -1e30), axis=-1).astype(values.dtype)
    out = jnp.einsum("bgqs,bgsk->bgqk", weights.reshape(rows, groups, -1, keys.shape[2]), values)
    out = out.reshape(rows, groups, heads // groups, length, size).transpose(0, 3, 1, 2, 4)
    return out.reshape(rows, length, heads, size)
