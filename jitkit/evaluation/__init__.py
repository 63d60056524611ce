"""Evaluation: scores of samples with confidence intervals; sweeps of sampling settings."""
