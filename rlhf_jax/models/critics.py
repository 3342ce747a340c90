"""Two Q and a V of tokens, on one trunk."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.tree_util import Partial

from rlhf_jax.config import ModelConfig
from rlhf_jax.models.api import Model
from rlhf_jax.models.assemble import values_before
from rlhf_jax.models.build import build_model
from rlhf_jax.models.output import token_logits
from rlhf_jax.models.params import SCORING, without_scores
from rlhf_jax.types import Params, TokenBatch, TokenValues

SCALE = 0.1
"""Of the first Q, beside logits of unit scale: tokens that no text shows should differ little, the two Q a little."""


@dataclasses.dataclass(frozen=True)
class Critics:
    """Pure functions of parameters {trunk, q1, q2, v}.

    init(key) -> params
    values(params, batch) -> TokenValues of the tokens given
    heads(params, hidden [..., D]) -> (Q1 [..., V], Q2 [..., V], V [...]) of the state that the trunk has read
    """

    trunk: Model
    init: Callable[[jax.Array], Params]
    values: Callable[[Params, TokenBatch], TokenValues]
    heads: Callable[[Params, jax.Array], Any]


def build_critics(config: ModelConfig) -> Critics:
    """Critics whose trunk has the shape of this config; their heads are their own, also where the config ties the policy's."""
    # Q-values are not bounded as logits may be.
    trunk = build_model(dataclasses.replace(config, head="lm+scalar", tied=False, logit_softcap=None, output_scale=1.0))

    def init(key: jax.Array) -> Params:
        first, second = (trunk.init(part) for part in jax.random.split(key))
        q1, q2 = ({"unembed": jax.tree.map(lambda x: SCALE * x, one["unembed"])} for one in (first, second))
        body = {name: part for name, part in without_scores(first).items() if name != "unembed"}
        scalar = {name: first[name] for name in SCORING if name in first}
        return {"trunk": body, "q1": q1, "q2": q2, "v": scalar}

    def values(params: Params, batch: TokenBatch) -> TokenValues:
        hidden = trunk.hidden(params["trunk"], batch)
        picked = (
            token_logits(Partial(trunk.unembed, params[name]), hidden, batch, chunk=config.logit_chunk)
            for name in ("q1", "q2")
        )
        (q1, norm1), (q2, norm2) = picked
        return TokenValues(q1, q2, norm1, norm2, values_before(trunk.scalar(params["v"], hidden), batch))

    def heads(params: Params, hidden: jax.Array):
        return *(trunk.unembed(params[name], hidden) for name in ("q1", "q2")), trunk.scalar(params["v"], hidden)

    return Critics(trunk, init, values, heads)
