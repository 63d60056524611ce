"""The header of NetCDF 3: classic, 64-bit offset and 64-bit data (CDF-1, CDF-2, CDF-5).

After "NetCDF Classic Format Specification" (Unidata, netCDF 4.9 documentation, appendix B) and the
CDF-5 specification of PnetCDF. SciPy knows the first two and copies what it reads; here the numbers
stay where they are.
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
STREAMING = {4: 2**32 - 1, 8: 2**64 - 1}  # records that were not counted, by bytes of a count
FIRST = 2**16  # bytes that are read at first; a header rarely needs more


@dataclass
class Variable3:
    """A variable: axes, attributes, and where its numbers lie.

    Attributes:
        stride: bytes from one record to the next; None where all lie in one piece.
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    attrs: dict[str, Any]
    offset: int
    stride: int | None = None


@dataclass
class Header3:
    """What stands in a file: global attributes and variables."""

    attrs: dict[str, Any] = field(default_factory=dict)
    variables: dict[str, Variable3] = field(default_factory=dict)


class _Reader:
    """The header's numbers and names, one after the other."""

    def __init__(self, place: Location) -> None:
        self._place, self._at = place, 4
        self._size = int(place.stamp("").split()[0])
        self._data = place.read("", 0, min(FIRST, self._size)) or b""
        self.version = self._data[3]
        self.count_bytes = 8 if self.version == 5 else 4
        self.offset_bytes = 4 if self.version == 1 else 8

    def take(self, length: int) -> bytes:
        end = self._at + length
        if end > self._size:
            raise DataError(f"its header is cut short at {self._size} bytes; copy the file anew")
        if end > len(self._data):
            self._data = (
                self._place.read("", 0, min(self._size, max(end, 2 * len(self._data)))) or b""
            )
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def number(self, length: int) -> int:
        return int.from_bytes(self.take(length), "big")

    def count(self) -> int:
        return self.number(self.count_bytes)

    def padded(self, length: int) -> bytes:
        """Bytes up to the next multiple of 4, of which ``length`` count."""
        return self.take(-(-length // 4) * 4)[:length]

    def name(self) -> str:
        return self.padded(self.count()).decode("utf-8")

    def entries(self) -> range:
        """The entries of a list; its tag says what follows, and is 0 where nothing does."""
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
            raise DataError(f"its header names a type {number}, which NetCDF 3 does not have")
        return np.dtype(TYPES[number])

    @property
    def size(self) -> int:
        return self._size


def read_header(place: Location) -> Header3:
    """The header of a NetCDF 3 file.

    Raises:
        DataError: it is cut short or is none.
    """
    reader = _Reader(place)
    records = reader.count()
    dims = [(reader.name(), reader.count()) for _ in reader.entries()]
    header = Header3(reader.attributes())
    recorded: dict[str, int] = {}  # bytes of a record of each variable
    for _ in reader.entries():
        name = reader.name()
        axes = [dims[reader.count()] for _ in range(reader.count())]
        attrs, dtype = reader.attributes(), reader.dtype()
        reader.count()  # the size, which overflows for large variables and follows from the shape
        offset = reader.number(reader.offset_bytes)
        shape = tuple(size for _, size in axes)
        header.variables[name] = Variable3(
            tuple(dim for dim, _ in axes), shape, dtype, attrs, offset
        )
        if axes and axes[0][1] == 0:  # the record dimension has no length of its own
            recorded[name] = prod(shape[1:]) * dtype.itemsize
    _set_records(header, recorded, records, reader)
    return header


def _set_records(header: Header3, recorded: dict[str, int], records: int, reader: _Reader) -> None:
    """Number and distance of records, in which all record variables take turns."""
    padded = {name: -(-size // 4) * 4 for name, size in recorded.items()}
    stride = sum(padded.values()) if len(recorded) > 1 else sum(recorded.values())  # sic
    if records == STREAMING[reader.count_bytes]:
        first = min((header.variables[name].offset for name in recorded), default=0)
        records = (reader.size - first) // stride if stride else 0
    for name in recorded:
        variable = header.variables[name]
        variable.shape, variable.stride = (records, *variable.shape[1:]), stride
