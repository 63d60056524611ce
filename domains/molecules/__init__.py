"""Molecules as sets of atoms in space."""
