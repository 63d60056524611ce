"""Samples of a trained model in physical units, and autoregressive ensemble forecasts."""
