"""Runs side by side: threads whose programs are one, over a leading axis of runs, with numbers of which each run has its own."""
