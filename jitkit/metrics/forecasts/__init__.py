"""Forecast verification: CRPS, RMSE, spread-skill, rank histograms, baselines."""
