"""Updates: the optimiser, one step from a loss, and PPO's epochs of minibatches."""

from rlhf_jax.train.step import TrainState, init_state, make_step

__all__ = ["TrainState", "init_state", "make_step"]
