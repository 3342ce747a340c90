"""The benchmark workloads done by two other libraries, TRL and Tunix, and timed in turns with ours: README.md says how."""
