"""Named experiments: one file per paper or family, each a function that gives a complete config for a scale."""
