"""Domain `memory`: arrays in memory or in a torch Dataset."""
