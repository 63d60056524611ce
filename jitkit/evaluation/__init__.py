"""Scores of samples with confidence intervals, and sweeps of sampling settings."""
