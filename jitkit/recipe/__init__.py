"""Recipes: YAML with line numbers, overrides, and all errors reported together."""
