"""Stores of arrays: Zarr, NetCDF, HDF5 and NumPy files and addresses, read by chunks."""
