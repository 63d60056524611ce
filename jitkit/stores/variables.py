"""What a store holds, once it is opened: coordinates decoded, variables described.

`contents` opens one file or store; `joined` makes one of several that follow each other along a
dimension. Neither keeps a file open.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from jitkit.errors import DataError
from jitkit.stores.cf import PACKING, Decoding, decoding
from jitkit.stores.chunks import Box, Source, longest, parts, read_box
from jitkit.stores.open import opened
from jitkit.stores.opened import Opened
from jitkit.stores.raw import Whole
from jitkit.utils.types import Array

if TYPE_CHECKING:
    import xarray

BOUNDS = ("bounds", "climatology")  # attributes that name a coordinate's bounds
DEGREES = frozenset(
    f"{degree}{separator}{side}"
    for degree in ("degree", "degrees")
    for separator in ("_", "")
    for side in "north N south S east E west W".split()
)
"""Units of latitude and longitude (CF conventions 1.11, section 4.1), whatever they are called."""


@dataclass(frozen=True)
class Described:
    """A variable of a store.

    Attributes:
        dims: names of its axes.
        shape: cells along each.
        dtype: of the physical values, as xarray decodes them: a float for what is packed or has
            missing cells; integers, bool, text (kind ``U``, ``T`` or ``O``) and times (``M``).
        attrs: units, long_name and so on, without what says how numbers are stored.
        chunks: cells of a chunk along each axis; the longest of files that are joined; for data in
            one piece a block of a few MB.
        missing: a fill value is declared that is a number; False for integers without one; None
            where nothing says, as a float may be NaN in any file.
        encoding: how it is stored: ``dtype``, and those of ``scale_factor``, ``add_offset``,
            ``_FillValue``, ``missing_value`` and ``_Unsigned`` that it has, as xarray takes them.
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
        """Real numbers, which `Store.read` gives."""
        return self.dtype.kind in "fiub"


@dataclass(frozen=True)
class Piece:
    """A variable in one file.

    Attributes:
        path: of the file.
        source: its chunks.
        decode: of its numbers; None for text and times, which ``source`` gives decoded.
    """

    path: str
    source: Source
    decode: Decoding | None

    def whole(self) -> Array:
        """All stored values, past every cache."""
        box = tuple(slice(0, size, 1) for size in self.source.shape)
        return read_box(self.source, box, partial(map, self.source.chunk), self.source.dtype)


