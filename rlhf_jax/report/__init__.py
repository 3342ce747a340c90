"""What a run leaves for people: metrics, the environment it ran in, plots, and one self-contained HTML page."""
