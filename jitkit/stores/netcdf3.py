"""NetCDF 3 header reader: classic, 64-bit offset and 64-bit data (CDF-1, CDF-2, CDF-5).

After "NetCDF Classic Format Specification" (Unidata, netCDF 4.9 documentation, appendix B) and the
CDF-5 specification of PnetCDF. SciPy supports the first two only, and takes the offset of the first
record variable for those of all.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from jitkit.errors import DataError
from jitkit.stores.locations import Location

TYPES = dict(
    enumerate(["i1", "S1", ">i2", ">i4", ">f4", ">f8", "u1", ">u2", ">u4", ">i8", ">u8"], 1)
)
STREAMING = {4: 2**32 - 1, 8: 2**64 - 1}  # record count left unset, by bytes of a count
FIRST = 2**16  # bytes of the first read; a header is rarely longer


@dataclass
class Variable3:
    """A variable: axes, attributes, and byte offset of its data.

    Attributes:
        stride: bytes from one record to the next; None if contiguous.
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    attrs: dict[str, Any]
    offset: int
    stride: int | None = None


@dataclass
class Header3:
    """Header of a file: global attributes and variables."""

    attrs: dict[str, Any] = field(default_factory=dict)
    variables: dict[str, Variable3] = field(default_factory=dict)


class _Reader:
    """Sequential reader of the header's fields."""

    def __init__(self, location: Location) -> None:
        self._location, self._offset = location, 4
        self._size = int(location.stamp("").split()[0])
        self._data = location.read("", 0, min(FIRST, self._size)) or b""
        self.version = self._data[3]
        self.count_bytes = 8 if self.version == 5 else 4
        self.offset_bytes = 4 if self.version == 1 else 8

    def take(self, length: int) -> bytes:
        end = self._offset + length
        if end > self._size:
            raise DataError(f"its header is cut short at {self._size} bytes; copy the file again")
        if end > len(self._data):
            self._data = (
                self._location.read("", 0, min(self._size, max(end, 2 * len(self._data)))) or b""
            )
        data = self._data[self._offset : end]
        self._offset = end
        return data

    def number(self, length: int) -> int:
        return int.from_bytes(self.take(length), "big")

    def count(self) -> int:
        return self.number(self.count_bytes)

    def padded(self, length: int) -> bytes:
        """``length`` bytes, after which the padding to a multiple of 4 is skipped."""
        return self.take(-(-length // 4) * 4)[:length]

    def name(self) -> str:
        name = self.padded(self.count())
        try:
            return name.decode("utf-8")
        except UnicodeDecodeError:  # as some programs write it, against the format
            return name.decode("latin1")

    def entries(self) -> range:
        """Indices of a list's entries; its tag, 0 for an empty list, is skipped."""
        self.number(4)
        return range(self.count())

    def attributes(self) -> dict[str, Any]:
        return {self.name(): self._attribute() for _ in self.entries()}

    def _attribute(self) -> Any:
        dtype = self.dtype()
        data = self.padded(self.count() * dtype.itemsize)
        if dtype.kind == "S":
            return data.decode("utf-8", "replace").rstrip("\0")
        values = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="))
        return values[0] if values.size == 1 else values

    def dtype(self) -> np.dtype[Any]:
        number = self.number(4)
        if number not in TYPES:
            raise DataError(f"its header has type {number}, which NetCDF 3 does not define")
        return np.dtype(TYPES[number])

    @property
    def size(self) -> int:
        return self._size


def read_header(location: Location) -> Header3:
    """The header of a NetCDF 3 file.

    Raises:
        DataError: it is truncated or invalid.
    """
    reader = _Reader(location)
    records = reader.count()
    dims = [(reader.name(), reader.count()) for _ in reader.entries()]
    header = Header3(reader.attributes())
    recorded: dict[str, int] = {}  # bytes per record of each record variable
    for _ in reader.entries():
        name = reader.name()
        axes = [dims[reader.count()] for _ in range(reader.count())]
        attrs, dtype = reader.attributes(), reader.dtype()
        reader.count()  # size: unused, as it overflows for large variables
        offset = reader.number(reader.offset_bytes)
        shape = tuple(size for _, size in axes)
        header.variables[name] = Variable3(
            tuple(dim for dim, _ in axes), shape, dtype, attrs, offset
        )
        if axes and axes[0][1] == 0:  # the record dimension has length 0 in the header
            recorded[name] = prod(shape[1:]) * dtype.itemsize
    _set_records(header, recorded, records, reader)
    return header


def _set_records(header: Header3, recorded: dict[str, int], records: int, reader: _Reader) -> None:
    """Set number and stride of records, which interleave all record variables."""
    padded = {name: -(-size // 4) * 4 for name, size in recorded.items()}
    # by the format, records of a single variable are not padded
    stride = sum(padded.values()) if len(recorded) > 1 else sum(recorded.values())
    if records == STREAMING[reader.count_bytes]:
        first = min((header.variables[name].offset for name in recorded), default=0)
        records = (reader.size - first) // stride if stride else 0
    for name in recorded:
        variable = header.variables[name]
        variable.shape, variable.stride = (records, *variable.shape[1:]), stride
