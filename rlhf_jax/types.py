"""The records that flow between the parts: arrays that travel together, and nothing else.

One alignment rule holds for all of them: whatever is indexed by t describes the token at t. `logprobs[:, t]` is
log p(tokens[:, t] | tokens[:, :t]) and `values[:, t]` is V just before that token. Functions make new records; nobody mutates one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import flax.struct
import jax
from jaxtyping import Array, Bool, Float, Int

pytree = flax.struct.dataclass

Params: TypeAlias = Any
"""A tree of arrays: nested dicts of parameters."""


@pytree
class TokenBatch:
    """What a model reads. Rows may be padded on either side or packed; `segments` alone says which tokens are real."""

    tokens: Int[Array, "B T"]
    positions: Int[Array, "B T"]  # restart at 0 in every packed segment
    segments: Int[Array, "B T"]  # 0 is padding; attention stays inside a segment
    loss_mask: Bool[Array, "B T"]  # tokens to learn


@pytree
class PreferenceBatch:
    """Pairs of whole dialogues that differ in the reply."""

    chosen: TokenBatch
    rejected: TokenBatch
    margin: Float[Array, "B"]  # 0 where unknown
    weight: Float[Array, "B"]  # label confidence; 0 for rows that only fill the batch


@pytree
class LabelBatch:
    """Texts with a binary label, or the number of a class."""

    text: TokenBatch
    label: Float[Array, "B"]  # 0 or 1; of several classes 0, 1, 2, ...
    weight: Float[Array, "B"]


@pytree
class ReferencedPairs:
    """Pairs with what a frozen reference thinks of each reply: log-probabilities summed over its tokens, in nats."""

    pairs: PreferenceBatch
    ref_chosen: Float[Array, "B"]
    ref_rejected: Float[Array, "B"]


@pytree
class LabelledReplies:
    """Replies that are desirable (1) or not (0), and replies to other prompts behind the same prompts."""

    labels: LabelBatch
    mismatched: TokenBatch


@pytree
class ReferencedLabels:
    """Labelled replies with the reference's log-probs, and what all of them are measured from."""

    labels: LabelBatch
    ref: Float[Array, "B"]
    baseline: Float[Array, ""]  # mean log(pi / ref) of the mismatched replies of the whole batch, in nats


@pytree
class RankedBatch:
    """K replies to each of B prompts as one batch of B * K rows, the replies of a prompt side by side."""

    texts: TokenBatch
    rank: Int[Array, "B K"]  # smaller is better; equal ranks are ties
    weight: Float[Array, "B K"]  # 0 for rows that only fill the batch


@pytree
class StepBatch:
    """Texts whose steps are labelled one by one, at the last token of each step."""

    text: TokenBatch
    label: Float[Array, "B T"]  # 0 or 1
    mask: Bool[Array, "B T"]  # where a step ends and has a label


@pytree
class RewardedBatch:
    """Texts with one reward each."""

    text: TokenBatch
    reward: Float[Array, "B"]


@pytree
class TokenValues:
    """What critics say of each token just before it: two Q of the token, the logsumexp of each Q over all tokens, and V."""

    q1: Float[Array, "B T"]
    q2: Float[Array, "B T"]
    norm1: Float[Array, "B T"]
    norm2: Float[Array, "B T"]
    v: Float[Array, "B T"]


@pytree
class OfflineBatch:
    """Texts with what each token earned, for learning values from them."""

    text: TokenBatch
    rewards: Float[Array, "B T"]
    target_q: Float[Array, "B T"]  # of slow copies: the lesser Q of the token (ILQL), or the highest Q there


@pytree
class Rollout:
    """What the sampler wrote: left-padded prompt + response; `batch.loss_mask` marks the response tokens, eos included."""

    batch: TokenBatch
    logprobs: Float[Array, "B T"]  # of the distribution sampled from, temperature included; 0 outside the response
    finished: Bool[Array, "B"]  # a stop token was written
    temperature: Float[Array, ""]
    # Columns (of prompts, of the responses behind them); None: responses may stand anywhere.
    columns: tuple[int, int] | None = flax.struct.field(pytree_node=False, default=None)

    @property
    def last(self) -> int | None:
        """How many last columns have the responses: what nobody asks of prompts need not be computed. None: it is not known.

        Raises: ValueError where columns were added or taken away since it was said.
        """
        if self.columns is None:
            return None
        there = self.batch.tokens.shape[1]
        if sum(self.columns) != there:
            raise ValueError(
                f"a rollout of {there} columns says that it has {self.columns[0]} of prompts and {self.columns[1]} of responses; "
                "replace columns too, or set it to None, where some are added or taken away"
            )
        return self.columns[1]


@pytree
class TokenWeights:
    """What each token weighs in the sum, and each row in the divisor: loss = sum(token * l) / sum(row)."""

    token: Float[Array, "B T"]
    row: Float[Array, "B"]


@pytree
class Moments:
    """Of all numbers seen so far: how many, their mean, their population variance."""

    count: Float[Array, ""]
    mean: Float[Array, ""]
    variance: Float[Array, ""]


@pytree
class Trajectory:
    """A rollout with everything that policy gradients learn from."""

    rollout: Rollout
    old_logprobs: Float[Array, "B T"]  # of the policy that sampled: recomputed, or as sampled
    ref_logprobs: Float[Array, "B T"]
    values: Float[Array, "B T"]  # 0 without a critic
    rewards: Float[Array, "B T"]  # per token: KL penalty, and the score on the last response token
    advantages: Float[Array, "B T"]
    returns: Float[Array, "B T"]
    scores: Float[Array, "B"]  # what the reward said, after the penalties
    weights: TokenWeights  # of the policy loss, over the whole batch
    loss_kl_coef: Float[Array, ""]  # of a KL term in the loss; 0 where KL is in the reward
    average: Float[Array, ""]  # moving average of the rewards per response, this batch included
    moments: Moments  # of the scores of all batches, this one included


@pytree
class Aux:
    """What a loss reports beside its value: the weight of its mean, and metrics that are means with that same weight."""

    weight: Float[Array, ""]
    metrics: dict[str, Float[Array, ""]]


LossFn: TypeAlias = Callable[[Params, Any], tuple[jax.Array, Aux]]
"""(params, batch) -> (mean loss, Aux). The update multiplies by `Aux.weight`, sums over microbatches, and divides once."""

CriticFn: TypeAlias = Callable[[Params, TokenBatch], TokenValues]
"""(params, batch) -> what critics say of the tokens given."""

LogprobFn: TypeAlias = Callable[[Params, TokenBatch, Any], jax.Array]
"""(params, batch, temperature) -> log-probs [B, T] of the tokens given, in nats."""
