"""Metrics of samples that several domains share."""
