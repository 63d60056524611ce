"""Metrics of array samples against held-out data: spectra, distributions, correlations, copies."""
