"""Policy-gradient algorithms by name: combinations of the parts of `PolicyGradient`, as their papers have them.

KL to the reference is k1 in the reward unless the paper puts it in the loss; what `kl_coef` is, the experiment says.
"""

from __future__ import annotations

from typing import Any

from rlhf_jax.config import PolicyGradient
from rlhf_jax.overrides import unknown_name

# Sums over tokens, means over responses: the plain policy gradient of whole responses.
_SCORE = {
    "samples": 4,
    "objective": "score",
    "credit": "sequence",
    "normaliser": "constant",
    "whiten_advantages": False,
}
_RLOO = {**_SCORE, "baseline": "leave_one_out"}
_GROUP = {**_SCORE, "objective": "clip", "baseline": "group_mean"}

ALGORITHMS: dict[str, dict[str, Any]] = {
    # Williams 1992
    "reinforce": {**_SCORE, "baseline": "none"},
    "reinforce_ema": {**_SCORE, "baseline": "moving_average", "decay": 0.9},
    "batch_mean": {**_SCORE, "baseline": "batch_mean"},
    # Kool et al. 2019; Ahmadian et al. 2024
    "rloo": _RLOO,
    "rloo_k2": {**_RLOO, "kl_in": "loss", "kl_estimator": "k2"},
    "rloo_k3": {**_RLOO, "kl_in": "loss", "kl_estimator": "k3"},
    "rloo_exact": {**_RLOO, "kl_in": "loss", "kl_estimator": "exact"},
    # Liu et al. 2025: no division by the deviation, sums over tokens; KL in the reward where there is any
    "dr_grpo": _GROUP,
    "dr_grpo_k2": {**_GROUP, "kl_in": "loss", "kl_estimator": "k2"},
    "dr_grpo_k3": {**_GROUP, "kl_in": "loss", "kl_estimator": "k3"},
    # Shao et al. 2024: divided by the deviation, means over tokens, k3 in the loss
    "grpo": {**_GROUP, "baseline": "group_normalised", "normaliser": "sequence", "kl_in": "loss", "kl_estimator": "k3"},
    # GRPO's advantages alone, with KL in the reward
    "grpo_reward": {**_GROUP, "baseline": "group_normalised"},
    # Zheng et al. 2025: one ratio per response, means over tokens, a narrow clip
    "gspo": {**_GROUP, "ratio": "sequence", "normaliser": "sequence", "clip": 0.05, "epochs": 2},
    # Hu 2025 (arXiv:2501.03262): rewards to go, whitened over the batch
    "reinforce_pp": {**_GROUP, "baseline": "none", "credit": "token", "normaliser": "token", "whiten_advantages": True},
    # Dong et al. 2023: fine-tuning on the best response of four, chosen by the reward with its KL
    "raft": {**_SCORE, "baseline": "best", "normaliser": "sequence"},
    # Anthony et al. 2017; Dubois et al. 2023: several epochs over the best ones
    "expert_iteration": {**_SCORE, "baseline": "best", "normaliser": "sequence", "epochs": 4},
    # Guo et al. 2024: DPO on the best and the worst response of four, its beta the price of KL
    "online_dpo": {**_SCORE, "baseline": "preferred", "kl_in": "preference"},
    # The same, each preferred as often as Bradley and Terry say
    "online_dpo_bt": {**_SCORE, "baseline": "preferred", "kl_in": "preference", "labels": "bradley_terry"},
    # Schulman et al. 2017; Ziegler et al. 2019
    "ppo": {"samples": 4, "epochs": 4},
}


def algorithm(name: str, *, new_tokens: int, kl_coef: float) -> PolicyGradient:
    """The algorithm of that name. Raises: KeyError with the closest names."""
    if name not in ALGORITHMS:
        raise KeyError(unknown_name(f"algorithm {name!r}", name, ALGORITHMS))
    return PolicyGradient(new_tokens=new_tokens, kl_coef=kl_coef, **ALGORITHMS[name])
