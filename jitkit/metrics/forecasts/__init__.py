"""Forecast verification: CRPS, RMSE, bias, spread-skill, rank histogram, spectra, baselines."""
