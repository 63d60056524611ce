"""Optimizers, learning-rate schedules, and exponential moving averages (EMA) of the weights."""
