"""Domain `proteins`: protein backbones from structures and trajectories."""
