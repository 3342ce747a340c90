"""`python -m rlhf_jax.doctor`: the invariants this library rests on, measured on the machine's own devices.

report.py   a check: what was measured, its bound, the verdict; the table of all
subjects.py tiny models and batches to measure on
rollouts.py updates.py gradients.py formulas.py texts.py    the checks, each a function that yields them
model.py    those that apply to a checkpoint and tokenizer of the user's
"""