@dataclass(frozen=True)
class Variable:
    """A variable and where its cells lie: pieces that follow each other along ``axis``."""

    described: Described
    pieces: tuple[Piece, ...]
    axis: int = 0

    @cached_property
    def starts(self) -> Array:
        """First cell of each piece along the axis, then the axis's size."""
        sizes = [p.source.shape[self.axis] if p.source.shape else 1 for p in self.pieces]
        return np.cumsum([0, *sizes])

    def touched(self, box: Box) -> Iterator[tuple[int, Box, slice]]:
        """For each piece that a box touches: number, box in it, cells of the box along the axis.

        One for an empty box.
        """
        if len(self.pieces) == 1:
            yield 0, box, slice(None)
            return
        found = parts(self.starts, box[self.axis]) or [(0, slice(0, 0, 1), slice(0, 0))]
        for number, inside, place in found:
            yield number, (*box[: self.axis], inside, *box[self.axis + 1 :]), place

    def spread(self, most: int) -> Iterator[tuple[int, tuple[int, ...]]]:
        """At most so many chunks from first to last: number of the piece, index of the chunk."""
        numbers = sorted({round(x) for x in np.linspace(0, len(self.pieces) - 1, most)})
        for number in numbers:
            counts = [len(starts) - 1 for starts in self.pieces[number].source.starts]
            last = prod(counts) - 1
            for flat in sorted({round(x) for x in np.linspace(0, last, most // len(numbers))}):
                if last >= 0:
                    index = np.unravel_index(flat, counts) if counts else ()
                    yield number, tuple(int(i) for i in index)


@dataclass
class Contents:
    """A store that was opened and closed again.

    Attributes:
        path: as it was given.
        attrs: global attributes.
        coords: coordinates alone, decoded, in memory.
        variables: data variables by name.
        inner: numeric coordinates as variables.
    """

    path: str
    attrs: dict[str, Any]
    coords: xarray.Dataset
    variables: dict[str, Variable]
    inner: dict[str, Variable]


def contents(path: str, group: str | None, options: Mapping[str, Any]) -> Contents:
    """Open a file or store, and close it.

    Raises:
        DataError: as `formats.opened`, or times that cannot be decoded.
    """
    try:
        return _contents(path, group, options)
    except DataError as error:
        told = str(error)
        raise DataError(told if path in told else f"{path}: {told}") from error
    except Exception as error:  # libraries raise almost anything on a broken file
        why = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: cannot be opened ({why}); if it is cut short, copy it") from error


def _contents(path: str, group: str | None, options: Mapping[str, Any]) -> Contents:
    with opened(path, group, options) as found:
        decoded = decode(found.raw)
        if group:
            decoded = decoded.assign_coords(_inherited(path, group, options, decoded))
        coords = decoded.coords.to_dataset()
        unwanted = _named_by(coords, BOUNDS)
        coords = coords.drop_vars(unwanted, errors="ignore")
        for coordinate in coords.variables.values():
            for key in BOUNDS:
                coordinate.attrs.pop(key, None)
        variables = {
            str(name): _variable(found, str(name), decoded[name].variable, path, group, options)
            for name in decoded.variables
            if name not in unwanted and name in found.raw.variables
        }
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
    """Coordinates of a group's dimensions that stand in groups above it."""
    found: dict[str, Any] = {}
    for depth in reversed(range(len(group.strip("/").split("/")))):
        lacking = {d for d in decoded.sizes if d not in decoded.coords and d not in found}
        if not lacking:
            break
        above = "/".join(group.strip("/").split("/")[:depth]) or None
        with suppress(DataError), opened(path, above, options) as parent:  # it may hold no arrays
            for name, c in decode(parent.raw).coords.items():
                fits = all(decoded.sizes.get(d) == n for d, n in c.sizes.items())
                if lacking & set(c.dims) and fits:
                    found[str(name)] = c.variable.load()
    return found


def decode(raw: xarray.Dataset) -> xarray.Dataset:
    """A raw dataset decoded, lazily; what places others or maps a grid is a coordinate."""
    import xarray

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of several fill values: all of them mean "missing"
        decoded = xarray.decode_cf(raw, decode_timedelta=False)
    others = _named_by(decoded, (*BOUNDS, "grid_mapping"))
    return decoded.set_coords((others | _places(decoded)) & set(decoded.data_vars))


def _places(decoded: xarray.Dataset) -> set[str]:
    """Variables that say where the cells of others lie, though no attribute names them."""
    names = ("latitude", "longitude")
    found = {
        str(name): v
        for name, v in decoded.data_vars.items()
        if v.attrs.get("standard_name") in names or v.attrs.get("units") in DEGREES
    }
    rest = [set(v.dims) for name, v in decoded.data_vars.items() if name not in found]
    return {name for name, v in found.items() if v.ndim and any(set(v.dims) <= d for d in rest)}


def _named_by(dataset: xarray.Dataset, keys: Sequence[str]) -> set[str]:
    """Variables that attributes of others name."""
    return {
        word
        for variable in dataset.variables.values()
        for key in keys
        for word in str(variable.attrs.get(key, variable.encoding.get(key, ""))).split()
        if word in dataset.variables
    }


def _variable(
    found: Opened,
    name: str,
    decoded: xarray.Variable,
    path: str,
    group: str | None,
    options: Mapping[str, Any],
) -> Variable:
    raw = found.raw.variables[name]
    piece = _piece(found, name, decoded, path, group, options)
    fills = piece.decode.fills if piece.decode is not None else ()
    packing = {key: raw.attrs[key] for key in PACKING if key in raw.attrs}
    described = Described(
        dims=tuple(map(str, decoded.dims)),
        shape=tuple(decoded.shape),
        dtype=_native(decoded.dtype),
        attrs=dict(decoded.attrs),
        chunks=tuple(longest(starts) for starts in piece.source.starts),
        missing=True if fills else False if decoded.dtype.kind in "iub" else None,
        encoding={"dtype": _native(raw.dtype), **packing},
    )
    return Variable(described, (piece,))


def _native(dtype: Any) -> np.dtype[Any]:
    """A dtype in this machine's byte order; text has none."""
    dtype = np.dtype(dtype)
    return dtype.newbyteorder("=") if dtype.kind in "iufbcMm" else dtype


def _piece(
    found: Opened,
    name: str,
    decoded: xarray.Variable,
    path: str,
    group: str | None,
    options: Mapping[str, Any],
) -> Piece:
    """Numbers from their chunks, anything else whole and through xarray."""
    raw, source = found.raw.variables[name], found.sources.get(name)
    if source is not None and decoded.dtype.kind in "iufb" and decoded.dims == raw.dims:
        return Piece(path, source, decoding(source.dtype, raw.attrs))
    make = partial(_values, path, group, options, name)
    return Piece(path, Whole(make, decoded.shape, decoded.dtype, name, found.place), None)


def _values(path: str, group: str | None, options: Mapping[str, Any], name: str) -> Array:
    with opened(path, group, options) as found:
        values: Array = decode(found.raw).variables[name].values
        return values
