"""Normalization: channel statistics of the training data (one streaming pass), and transforms."""
