"""Learning from preferences without a reward model: one objective per paper, and the two losses that call the model for them.

Every objective maps a `PairLogprobs` to a loss per pair [B], in nats unless said. Log-probabilities are sums over the reply, eos included;
the objectives that average them over the reply's tokens say so. h is log(pi / ref) of the chosen reply minus that of the rejected one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rlhf_jax.losses.reward import accuracy_of, smoothed_logistic, weighted_mean
from rlhf_jax.overrides import unknown_name
from rlhf_jax.types import (
    Aux,
    LabelledReplies,
    LogprobFn,
    Params,
    PreferenceBatch,
    ReferencedLabels,
    ReferencedPairs,
    TokenBatch,
    pytree,
)

PerPair = Float[Array, "B"]
Number = Float[Array, ""] | float


@pytree
class PairLogprobs:
    """Log-probabilities of two replies to one prompt, summed over their tokens, in nats; and their lengths in tokens."""

    chosen: PerPair
    rejected: PerPair
    ref_chosen: PerPair
    ref_rejected: PerPair
    chosen_length: PerPair
    rejected_length: PerPair

    @property
    def chosen_ratio(self) -> PerPair:
        return self.chosen - self.ref_chosen

    @property
    def rejected_ratio(self) -> PerPair:
        return self.rejected - self.ref_rejected

    @property
    def h(self) -> PerPair:
        return self.chosen_ratio - self.rejected_ratio


Objective = Callable[[PairLogprobs], PerPair]


def dpo(pair: PairLogprobs, *, beta: Number, label_smoothing: Number = 0.0) -> PerPair:
    """-log sigmoid(beta h), summed log-probs; with label smoothing e, cDPO: (1 - e) of it and e of -log sigmoid(-beta h).

    Source: Rafailov et al. 2023 (arXiv:2305.18290), eq. 7; Mitchell 2023, "A note on DPO with noisy preferences" for e.
    """
    return smoothed_logistic(beta * pair.h, label_smoothing)


def reference_free_dpo(pair: PairLogprobs, *, beta: Number, label_smoothing: Number = 0.0) -> PerPair:
    """DPO with a uniform reference: -log sigmoid(beta (log pi(chosen) - log pi(rejected))), summed log-probs. Source: DPO's code."""
    return smoothed_logistic(beta * (pair.chosen - pair.rejected), label_smoothing)


def robust_dpo(pair: PairLogprobs, *, beta: Number, flip: float) -> PerPair:
    """((1 - e) l(h) - e l(-h)) / (1 - 2 e), l the loss of DPO: unbiased where a share e = `flip` of the labels is wrong; may be negative.

    Summed log-probs. Source: Chowdhury et al. 2024 (arXiv:2403.00409). Raises: ValueError unless 0 <= flip < 0.5.
    """
    if not 0 <= flip < 0.5:
        raise ValueError(f"flip={flip}; labels of which half or more are wrong say nothing: it must lie in [0, 0.5)")
    right, wrong = -jax.nn.log_sigmoid(beta * pair.h), -jax.nn.log_sigmoid(-beta * pair.h)
    return ((1 - flip) * right - flip * wrong) / (1 - 2 * flip)


def length_normalised_dpo(pair: PairLogprobs, *, beta: Number) -> PerPair:
    """DPO with every log-ratio averaged over the tokens of its reply. Source: Lambert et al. 2024, Tulu 3 (arXiv:2411.15124)."""
    h = pair.chosen_ratio / pair.chosen_length - pair.rejected_ratio / pair.rejected_length
    return -jax.nn.log_sigmoid(beta * h)


def ipo(pair: PairLogprobs, *, tau: Number) -> PerPair:
    """(h - 1 / (2 tau))^2 in nats squared, summed log-probs: h has an optimum, where DPO's goes to infinity on labels without noise.

    Source: Azar et al. 2023 (arXiv:2310.12036), eq. 17.
    """
    return jnp.square(pair.h - 1 / (2 * tau))


def slic(pair: PairLogprobs, *, margin: Number, nll_coef: Number = 0.0) -> PerPair:
    """max(0, margin - log pi(chosen) + log pi(rejected)) - nll_coef log pi(chosen), summed log-probs, without a reference.

    The paper regularises on the best of the model's own samples, or on the demonstration; here that is the chosen reply.
    Source: Zhao et al. 2023 (arXiv:2305.10425), eq. 1.
    """
    return jnp.maximum(0.0, margin - pair.chosen + pair.rejected) - nll_coef * pair.chosen


