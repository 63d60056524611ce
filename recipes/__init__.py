"""One YAML file for each run; `jitkit train digits` finds them by their bare names."""
