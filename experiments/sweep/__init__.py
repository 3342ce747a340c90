"""Sweeps: an experiment at every combination of some values, each over some seeds.

DIR/sweep.json                             what is swept, written first
DIR/CELL/...                               a run directory for each combination, as `run` leaves it
DIR/sweep.csv, report.html                 all figures, a line for each run; a table and plots

Runs that differ in nothing but seeds and numbers of their losses and optimisers go side by side, as lanes of one program; others in
processes of their own.
"""