def rso_hinge(pair: PairLogprobs, *, gamma: Number) -> PerPair:
    """max(0, 1 - gamma h), summed log-probs: SLiC with a reference. Source: Liu et al. 2023 (arXiv:2309.06657), "hinge-norm"."""
    return jnp.maximum(0.0, 1 - gamma * pair.h)


def simpo(pair: PairLogprobs, *, beta: Number, margin: Number) -> PerPair:
    """-log sigmoid(beta (mean log pi(chosen) - mean log pi(rejected)) - margin), means over the tokens of each reply, no reference.

    Source: Meng et al. 2024 (arXiv:2405.14734), eq. 6.
    """
    difference = pair.chosen / pair.chosen_length - pair.rejected / pair.rejected_length
    return -jax.nn.log_sigmoid(beta * difference - margin)


def orpo(pair: PairLogprobs, *, odds_coef: Number) -> PerPair:
    """Mean NLL of the chosen reply - odds_coef log sigmoid(log odds ratio), odds = p / (1 - p) of the mean token probability; no reference.

    Log-probs are means over the tokens of each reply. Source: Hong et al. 2024 (arXiv:2403.07691), eq. 6 and 7.
    """
    chosen, rejected = pair.chosen / pair.chosen_length, pair.rejected / pair.rejected_length
    return -chosen - odds_coef * jax.nn.log_sigmoid(log_odds(chosen) - log_odds(rejected))


def kto(
    log_ratio: PerPair,
    desirable: Float[Array, "B"],
    baseline: Float[Array, ""],
    *,
    beta: Number,
    desirable_weight: Number = 1.0,
    undesirable_weight: Number = 1.0,
) -> PerPair:
    """w (1 - sigmoid(+-beta (log(pi / ref) - z0))), + where the reply is desirable (1) and - where it is not (0); summed log-probs.

    z0 = max(0, `baseline`), an estimate of KL(pi || ref), has no gradient. Source: Ethayarajh et al. 2024 (arXiv:2402.01306), eq. 8.
    """
    z0 = jax.lax.stop_gradient(jnp.maximum(baseline, 0.0))
    gain = beta * (log_ratio - z0)
    wanted = desirable > 0.5
    value = jax.nn.sigmoid(jnp.where(wanted, gain, -gain))
    return jnp.where(wanted, desirable_weight, undesirable_weight) * (1 - value)


def log_odds(logp: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """log(p / (1 - p)) of log p < 0, without losing the digits of p near 1 (bounded there, so that gradients stay finite)."""
    logp = jnp.minimum(logp, -1e-6)
    return logp - jnp.log(-jnp.expm1(logp))


def reply_logprobs(
    params: Params, batch: TokenBatch, *, logprobs: LogprobFn, temperature: float = 1.0
) -> tuple[PerPair, PerPair]:
    """(log pi of each reply, summed over its tokens; its length in tokens). The reply is where the batch's loss mask is True."""
    per_token = logprobs(params, batch, temperature)
    return (
        jnp.sum(jnp.where(batch.loss_mask, per_token, 0.0), axis=1),
        jnp.sum(batch.loss_mask, axis=1, dtype=jnp.float32),
    )


def make_objective(name: str, beta: Number) -> Objective:
    """The objective of that name: beta is DPO's, the tau of IPO, the weight of ORPO's odds ratio and of SLiC's likelihood. What else they
    need is as commonly used: label smoothing 0.1, a margin of 1, and for SimPO, whose log-probs are means, beta / 0.15.

    Raises: KeyError with the closest names.
    """
    if name not in OBJECTIVES:
        raise KeyError(unknown_name(f"objective {name!r}", name, OBJECTIVES))
    return partial(OBJECTIVES[name], beta)


OBJECTIVES: dict[str, Callable[[Number, PairLogprobs], PerPair]] = {
    "dpo": lambda beta, pair: dpo(pair, beta=beta),
    "cdpo": lambda beta, pair: dpo(pair, beta=beta, label_smoothing=0.1),
    "ipo": lambda beta, pair: ipo(pair, tau=beta),
    "simpo": lambda beta, pair: simpo(pair, beta=beta / 0.15, margin=1.0),  # 2 where the others have 0.3
    "orpo": lambda beta, pair: orpo(pair, odds_coef=beta),
    "slic": lambda beta, pair: slic(pair, margin=1.0, nll_coef=beta),
}


def with_reference(reference: Params, pairs: PreferenceBatch, *, logprobs: LogprobFn) -> ReferencedPairs:
    """The pairs with the log-probabilities of their replies under these parameters. Both replies go through the model as one batch."""
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), pairs.chosen, pairs.rejected)
    return ReferencedPairs(pairs, *jnp.split(reply_logprobs(reference, both, logprobs=logprobs)[0], 2))


