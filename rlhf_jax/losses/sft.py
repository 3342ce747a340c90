"""Supervised fine-tuning."""

from __future__ import annotations

import jax

from rlhf_jax.masking import mask_weight, masked_mean
from rlhf_jax.types import Aux, LogprobFn, Params, TokenBatch


def sft_loss(params: Params, batch: TokenBatch, *, logprobs: LogprobFn) -> tuple[jax.Array, Aux]:
    """Mean negative log-likelihood of the tokens to learn, in nats per token.

    L = - sum_t m_t log p(x_t | x_<t) / sum_t m_t,  m = batch.loss_mask

    Source: Ouyang et al. 2022 (arXiv:2203.02155), section 3.5, step 1.
    """
    nll = -masked_mean(logprobs(params, batch, 1.0), batch.loss_mask)
    return nll, Aux(weight=mask_weight(batch.loss_mask), metrics={"nll": nll})
