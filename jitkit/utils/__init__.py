"""Utilities: atomic files, cache, console, CPU settings, distributed training, seeds, signals."""
