"""Measurements of jitkit, each a module with a command: `python -m benchmarks.digits`."""
