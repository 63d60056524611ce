"""Samples from a trained model in physical units, and autoregressive forecasts."""
