"""Scores for any array: marginals, spectra, correlations, copies."""
