"""What is measured and how; figures and commands are in docs/benchmarks.md."""
