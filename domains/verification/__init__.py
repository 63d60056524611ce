"""Forecasts of fields against what came: scores, baselines, pictures."""
