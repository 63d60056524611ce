"""Variables and coordinates of one file or store: decoded metadata and sources of cells.

`read_contents` opens one file or store; `concat.concatenate` joins several along a dimension.
Neither keeps a file open.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from jitkit.errors import DataError
from jitkit.stores.cf import PACKING, Decoding, decoding
from jitkit.stores.chunks import Box, Source, chunk_slices, longest_chunk, read_box
from jitkit.stores.open import open_path
from jitkit.stores.opened import Opened
from jitkit.stores.raw import Whole
from jitkit.utils.types import Array

if TYPE_CHECKING:
    import xarray

BOUNDS = ("bounds", "climatology")  # attributes with the name of a coordinate's bounds
DEGREES = frozenset(
    f"{degree}{separator}{side}"
    for degree in ("degree", "degrees")
    for separator in ("_", "")
    for side in "north N south S east E west W".split()
)
"""Units of latitude and longitude (CF conventions 1.11, section 4.1)."""


@dataclass(frozen=True)
class VariableInfo:
    """Metadata of a variable.

    Attributes:
        dims: names of its axes.
        shape: cells along each axis.
        dtype: of the physical values, as xarray decodes them: a float if packed or with missing
            cells; integers, bool, text (kind ``U``, ``T`` or ``O``) and times (``M``).
        attrs: units, long_name and so on, without the encoding.
        chunks: cells of a chunk along each axis; the longest of concatenated files; a block of a
            few MB for contiguous data.
        missing: True if a fill value other than NaN is declared; False for integers without one;
            None if unknown, because any float may be NaN.
        encoding: ``dtype`` and the variable's ``scale_factor``, ``add_offset``, ``_FillValue``,
            ``missing_value`` and ``_Unsigned``, in xarray's form.
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    attrs: dict[str, Any]
    chunks: tuple[int, ...]
    missing: bool | None = None
    encoding: dict[str, Any] = field(default_factory=dict)

    @property
    def numeric(self) -> bool:
        """Whether `Store.read` can read it: real numbers."""
        return self.dtype.kind in "fiub"


@dataclass(frozen=True)
class Piece:
    """The part of a variable in one file.

    Attributes:
        path: path of the file.
        source: source of its chunks.
        decode: decoding of stored values; None for text and times, which ``source`` decodes.
    """

    path: str
    source: Source
    decode: Decoding | None

    def whole(self) -> Array:
        """All stored values, without the cache."""
        box = tuple(slice(0, size, 1) for size in self.source.shape)
        return read_box(self.source, box, partial(map, self.source.chunk), self.source.dtype)


