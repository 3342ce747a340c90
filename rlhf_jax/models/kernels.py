"""Attention by kernels of the platforms: splash attention, which ships with jax, on TPUs; cudnn's on GPUs.

Both give what `attention.attend_plainly` gives. What a query that sees nothing (padding) gets is another mean, and never used.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from rlhf_jax.models.visible import Visible
from rlhf_jax.sharding import axes_of, pieces, split_axes

LANES = 128
"""Tokens of the smallest block of a kernel on a TPU."""
BLOCKS = (512, 256, LANES)


def platform() -> str:
    """What a program that is traced here will run on: the ambient mesh's devices, which need not be there, else those that JAX has."""
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    return jax.default_backend() if device is None else device.platform


FEW = 128
"""Rows that on a CPU go through a matrix faster by its columns; as was measured: docs/benchmarks.md."""


def reads_columns(rows: int) -> bool:
    """Whether so many rows of a device go through matrices faster that are laid out by their columns; not where these lie in pieces."""
    return platform() == "cpu" and rows <= FEW and not split_axes(jax.sharding.get_abstract_mesh())


def splash_fits(q: jax.Array, keys: jax.Array, visible: Visible) -> bool:
    """Whether splash attention takes these: whole blocks of queries on each device and of keys, and it is known where both begin."""
    known = visible.column is None or isinstance(visible.column, int)
    return known and q.shape[1] % (LANES * pieces("length", q.shape[1])) == 0 == keys.shape[2] % LANES


def takes_parts(length: int, last: int) -> bool:
    """Whether a kernel that takes texts of this length takes the last columns, and those before them, by themselves too."""
    block = {"tpu": LANES, "gpu": 2}.get(platform(), 1)
    return length % block != 0 or last % block == 0


def splash(
    q: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    visible: Visible,
    *,
    scale: float | None,
    cap: float | None,
    window: int | None,
    local: Any = True,
    interpret: bool = False,
) -> jax.Array:
    """Splash attention, rows, heads and queries where they lie on the ambient mesh; `local` may be known when the program runs only."""
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    _, length, heads, size = q.shape
    mesh = jax.sharding.get_abstract_mesh()
    sharded = bool(split_axes(mesh))
    q = q * (size**-0.5 if scale is None else scale)
    q, names = q.swapaxes(1, 2), ("batch", "heads", "length")
    if sharded and axes_of("heads", heads, mesh) != axes_of("kv", keys.shape[1], mesh):
        # Fewer heads of keys than devices: each gets those of its queries.
        keys, values = (jnp.repeat(x, heads // x.shape[1], axis=1) for x in (keys, values))
    here, parts = heads // pieces("heads", heads), pieces("length", length)

    def by(window: int | None):
        # What sees everything sees the same from every part, of which splash attention takes one only.
        shape, of = ((length, keys.shape[2]), parts) if visible.causal else ((length // parts, keys.shape[2]), 1)
        kernel = splash_kernel(here, shape, of, visible.causal, window, cap, interpret, visible.first)

        def run(kernel, q, k, v, queries, columns):
            return jax.vmap(kernel)(q, k, v, SegmentIds(queries, columns))

        if not sharded:
            return partial(run, kernel)
        rows, its_heads, columns = (axes_of(*named, mesh) or None for named in zip(names, q.shape, strict=False))
        own, every = (
            PartitionSpec(rows, its_heads, columns),
            PartitionSpec(rows, its_heads),
        )  # each has all keys of its rows
        of_kernel = kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(None, columns if of > 1 else None)))
        ids = PartitionSpec(rows, columns), PartitionSpec(rows)
        specs = (of_kernel, own, every, every, *ids)
        return partial(jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=own, check_vma=False), kernel)

    given = (q, keys, values, visible.queries, visible.keys)
    if window is None or not visible.causal:
        out = by(None)(*given)
    elif isinstance(local, bool):
        out = by(window if local else None)(*given)
    else:
        out = jax.lax.cond(local, by(window), by(None), *given)
    return out.swapaxes(1, 2)


def splash_kernel(
    heads: int,
    shape: tuple[int, int],
    parts: int,
    causal: bool,
    window: int | None,
    cap: float | None,
    interpret: bool,
    first: Any = 0,
) -> Any:
    """The kernel (q [H, T, K], keys [G, S, K], values, segments) -> [H, T, K] for T and S of `shape`, or one of so many parts of T; the
    first query stands in this column of the keys.

    Made anew for every trace, which its arrays belong to.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        BlockSizes,
        CausalMask,
        FullMask,
        LocalMask,
        MultiHeadMask,
        make_splash_mha,
    )

    if not causal:
        mask: Any = FullMask(shape)
    else:
        mask = CausalMask(shape, first) if window is None else LocalMask(shape, (window - 1, 0), first)
    lengths = shape[0] // parts, shape[1]
    rows, columns = (next(size for size in BLOCKS if length % size == 0) for length in lengths)
    sizes = BlockSizes(
        block_q=rows,
        block_kv=columns,
        block_q_dkv=rows,
        block_kv_dkv=columns,
        block_q_dq=rows,
        block_kv_dq=columns,
    )
    return make_splash_mha(
        MultiHeadMask([mask] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=parts,
        attn_logits_soft_cap=cap,
        interpret=interpret,
    )


def cudnn_fits(q: jax.Array, keys: jax.Array) -> bool:
    """Whether cudnn's attention takes these: two-byte floats, heads of up to 128 dimensions by eights, whole texts of even length."""
    lengths = q.shape[1], keys.shape[2]
    even = all(length % 2 == 0 for length in lengths)
    whole = pieces("length", q.shape[1]) == 1
    return q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128 and even and whole


def cudnn(
    q: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    *,
    scale: float | None,
    causal: bool = False,
    implementation: Any = "cudnn",
) -> jax.Array:
    """`jax.nn.dot_product_attention`, by cudnn; with `causal` keys behind a query, which the mask leaves out, are not computed either."""
    return jax.nn.dot_product_attention(
        q,
        keys.swapaxes(1, 2),
        values.swapaxes(1, 2),
        mask=mask[:, None],
        scale=scale,
        is_causal=causal,
        implementation=implementation,
    )
