"""The exact world: every algorithm measured against an optimum that is known."""