@dataclass(frozen=True)
class Variable:
    """A variable as pieces, one per file, concatenated along ``axis``."""

    info: VariableInfo
    pieces: tuple[Piece, ...]
    axis: int = 0

    @cached_property
    def starts(self) -> Array:
        """Start of each piece along the axis, then the axis's size."""
        sizes = [p.source.shape[self.axis] if p.source.shape else 1 for p in self.pieces]
        return np.cumsum([0, *sizes])

    def overlapping(self, box: Box) -> Iterator[tuple[int, Box, slice]]:
        """For each piece that overlaps a box: index, box in it, slice of the box along the axis.

        One piece for an empty box.
        """
        if len(self.pieces) == 1:
            yield 0, box, slice(None)
            return
        slices = chunk_slices(self.starts, box[self.axis]) or [(0, slice(0, 0, 1), slice(0, 0))]
        for number, inside, target in slices:
            yield number, (*box[: self.axis], inside, *box[self.axis + 1 :]), target

    def sample_chunks(self, most: int) -> Iterator[tuple[int, tuple[int, ...]]]:
        """At most ``most`` evenly spaced chunks: index of the piece, index of the chunk."""
        indices = sorted({round(x) for x in np.linspace(0, len(self.pieces) - 1, most)})
        for number in indices:
            counts = [len(starts) - 1 for starts in self.pieces[number].source.starts]
            last = prod(counts) - 1
            for flat in sorted({round(x) for x in np.linspace(0, last, most // len(indices))}):
                if last >= 0:
                    index = np.unravel_index(flat, counts) if counts else ()
                    yield number, tuple(int(i) for i in index)


@dataclass
class Contents:
    """Variables and coordinates of a store, read and closed again.

    Attributes:
        path: the argument.
        attrs: global attributes.
        coords: coordinates, decoded, in memory.
        variables: data variables by name.
        coord_variables: numeric coordinates as variables.
    """

    path: str
    attrs: dict[str, Any]
    coords: xarray.Dataset
    variables: dict[str, Variable]
    coord_variables: dict[str, Variable]


def read_contents(path: str, group: str | None, options: Mapping[str, Any]) -> Contents:
    """Read the metadata and coordinates of a file or store.

    Raises:
        DataError: as `open.open_path`, or times that cannot be decoded.
    """
    try:
        return _contents(path, group, options)
    except DataError as error:
        text = str(error)
        raise DataError(text if path in text else f"{path}: {text}") from error
    except Exception as error:  # libraries raise many types on a broken file
        why = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{path}: cannot be opened ({why}); if it is cut short, copy it again"
        ) from error


def _contents(path: str, group: str | None, options: Mapping[str, Any]) -> Contents:
    reopen = partial(open_path, path, group, options)
    with reopen() as opened:
        decoded = decode(opened.raw)
        if group:
            decoded = decoded.assign_coords(_inherited(path, group, options, decoded))
        coords = decoded.coords.to_dataset()
        unwanted = _named_by(coords, BOUNDS)
        coords = coords.drop_vars(unwanted, errors="ignore")
        for coordinate in coords.variables.values():
            for key in BOUNDS:
                coordinate.attrs.pop(key, None)
        variables = {}
        for name, variable in decoded.variables.items():
            if name not in unwanted and name in opened.raw.variables:
                piece = _piece(path, reopen, opened, str(name), variable)
                variables[str(name)] = _variable(opened.raw.variables[name], variable, piece)
        return Contents(
            path,
            dict(decoded.attrs),
            coords.load(),
            {name: v for name, v in variables.items() if name not in coords.variables},
            {name: v for name, v in variables.items() if name in coords.variables},
        )


def _inherited(
    path: str, group: str, options: Mapping[str, Any], decoded: xarray.Dataset
) -> dict[str, Any]:
    """Coordinates of a group's dimensions that are stored in its parent groups."""
    found: dict[str, Any] = {}
    for depth in reversed(range(len(group.strip("/").split("/")))):
        missing = {d for d in decoded.sizes if d not in decoded.coords and d not in found}
        if not missing:
            break
        parent_group = "/".join(group.strip("/").split("/")[:depth]) or None
        # a parent group without arrays raises DataError
        with suppress(DataError), open_path(path, parent_group, options) as parent:
            for name, c in decode(parent.raw).coords.items():
                fits = all(decoded.sizes.get(d) == n for d, n in c.sizes.items())
                if missing & set(c.dims) and fits:
                    found[str(name)] = c.variable.load()
    return found


def decode(raw: xarray.Dataset) -> xarray.Dataset:
    """Decode a raw dataset lazily; positions, bounds and grid mappings become coordinates."""
    import xarray

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about several fill values: all of them mean "missing"
        decoded = xarray.decode_cf(raw, decode_timedelta=False)
    others = _named_by(decoded, (*BOUNDS, "grid_mapping"))
    return decoded.set_coords((others | _positions(decoded)) & set(decoded.data_vars))


def _positions(decoded: xarray.Dataset) -> set[str]:
    """Latitudes and longitudes of other variables' cells that no attribute lists."""
    names = ("latitude", "longitude")
    found = {
        str(name): v
        for name, v in decoded.data_vars.items()
        if v.attrs.get("standard_name") in names or v.attrs.get("units") in DEGREES
    }
    rest = [set(v.dims) for name, v in decoded.data_vars.items() if name not in found]
    return {name for name, v in found.items() if v.ndim and any(set(v.dims) <= d for d in rest)}


def _named_by(dataset: xarray.Dataset, keys: Sequence[str]) -> set[str]:
    """Variables named in attributes of others."""
    return {
        word
        for variable in dataset.variables.values()
        for key in keys
        for word in str(variable.attrs.get(key, variable.encoding.get(key, ""))).split()
        if word in dataset.variables
    }


def _variable(raw: xarray.Variable, decoded: xarray.Variable, piece: Piece) -> Variable:
    fills = piece.decode.fills if piece.decode is not None else ()
    packing = {key: raw.attrs[key] for key in PACKING if key in raw.attrs}
    info = VariableInfo(
        dims=tuple(map(str, decoded.dims)),
        shape=tuple(decoded.shape),
        dtype=_native(decoded.dtype),
        attrs=dict(decoded.attrs),
        chunks=tuple(longest_chunk(starts) for starts in piece.source.starts),
        missing=True if fills else False if decoded.dtype.kind in "iub" else None,
        encoding={"dtype": _native(raw.dtype), **packing},
    )
    return Variable(info, (piece,))


def _native(dtype: Any) -> np.dtype[Any]:
    """A dtype in native byte order; text has no byte order."""
    dtype = np.dtype(dtype)
    return dtype.newbyteorder("=") if dtype.kind in "iufbcMm" else dtype


Reopen = Callable[[], AbstractContextManager[Opened]]


def _piece(path: str, reopen: Reopen, opened: Opened, name: str, decoded: xarray.Variable) -> Piece:
    """Numeric data from chunks; other types are read whole by xarray."""
    raw, source = opened.raw.variables[name], opened.sources.get(name)
    if source is not None and decoded.dtype.kind in "iufb" and decoded.dims == raw.dims:
        return Piece(path, source, decoding(source.dtype, raw.attrs))
    make = partial(_values, reopen, name)
    return Piece(path, Whole(make, decoded.shape, decoded.dtype, name, opened.location), None)


def _values(reopen: Reopen, name: str) -> Array:
    with reopen() as opened:
        values: Array = decode(opened.raw).variables[name].values
        return values
