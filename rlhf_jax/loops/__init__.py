"""Training loops: the only place where data, devices, files and randomness meet."""
