"""NetCDF 3 files, classic and with 64-bit offsets: SciPy reads the header, `raw` the data.

Data are read at the byte offsets of SciPy's arrays, so workers do not import SciPy, and remote
files are read by ranges.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from jitkit.errors import DataError
from jitkit.stores.hdf5files import as_file
from jitkit.stores.locations import File, Location
from jitkit.stores.opened import Opened, as_variable
from jitkit.stores.raw import contiguous_source

STREAMING = b"\xff" * 4  # the number of records in a file that is still written


def open_netcdf3(location: Location) -> Opened:
    """Open a NetCDF 3 file.

    Raises:
        DataError: it is truncated, or its number of records is not set.
        Exception: of many types, from SciPy, if the header is invalid.
    """
    import xarray

    if location.read("", 4, 4) == STREAMING:
        raise DataError("its number of records is not set; finish writing it, then copy it again")
    with _header(location) as file:
        attrs = _attributes(file)
        layouts = {_text(name): _layout(file.variables[name]) for name in file.variables}
    sources, variables = {}, {}
    for name, (dims, variable_attrs, layout) in layouts.items():
        sources[name] = contiguous_source(location, **layout)
        variables[name] = as_variable(dims, sources[name], variable_attrs)
    numeric = {name: source for name, source in sources.items() if source.dtype.kind in "iuf"}
    return Opened(xarray.Dataset(variables, attrs=attrs), numeric, location)


@contextmanager
def _header(location: Location) -> Iterator[Any]:
    """The file in SciPy; if it is remote, with zeros for data, as only the header is wanted."""
    from scipy.io import netcdf_file

    if isinstance(location, File):
        with netcdf_file(location.path, mmap=True) as opened:
            yield opened
        return
    with tempfile.TemporaryFile() as zeros, as_file(location) as file:
        zeros.truncate(int(location.stamp("").split()[0]))
        file.fileno = zeros.fileno  # what SciPy maps
        with netcdf_file(file, mmap=True) as opened:
            yield opened


def _layout(variable: Any) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
    """Dimensions, attributes, and arguments of `contiguous_source` of a variable."""
    data = variable.data
    layout = {
        "offset": data.ctypes.data - data.base.ctypes.data,  # the base is the mapped file
        "shape": data.shape,
        "dtype": np.dtype("S1") if data.dtype.kind == "S" else data.dtype,
        "stride": data.strides[0] if data.shape else None,
    }
    return [_text(dim) for dim in variable.dimensions], _attributes(variable), layout


def _attributes(of: Any) -> dict[str, Any]:
    """Attributes of a file or a variable, in native byte order."""
    attrs: Mapping[str, Any] = of._attributes
    return {_text(name): _value(value) for name, value in attrs.items()}


def _value(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return np.asarray(value).astype(value.dtype.newbyteorder("="))[()]


def _text(name: str) -> str:
    """A name, which SciPy decodes as Latin-1 even where it is UTF-8."""
    try:
        return name.encode("latin1").decode("utf-8")
    except UnicodeDecodeError:
        return name