def preference_loss(
    params: Params, batch: ReferencedPairs, *, logprobs: LogprobFn, objective: Objective
) -> tuple[jax.Array, Aux]:
    """The objective's mean over pairs by their weights. Both replies go through the model as one batch of 2 B rows.

    Metrics: `accuracy` of the implicit reward log(pi / ref) (ties count one half), its `margin` h in nats, and the mean log-ratios.
    """
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), batch.pairs.chosen, batch.pairs.rejected)
    logp, length = reply_logprobs(params, both, logprobs=logprobs)
    (chosen, rejected), lengths = jnp.split(logp, 2), jnp.split(length, 2)
    pair = PairLogprobs(chosen, rejected, batch.ref_chosen, batch.ref_rejected, *lengths)
    weight = batch.pairs.weight
    loss = weighted_mean(objective(pair), weight)
    metrics = {
        "loss": loss,
        "accuracy": weighted_mean(accuracy_of(pair.chosen_ratio, pair.rejected_ratio), weight),
        "margin": weighted_mean(pair.h, weight),
        "chosen_ratio": weighted_mean(pair.chosen_ratio, weight),
        "rejected_ratio": weighted_mean(pair.rejected_ratio, weight),
    }
    return loss, Aux(weight=jnp.sum(weight), metrics=metrics)


def kto_baseline(
    params: Params, reference: Params, batch: LabelledReplies, *, logprobs: LogprobFn
) -> tuple[jax.Array, Aux]:
    """Mean log(pi / ref) of replies behind prompts that are not theirs, in nats: what z0 of KTO is estimated by.

    It is asked for of the whole batch before the update, so that microbatches share one z0. Source: Ethayarajh et al. 2024, section 4.1.
    """
    (now, _), (before, _) = (reply_logprobs(p, batch.mismatched, logprobs=logprobs) for p in (params, reference))
    weight = batch.labels.weight
    baseline = weighted_mean(now - before, weight)
    return baseline, Aux(weight=jnp.sum(weight), metrics={"baseline": baseline})


def with_baseline(
    reference: Params, batch: LabelledReplies, baseline: Number, *, logprobs: LogprobFn
) -> ReferencedLabels:
    """The replies with their log-probabilities under the reference, to be measured from this baseline."""
    ref, _ = reply_logprobs(reference, batch.labels.text, logprobs=logprobs)
    return ReferencedLabels(batch.labels, ref, jnp.asarray(baseline))


def kto_loss(
    params: Params,
    batch: ReferencedLabels,
    *,
    logprobs: LogprobFn,
    beta: Number,
    desirable_weight: Number = 1.0,
    undesirable_weight: Number = 1.0,
) -> tuple[jax.Array, Aux]:
    """KTO's mean over labelled replies by their weights.

    Metrics: `accuracy`, the share whose log(pi / ref) is on the side of z0 that the label says (ties count one half), and `margin`, by how
    many nats on average; the mean log-ratio, and the baseline that z0 is made of.
    """
    logp, _ = reply_logprobs(params, batch.labels.text, logprobs=logprobs)
    weight, label = batch.labels.weight, batch.labels.label
    ratio = logp - batch.ref
    losses = kto(
        ratio,
        label,
        batch.baseline,
        beta=beta,
        desirable_weight=desirable_weight,
        undesirable_weight=undesirable_weight,
    )
    loss = weighted_mean(losses, weight)
    beyond = ratio - jnp.maximum(batch.baseline, 0.0)
    margin = jnp.where(label > 0.5, beyond, -beyond)
    metrics = {
        "loss": loss,
        "accuracy": weighted_mean(accuracy_of(margin, jnp.zeros_like(margin)), weight),
        "margin": weighted_mean(margin, weight),
        "log_ratio": weighted_mean(ratio, weight),
        "baseline": batch.baseline,
    }
    return loss, Aux(weight=jnp.sum(weight), metrics=metrics)
