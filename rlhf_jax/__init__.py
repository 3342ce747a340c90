"""Instruction tuning and RLHF in JAX. Import what you need from the modules; this one only knows its version."""

__version__ = "0.1.0"
