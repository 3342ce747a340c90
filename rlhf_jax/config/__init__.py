"""Frozen configs that validate themselves: what an experiment is made of.

A config says what to do, never how; the functions that use it take plain arguments. Unset is `None`, so that 0.0 stays a setting.
"""

from rlhf_jax.config.data import Curation, Flan, Mixture, Text, World
from rlhf_jax.config.experiment import Evaluation, Experiment
from rlhf_jax.config.model import ONE_DEVICE, MeshConfig, ModelConfig, RopeScaling
from rlhf_jax.config.ppo import PPO, PolicyGradient
from rlhf_jax.config.sampling import EVERYTHING, Sampling
from rlhf_jax.config.stages import ILQL, SFT, Classify, LoRA, Optim, Preference, Reward

__all__ = [
    "EVERYTHING",
    "ILQL",
    "ONE_DEVICE",
    "PPO",
    "SFT",
    "Classify",
    "Curation",
    "Evaluation",
    "Experiment",
    "Flan",
    "LoRA",
    "MeshConfig",
    "Mixture",
    "ModelConfig",
    "Optim",
    "PolicyGradient",
    "Preference",
    "Reward",
    "RopeScaling",
    "Sampling",
    "Text",
    "World",
]
