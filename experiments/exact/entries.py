"""The studies of the exact world: their configs, and what they have to show. Their programs stand in the other files of this folder."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

import numpy as np

from experiments.registry import Claim, above, exceeds, measured, register
from rlhf_jax.config.study import BestOfNStudy, EstimatorStudy, FrontierStudy, OnPolicyStudy, PreferenceStudy
from rlhf_jax.eval.preference import mean_and_error

NEAR, FAR = 0.03, 0.1
"""Gaps to J* after all steps: what an algorithm that optimises J stays below, and what one with another optimum stays above."""


ABOVE = 1e-3
"""Reward by which a point may seem to lie above the frontier in float32."""


SLACK = 0.05
"""How far a mean of 400 batches may lie from what theory says."""


BETAS = tuple(float(beta) for beta in np.round(np.geomspace(30.0, 0.03, 61), 6))


def medians(figures: Mapping[str, list[float]], *names: str) -> tuple[float, ...]:
    return tuple(median(figures[f"{name}/gap"]) for name in names)


def below(figures: Mapping[str, list[float]], name: str, bound: float) -> Claim:
    """That the median gap of an algorithm ends below a bound."""
    (found,), (_, error) = medians(figures, name), measured(figures, f"{name}/gap")
    return Claim(f"{name} reaches the optimum", f"median gap < {bound}", found, error, found < bound)


def judge_algorithms(figures: Mapping[str, list[float]]) -> list[Claim]:
    """Who reaches the optimum, and what a baseline is worth."""
    claims = [below(figures, name, NEAR) for name in ("rloo", "dr_grpo", "ppo")]
    plain, rloo = medians(figures, "reinforce", "rloo")
    _, error = measured(figures, "reinforce/gap")
    statistic = "median gap of reinforce / that of rloo > 2"
    claims.append(Claim("a baseline halves the gap", statistic, plain / rloo, error / rloo, plain > 2 * rloo))
    claims += [_off(figures, name) for name in ("grpo", "dr_grpo_k3")]
    return claims


def judge_placement(figures: Mapping[str, list[float]]) -> list[Claim]:
    """Which KL term leads to the optimum of E[r] - beta KL(pi || ref)."""
    return [
        below(figures, "rloo", NEAR),
        _lower(figures, "gap", "rloo_k2", "rloo_k3", "k2 in the loss ends nearer to the optimum than k3"),
        _lower(figures, "gap", "rloo_exact", "rloo_k3", "the exact KL in the loss ends nearer to the optimum than k3"),
        _off(figures, "dr_grpo_k3"),
        _lower(figures, "kl", "dr_grpo_k2", "rloo_k2", "a group mean makes a KL in the loss dearer"),
    ]


def _lower(figures: Mapping[str, list[float]], figure: str, one: str, other: str, claim: str) -> Claim:
    return exceeds(figures, f"{other}/{figure}", f"{one}/{figure}", claim)


def _off(figures: Mapping[str, list[float]], name: str) -> Claim:
    (found,), (_, error) = medians(figures, name), measured(figures, f"{name}/gap")
    return Claim(f"{name}, with k3 in the loss, ends elsewhere", f"median gap > {FAR}", found, error, found > FAR)


def judge_estimators(figures: Mapping[str, list[float]]) -> list[Claim]:
    """Scales and directions, each with what theory says."""
    share = 1 - 1 / figures["policy/samples"][0]
    scales = {"reinforce": 1.0, "batch_mean": 1.0, "rloo": 1.0, "dr_grpo": share, "k2": 1.0, "exact": 1.0, "k1": 0.0}
    named = {"k2": "reverse KL", "exact": "reverse KL", "k3_sequence": "forward KL", "k3": "forward KL of tokens"}
    claims = []
    for name, scale in scales.items():
        found, error = measured(figures, f"{name}/scale")
        statistic = f"|scale on the enumerated gradient - {scale:g}| < {SLACK}"
        claims.append(Claim(f"{name} has the scale of theory", statistic, found, error, abs(found - scale) < SLACK))
    for name, what in named.items():
        found, error = measured(figures, f"{name}/cosine")
        claims.append(Claim(f"{name} as a loss is the {what}", "cosine > 0.99", found, error, found > 0.99))
    ratio, error = mean_and_error(np.divide(figures["reinforce/variance"], figures["rloo/variance"]))
    claim = "leave-one-out has less variance than no baseline"
    return [*claims, Claim(claim, "ratio of variances > 1.5", ratio, error, ratio > 1.5)]


def judge_frontier(figures: Mapping[str, list[float]]) -> list[Claim]:
    """That the identities hold in float32 for every seed."""
    bounds = (
        ("J* - J is beta KL(pi || pi*)", "identity/error", "largest difference < 1e-4", 1e-4),
        ("no policy lies above the frontier", "frontier/above", f"largest excess of reward < {ABOVE}", ABOVE),
        ("the frontier is concave", "frontier/steepening", f"largest rise of its slope < {ABOVE}", ABOVE),
    )
    claims = []
    for claim, name, statistic, bound in bounds:
        mean, error = measured(figures, name)
        claims.append(Claim(claim, statistic, mean, error, max(figures[name]) < bound))
    return claims


def judge_start(figures: Mapping[str, list[float]]) -> list[Claim]:
    """The law of the square root, at the price of KL where the frontier starts."""
    mean, error = measured(figures, "frontier/start_over_law")
    claim = "reward grows as sqrt(2 Var r) sqrt(KL) at first"
    return [Claim(claim, "|gain / law - 1| < 0.05", mean, error, abs(mean - 1) < 0.05)]


def judge_best_of_n(figures: Mapping[str, list[float]]) -> list[Claim]:
    """An upper bound, which ties stay further below, and a level at which KL ends."""
    claims = (
        ("the formula is an upper bound", "above_formula", "largest excess"),
        ("KL saturates at -log p(best)", "above_saturation", "largest excess"),
        ("ties lower the KL", "ties_add", "largest rise by ties"),
    )
    found = []
    for claim, name, what in claims:
        mean, error = measured(figures, name)
        found.append(Claim(claim, f"{what} < {ABOVE} nats", mean, error, max(figures[name]) < ABOVE))
    return found


@register(
    "exact/on_policy",
    paper="Ahmadian et al. 2024; Liu et al. 2025",
    claim="RLOO, Dr. GRPO and PPO reach the optimum of E[r] - beta KL; a baseline halves the gap; k3 in the loss ends elsewhere",
    costs={"cpu": "6 min for 5 seeds on 2 cores"},
    judge=judge_algorithms,
    run_study="experiments.exact.on_policy:run",
)
def on_policy(scale: str) -> OnPolicyStudy:
    """Nine algorithms in the exact world, 256 responses per step, by their exact gap J* - J over 300 steps.

    Expected: RLOO, Dr. GRPO (KL in the reward) and PPO end below 0.03; plain REINFORCE has more than twice the gap of RLOO, as its
    gradient is noisier. GRPO and Dr. GRPO with k3 in the loss end above 0.1 however long they train: the gradient of k3 is that of the
    forward KL, so that they approach the optimum of another objective; a group mean shrinks the reward's gradient by (K - 1) / K but not
    the penalty's, which makes KL dearer; and GRPO's division by the deviation weighs prompts anew.
    """
    return OnPolicyStudy(
        name="exact/on_policy",
        algorithms=(
            "reinforce",
            "reinforce_ema",
            "reinforce_pp",
            "rloo",
            "dr_grpo",
            "gspo",
            "ppo",
            "grpo",
            "dr_grpo_k3",
        ),
    )


def judge_selection(figures: Mapping[str, list[float]]) -> list[Claim]:
    """What learning from the best of a few, or from pairs of them, reaches."""
    return [
        exceeds(figures, "raft/gap", "rloo/gap", "RLOO ends nearer to the optimum than RAFT"),
        exceeds(
            figures, "online_dpo/gap", "online_dpo_bt/gap", "online DPO ends nearer to the optimum on noisy labels"
        ),
        exceeds(figures, "online_dpo/kl", "optimum/kl", "labels that are always right drive online DPO away", by=1.0),
    ]


@register(
    "exact/selection",
    paper="Dong et al. 2023; Guo et al. 2024; Ahmadian et al. 2024",
    claim="RAFT ends near the optimum, RLOO nearer; online DPO does where labels are noisy, and leaves it where they never are",
    costs={"cpu": "6 min for 5 seeds on 2 cores"},
    judge=judge_selection,
    run_study="experiments.exact.on_policy:run",
)
def selection(scale: str) -> OnPolicyStudy:
    """Fine-tuning on the best of four responses, and DPO on the best and the worst of them, beside RLOO, by the exact gap J* - J.

    Expected: RAFT chooses by the reward less the price of KL and so comes near the optimum, as expert iteration, which learns four times
    from each rollout; DPO's loss on its own samples has the optimum of RLHF where the better response is preferred with the probability of
    Bradley and Terry; where it always is, nothing anchors the policy to the reference, as in exact/determinism.
    """
    return OnPolicyStudy(
        name="exact/selection", algorithms=("rloo", "raft", "expert_iteration", "online_dpo", "online_dpo_bt")
    )


@register(
    "exact/kl_placement",
    paper="Shao et al. 2024; Schulman 2020",
    claim="KL in the reward reaches the optimum; k2 and the exact KL in the loss come near it; k3 in the loss has another one",
    costs={"cpu": "2 min for 5 seeds on 2 cores"},
    judge=judge_placement,
    run_study="experiments.exact.on_policy:run",
)
def kl_placement(scale: str) -> OnPolicyStudy:
    """RLOO with its KL term in four places, in the exact world, by the exact gap J* - J over 300 steps.

    Expected: with k1 in the reward below 0.03. k2 and the exact KL in the loss have the same optimum but a noisier gradient, as no baseline
    is taken off them; they end above that and below k3, whose gradient is that of the forward KL. With a group mean in place of
    leave-one-out the reward's gradient shrinks by (K - 1) / K, that of a KL in the loss does not: Dr. GRPO pays 4 / 3 of beta then, ends
    nearer to the reference, and with k3 above 0.1.
    """
    return OnPolicyStudy(
        name="exact/kl_placement", algorithms=("rloo", "rloo_k2", "rloo_exact", "rloo_k3", "dr_grpo_k2", "dr_grpo_k3")
    )


@register(
    "exact/estimators",
    paper="Kool et al. 2019; Schulman 2020; Liu et al. 2025",
    claim="RLOO is unbiased, of little variance; a group mean shrinks by (K - 1) / K; k1 as a loss teaches nothing, k3 the forward KL",
    costs={"cpu": "5 min for 5 seeds on 2 cores"},
    judge=judge_estimators,
    run_study="experiments.exact.estimators:run",
)
def estimators(scale: str) -> EstimatorStudy:
    """Mean gradients of 400 batches of 256 responses beside the enumerated gradient, at a policy a few steps from the reference.

    Expected: REINFORCE, a batch mean and RLOO have scale 1, Dr. GRPO's group mean 0.75 with 4 responses to a prompt; RLOO's variance is the
    least of the unbiased ones. As a loss, k1 has no gradient on average, k2 and the exact KL that of the reverse KL, and k3 that of the
    forward KL.
    """
    return EstimatorStudy(name="exact/estimators")


@register(
    "exact/frontier",
    paper="Rafailov et al. 2023; Korbak et al. 2022",
    claim="J* - J = beta KL(pi || pi*) for every policy; the frontier of reward and KL is concave, and nothing lies above it",
    costs={"cpu": "1 min for 5 seeds on 2 cores"},
    judge=judge_frontier,
    run_study="experiments.exact.frontier:run_frontier",
)
def frontier(scale: str) -> FrontierStudy:
    """The optima of E[r] - beta KL at 61 prices of KL, best-of-n, and 64 policies of random parameters, all by enumeration.

    Expected: the identity to 1e-4, no point above the frontier by more than 1e-3, slopes that only fall.
    """
    return FrontierStudy(name="exact/frontier", betas=BETAS)


@register(
    "exact/sqrt_kl",
    paper="Bai et al. 2022",
    claim="near the reference, reward grows linearly in sqrt(KL), at the rate sqrt(2 Var r)",
    costs={"cpu": "1 min for 5 seeds on 2 cores"},
    judge=judge_start,
    run_study="experiments.exact.frontier:run_frontier",
)
def sqrt_kl(scale: str) -> FrontierStudy:
    """The start of the frontier beside the law of Bai et al. 2022, section 4.3, whose rate the variance of the reward gives.

    Expected: within 5 % at the highest price of KL, and a bend towards less reward as KL grows.
    """
    return FrontierStudy(name="exact/sqrt_kl", betas=BETAS)


@register(
    "exact/bon_kl",
    paper="Stiennon et al. 2020; Beirami et al. 2024",
    claim="the KL of best-of-n is at most log n - (n - 1) / n, less so where strings tie or are likely, and saturates at -log p(best)",
    costs={"cpu": "1 min for 5 seeds on 2 cores"},
    judge=judge_best_of_n,
    run_study="experiments.exact.frontier:run_best_of_n",
)
def bon_kl(scale: str) -> BestOfNStudy:
    """The exact KL of the best of n by the gold reward, n from 1 to 4096, per prompt.

    Expected: never above the formula, which is exact only where no string has a probability of its own: here the empty string has 0.3.
    Strings of the same words tie, and each tie lowers the KL. It ends where the best strings are all that is drawn.
    """
    return BestOfNStudy(name="exact/bon_kl", counts=(1, 2, 4, 16, 64, 256, 1024, 4096))


def judge_preference(figures: Mapping[str, list[float]]) -> list[Claim]:
    """How DPO's error falls with the data, and that nothing beats the frontier."""
    exponent, error = measured(figures, "dpo/exponent")
    falls = "gap ~ pairs^a with a in [-0.75, -0.25]"
    above = {name: values for name, values in figures.items() if name.endswith("/above")}
    most = max(above, key=lambda name: max(above[name]))
    highest, spread = measured(figures, most)
    return [
        Claim("DPO's gap falls about as 1 / sqrt(pairs)", falls, exponent, error, -0.75 <= exponent <= -0.25),
        Claim(
            "no objective lies above the frontier",
            f"excess of {most} < {ABOVE}",
            highest,
            spread,
            max(above[most]) < ABOVE,
        ),
    ]


