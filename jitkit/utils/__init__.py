"""Used by every layer: atomic files, console, seeds, distributed processes, signals, caches."""
