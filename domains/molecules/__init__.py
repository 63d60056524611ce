"""Domain `molecules`: molecules as sets of atoms in 3-D."""
