"""The workloads: each builds its state and inputs, and gives the compiled programs of one step by phase."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.workloads.common import OPTIM, SIZES, Shape, Workload, use_all_cores
from benchmarks.workloads.learning import grpo, ppo, ppo_epochs
from benchmarks.workloads.sampling import generation, varied_at_once, varied_in_batches, varied_in_slots
from benchmarks.workloads.training import dpo, reward, sft, sft_packed, sft_padded
from rlhf_jax.config import ModelConfig

__all__ = ["OPTIM", "SIZES", "WORKLOADS", "Shape", "Workload", "use_all_cores"]

WORKLOADS: dict[str, Callable[[ModelConfig], Workload]] = {
    "sft": sft,
    "sft_padded": sft_padded,
    "sft_packed": sft_packed,
    "reward": reward,
    "dpo": dpo,
    "generation": generation,
    "varied_at_once": varied_at_once,
    "varied_in_batches": varied_in_batches,
    "varied_in_slots": varied_in_slots,
    "grpo": grpo,
    "ppo": ppo,
    "ppo_epochs": ppo_epochs,
}
