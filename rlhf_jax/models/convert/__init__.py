"""Pretrained checkpoints of other formats: one file per family, each a reader that gives (ModelConfig, params)."""
