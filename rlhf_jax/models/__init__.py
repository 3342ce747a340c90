"""Models as frozen records of pure functions; nobody outside this package sees a flax module."""

from rlhf_jax.models.api import Model
from rlhf_jax.models.build import build_model

__all__ = ["Model", "build_model"]
