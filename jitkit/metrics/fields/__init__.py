"""Metrics of array samples against held-out data: spectra, histograms, correlations."""
