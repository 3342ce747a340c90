"""Measuring: preferences and their calibration, and what policies write."""
