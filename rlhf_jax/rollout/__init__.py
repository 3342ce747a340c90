"""From prompts to trajectories: sampling, generation with a cache, scoring, rewards."""
