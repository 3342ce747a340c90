"""Losses: arithmetic on log-probabilities first, the model call around it second."""