@register(
    "exact/preference",
    paper="Rafailov et al. 2023; Azar et al. 2023; Ethayarajh et al. 2024",
    claim="DPO approaches the optimum of E[r] - beta KL as 1 / sqrt(pairs); no objective lies above the frontier of reward and KL",
    costs={"cpu": "8 min for 5 seeds on 2 cores"},
    judge=judge_preference,
    run_study="experiments.exact.preference:run",
)
def preference(scale: str) -> PreferenceStudy:
    """Seven objectives on pairs of the reference's samples with Bradley-Terry labels, over three betas; DPO over four numbers of pairs.

    Expected: DPO's gap falls by half and more for four times the pairs; the log-probability of chosen strings falls while the margin grows;
    objectives without a reference (SimPO, ORPO, SLiC) lie further below the frontier, and nothing lies above it.
    """
    return PreferenceStudy(
        name="exact/preference",
        objectives=("dpo", "cdpo", "ipo", "kto", "simpo", "orpo", "slic"),
        betas=(0.1, 0.3, 1.0),
        pairs=(250, 1_000, 4_000, 16_000),
    )


def judge_determinism(figures: Mapping[str, list[float]]) -> list[Claim]:
    """What labels without noise do to the anchor of KL."""
    dpo, error = mean_and_error(np.subtract(figures["dpo_always_right/kl"], figures["dpo_noisy/kl"]))
    claims = [
        above("labels that are always right drive DPO away", "rise of KL > 1 nat with its interval", dpo, error, 1.0)
    ]
    for kind in ("noisy", "always_right"):
        off, error = mean_and_error(np.subtract(figures[f"ipo_{kind}/kl"], figures[f"ipo_optimum_{kind}/kl"]))
        claim = f"IPO ends where its optimum lies, labels {kind.replace('_', ' ')}"
        claims.append(Claim(claim, "|KL - KL of its optimum| < 0.1 nats", off, error, abs(off) < 0.1))
    return claims


@register(
    "exact/determinism",
    paper="Azar et al. 2023",
    claim="with labels that are always right DPO loses its anchor to the reference, and IPO keeps it",
    costs={"cpu": "3 min for 5 seeds on 2 cores"},
    judge=judge_determinism,
    run_study="experiments.exact.preference:run_determinism",
)
def determinism(scale: str) -> PreferenceStudy:
    """DPO and IPO at beta = tau = 0.3 on the same pairs, with Bradley-Terry labels and with labels that the better string always gets.

    Expected: the KL of DPO rises by more than a nat; that of IPO stays at its enumerated optimum, pi_ref exp(P(y > ref) / tau) / Z.
    """
    return PreferenceStudy(name="exact/determinism", objectives=("dpo", "ipo"), betas=(0.3,), pairs=(16_000,))
