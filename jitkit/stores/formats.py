"""Which format a path has, and what is in it: `opened` for all of them.

Every opener gives the same two things: a raw `xarray.Dataset`, undecoded and read lazily, from
which coordinates and attributes are decoded; and a `Source` for each numeric variable, from which
cells are read without xarray.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from jitkit.errors import DataError, listed
from jitkit.stores.chunks import Source
from jitkit.stores.hdf5files import hdf5_file, opened_hdf5
from jitkit.stores.locations import File, Folder, Location, Zip
from jitkit.stores.opened import Opened, as_variable, of_sources
from jitkit.stores.raw import npy_source, npz_sources, one_piece
from jitkit.stores.well import is_well, opened_well
from jitkit.stores.zarrfiles import METADATA, opened_zarr

if TYPE_CHECKING:
    pass

HEAD = 2**12  # bytes that are looked at to tell a format

REFUSED: tuple[tuple[bytes, str, str], ...] = (
    (b"GRIB", "GRIB", "xarray.open_dataset(path, engine='cfgrib').to_netcdf('new.nc')"),
    (b"\0\0\1\0", "Met Office PP", "iris.save(iris.load(path), 'new.nc')"),
    (
        b"II*\0",
        "TIFF",
        "rioxarray.open_rasterio(path).to_netcdf('new.nc'); pictures: domain images",
    ),
    (
        b"MM\0*",
        "TIFF",
        "rioxarray.open_rasterio(path).to_netcdf('new.nc'); pictures: domain images",
    ),
    (b"SIMPLE  =", "FITS", "np.save('new.npy', astropy.io.fits.getdata(path))"),
    (
        b"MATLAB 5.0",
        "MATLAB 5",
        "MATLAB's save with '-v7.3', or np.save of scipy.io.loadmat(path)[name]",
    ),
    (b"PAR1", "Parquet", "pandas.read_parquet(path).to_xarray().to_netcdf('new.nc')"),
    (b"\x0e\x03\x13\x01", "HDF 4", "h4toh5, or h4tonccf"),
    (b"\x80", "pickle", "np.save('new.npy', array); a pickle can run code, so none is opened"),
)
"""First bytes of what is not read: the format's name, and what makes a file that is."""


@contextmanager
def opened_file(place: Location, path: str, group: str | None) -> Iterator[Opened]:
    """The contents of a single file, wherever it lies."""
    size = int(place.stamp("").split()[0])
    head = place.read("", 0, min(HEAD, size)) or b""
    kind = format_of(head)
    if kind in ("npy", "npz", "netcdf3") and group is not None:
        raise DataError(f"{path}: has no groups, so there is no group {group!r}")
    if kind == "hdf5":
        with _opened_hdf5(place, path, group) as found:
            yield found
    elif kind == "netcdf3":
        yield _netcdf3(place)
    elif kind == "npy":
        yield of_sources({"values": npy_source(place, 0, "values")}, place)
    elif kind == "zip":
        with _opened_zip(place, path, group) as found:
            yield found
    else:
        raise DataError(f"{path}: {refusal(head)}")


def format_of(head: bytes) -> str | None:
    """The format that a file's first bytes tell; None for one that is not read.

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
    """Why a file is not read, and what to convert it with."""
    reads = "Zarr, NetCDF, HDF5, .npy and .npz are read"
    if not head:
        return f"is empty; {reads}"
    for magic, name, remedy in REFUSED:
        if head.startswith(magic):
            return f"is {name}, which is not read; convert it: {remedy}"
    return f"is of no known format ({head[:8]!r} at its start); {reads}; convert it with xarray"


@contextmanager
def _opened_hdf5(place: Location, path: str, group: str | None) -> Iterator[Opened]:
    with hdf5_file(place) as file:
        if group is None and is_well(file):
            yield opened_well(file, place)
            return
        with opened_hdf5(file, place, path, group) as found:
            yield found


@contextmanager
def opened_folder(where: Path, group: str | None) -> Iterator[Opened]:
    if not any((where / name).is_file() for name in METADATA):
        inside = sorted(p.name for p in where.iterdir() if not p.name.startswith("."))[:1000]
        suffixes = sorted({Path(name).suffix for name in inside if Path(name).suffix})
        globs = listed([f"{where}/*{s}" for s in suffixes]) or "nothing"
        raise DataError(
            f"{where}: is a folder without Zarr's metadata (zarr.json or .zgroup); "
            f"it holds {len(inside)} files; name one, or give a glob: {globs}"
        )
    folder = str(where.resolve())
    with opened_zarr(str(where), Folder(folder), partial(str, folder), group) as found:
        yield found


@contextmanager
def _opened_zip(place: Location, path: str, group: str | None) -> Iterator[Opened]:
    if not isinstance(place, File):
        raise DataError(f"{path}: archives are read on disk alone; copy it there")
    archive = Zip(place.path)
    names = archive.names()
    if any(name in METADATA for name in names):
        from zarr.storage import ZipStore

        make_store = partial(ZipStore, Path(place.path), mode="r")
        with opened_zarr(path, archive, make_store, group) as found:
            yield found
    elif names and all(name.endswith(".npy") for name in names):
        yield of_sources(npz_sources(place.path), archive)
    elif any(name.endswith("/data.pkl") for name in names):
        raise DataError(
            f"{path}: is a PyTorch file, a pickle, which can run code and so is not opened; "
            "convert it: np.save('new.npy', tensor.numpy())"
        )
    else:
        raise DataError(
            f"{path}: is an archive of neither Zarr (zarr.json or .zgroup at its top) nor NumPy "
            f"arrays: {listed(names, 3)}"
        )


def _netcdf3(place: Location) -> Opened:
    import xarray

    from jitkit.stores.netcdf3 import read_header

    header = read_header(place)
    sources: dict[str, Source] = {
        name: one_piece(place, v.offset, v.shape, v.dtype, stride=v.stride)
        for name, v in header.variables.items()
    }
    variables = {
        name: as_variable(v.dims, sources[name], v.attrs) for name, v in header.variables.items()
    }
    numeric = {n: s for n, s in sources.items() if s.dtype.kind in "iufb"}
    return Opened(xarray.Dataset(variables, attrs=header.attrs), numeric, place)
