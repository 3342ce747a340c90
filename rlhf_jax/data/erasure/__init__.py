"""The right to erasure: what may not be used any more, taking it out, and which checkpoints have seen it."""
