"""Synthetic worlds with a known truth: tasks whose right answer, and whose reward, a program can compute."""
