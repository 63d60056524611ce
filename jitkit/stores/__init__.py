"""Readers and downloads of array files: Zarr, NetCDF, HDF5, NumPy, on disk or in object stores."""
