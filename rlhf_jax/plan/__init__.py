"""What the programs of an experiment cost on a topology, before there is one: memory, work, traffic and the time they take at least."""
