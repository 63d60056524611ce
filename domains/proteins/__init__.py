"""Backbones of proteins, from structures and trajectories."""
