"""Domain arrays: any store of arrays as data, without code."""
