"""File formats: detection by first bytes, and opening of files and folders.

Every opener returns an `Opened`: a raw `xarray.Dataset`, undecoded and lazy, for coordinates and
attributes; and a `Source` for each numeric variable, from which cells are read without xarray.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from jitkit.errors import DataError, listed
from jitkit.stores.chunks import Source
from jitkit.stores.hdf5files import hdf5_file, open_hdf5
from jitkit.stores.locations import File, Folder, Location, Zip
from jitkit.stores.opened import Opened, as_variable, from_sources
from jitkit.stores.raw import contiguous_source, npy_source, npz_sources
from jitkit.stores.well import is_well, open_well
from jitkit.stores.zarrfiles import METADATA, open_zarr

HEAD = 2**12  # bytes read to detect the format

REFUSED: tuple[tuple[bytes, str, str], ...] = (
    (b"GRIB", "GRIB", "xarray.open_dataset(path, engine='cfgrib').to_netcdf('new.nc')"),
    (b"\0\0\1\0", "Met Office PP", "iris.save(iris.load(path), 'new.nc')"),
    (
        b"II*\0",
        "TIFF",
        "rioxarray.open_rasterio(path).to_netcdf('new.nc'); for images use domain images",
    ),
    (
        b"MM\0*",
        "TIFF",
        "rioxarray.open_rasterio(path).to_netcdf('new.nc'); for images use domain images",
    ),
    (b"SIMPLE  =", "FITS", "np.save('new.npy', astropy.io.fits.getdata(path))"),
    (
        b"MATLAB 5.0",
        "MATLAB 5",
        "MATLAB's save with '-v7.3', or np.save of scipy.io.loadmat(path)[name]",
    ),
    (b"PAR1", "Parquet", "pandas.read_parquet(path).to_xarray().to_netcdf('new.nc')"),
    (b"\x0e\x03\x13\x01", "HDF 4", "h4toh5, or h4tonccf"),
    (b"\x80", "pickle", "np.save('new.npy', array); a pickle can run code, so it is not opened"),
)
"""Unsupported formats: first bytes, name, and how to convert to a supported one."""


@contextmanager
def open_file(location: Location, path: str, group: str | None) -> Iterator[Opened]:
    """Open a single file, local or remote."""
    size = int(location.stamp("").split()[0])
    head = location.read("", 0, min(HEAD, size)) or b""
    kind = format_of(head)
    if kind in ("npy", "npz", "netcdf3") and group is not None:
        raise DataError(f"{path}: has no groups, so there is no group {group!r}")
    if kind == "hdf5":
        with _open_hdf5(location, path, group) as opened:
            yield opened
    elif kind == "netcdf3":
        yield _netcdf3(location)
    elif kind == "npy":
        yield from_sources({"values": npy_source(location, 0, "values")}, location)
    elif kind == "zip":
        with _open_zip(location, path, group) as opened:
            yield opened
    else:
        raise DataError(f"{path}: {refusal(head)}")


def format_of(head: bytes) -> str | None:
    """The format according to a file's first bytes; None if it is not supported.

    >>> format_of(b"CDF\\x01"), format_of(b"GRIB")
    ('netcdf3', None)
    """
    if any(head[at : at + 8] == b"\x89HDF\r\n\x1a\n" for at in (0, 512, 1024, 2048)):
        return "hdf5"
    if head[:3] == b"CDF" and head[3:4] in (b"\1", b"\2", b"\5"):
        return "netcdf3"
    if head[:6] == b"\x93NUMPY":
        return "npy"
    return "zip" if head[:4] in (b"PK\3\4", b"PK\5\6") else None


def refusal(head: bytes) -> str:
    """Why a file is not read, and how to convert it."""
    supported = "Zarr, NetCDF, HDF5, .npy and .npz are read"
    if not head:
        return f"is empty; {supported}"
    for magic, name, remedy in REFUSED:
        if head.startswith(magic):
            return f"is {name}, which is not read; convert it: {remedy}"
    return f"has no known format (it starts with {head[:8]!r}); {supported}; convert it with xarray"


@contextmanager
def _open_hdf5(location: Location, path: str, group: str | None) -> Iterator[Opened]:
    with hdf5_file(location) as file:
        if group is None and is_well(file):
            yield open_well(file, location)
            return
        with open_hdf5(file, location, path, group) as opened:
            yield opened


@contextmanager
def open_folder(where: Path, group: str | None) -> Iterator[Opened]:
    if not any((where / name).is_file() for name in METADATA):
        inside = sorted(p.name for p in where.iterdir() if not p.name.startswith("."))[:1000]
        suffixes = sorted({Path(name).suffix for name in inside if Path(name).suffix})
        globs = listed([f"{where}/*{s}" for s in suffixes]) or "nothing"
        raise DataError(
            f"{where}: is a folder without Zarr metadata (zarr.json or .zgroup); "
            f"it has {len(inside)} files; name one, or give a glob: {globs}"
        )
    folder = str(where.resolve())
    with open_zarr(str(where), Folder(folder), partial(str, folder), group) as opened:
        yield opened


@contextmanager
def _open_zip(location: Location, path: str, group: str | None) -> Iterator[Opened]:
    if not isinstance(location, File):
        raise DataError(f"{path}: archives are read from disk only; copy it to disk")
    archive = Zip(location.path)
    names = archive.names()
    if any(name in METADATA for name in names):
        from zarr.storage import ZipStore

        make_store = partial(ZipStore, Path(location.path), mode="r")
        with open_zarr(path, archive, make_store, group) as opened:
            yield opened
    elif names and all(name.endswith(".npy") for name in names):
        yield from_sources(npz_sources(location.path), archive)
    elif any(name.endswith("/data.pkl") for name in names):
        raise DataError(
            f"{path}: is a PyTorch file, a pickle, which can run code, so it is not opened; "
            "convert it: np.save('new.npy', tensor.numpy())"
        )
    else:
        raise DataError(
            f"{path}: is neither a Zarr archive (zarr.json or .zgroup at its root) nor one of "
            f"NumPy arrays: {listed(names, 3)}"
        )


def _netcdf3(location: Location) -> Opened:
    import xarray

    from jitkit.stores.netcdf3 import read_header

    header = read_header(location)
    sources: dict[str, Source] = {
        name: contiguous_source(location, v.offset, v.shape, v.dtype, stride=v.stride)
        for name, v in header.variables.items()
    }
    variables = {
        name: as_variable(v.dims, sources[name], v.attrs) for name, v in header.variables.items()
    }
    numeric = {n: s for n, s in sources.items() if s.dtype.kind in "iufb"}
    return Opened(xarray.Dataset(variables, attrs=header.attrs), numeric, location)
