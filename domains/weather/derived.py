"""Derived variables of items: single levels, sums over time, solar forcings, coarse fields.

A `DerivedStore` reads like a store. Its variables are on (time, y, x), with the times that a recipe
uses, and are computed from those of one or two stores when they are read; only the stores' chunks
are cached.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from jitkit.domains.weather.sphere import BlockMeans, Interpolation
from jitkit.domains.weather.sun import cos_zenith, toa_radiation
from jitkit.errors import DataError, listed, nearest
from jitkit.stores.chunks import as_slices
from jitkit.stores.variables import VariableInfo
from jitkit.utils.types import Array

if TYPE_CHECKING:
    import xarray

    from jitkit.stores.chunks import Stats
    from jitkit.stores.store import Readable

Where = Mapping[str, int | slice]
Need = tuple["Readable", str, dict[str, Array]]
"""A store, a variable of it, and the entries that are read along its dimensions."""


class DerivedSource(Protocol):
    """A variable of a `DerivedStore`."""

    @property
    def described(self) -> VariableInfo:
        """Its dimensions and size."""

    def read(self, where: Where) -> Array:
        """A box of its values, as `Store.read`."""

    def starts(self, dim: str) -> Array:
        """As `Store.starts`."""

    def needs(self, entries: Mapping[str, Array]) -> Iterator[Need]:
        """What is read for these entries of its dimensions; all entries of those not named."""

    def mark(self) -> str:
        """Text that identifies how it is computed; it differs where values may differ."""


@dataclass(frozen=True, eq=False)
class Plain:
    """A variable of a store, with some dimensions fixed to one entry.

    Attributes:
        store, name: the variable.
        fixed: entries of the fixed dimensions.
        time: name of the time dimension.
        entries: entries of the store along time that are used; None where it has no time.
    """

    store: Readable
    name: str
    fixed: Mapping[str, int]
    time: str
    entries: Array | None

    @property
    def described(self) -> VariableInfo:
        d = self.store.variables[self.name]
        kept = [i for i, dim in enumerate(d.dims) if dim not in self.fixed]
        dims = tuple(d.dims[i] for i in kept)
        shape = tuple(self._size(d.dims[i], d.shape[i]) for i in kept)
        chunks = tuple(min(d.chunks[i], max(1, n)) for i, n in zip(kept, shape, strict=True))
        return replace(d, dims=dims, shape=shape, chunks=chunks)

    def _size(self, dim: str, size: int) -> int:
        return len(self.entries) if dim == self.time and self.entries is not None else size

    def read(self, where: Where) -> Array:
        cuts: dict[str, int | slice] = {**where, **self.fixed}
        if self.entries is None or self.time not in self.store.variables[self.name].dims:
            return self.store.read(self.name, cuts)
        cut = where.get(self.time, slice(None))
        if isinstance(cut, int):
            return self.store.read(self.name, {**cuts, self.time: int(self.entries[cut])})
        parts = [
            self.store.read(self.name, {**cuts, self.time: stretch})
            for stretch in as_slices(self.entries[cut])
        ] or [self.store.read(self.name, {**cuts, self.time: slice(0, 0)})]
        left = [dim for dim in self.described.dims if not isinstance(where.get(dim), int)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=left.index(self.time))

    def starts(self, dim: str) -> Array:
        found = self.store.starts(self.name, dim)
        if dim != self.time or self.entries is None:
            return found
        return np.unique([*np.searchsorted(self.entries, found[:-1]), len(self.entries)])

    def needs(self, entries: Mapping[str, Array]) -> Iterator[Need]:
        found: dict[str, Array] = {}
        for dim in self.store.variables[self.name].dims:
            if dim in self.fixed:
                found[dim] = np.array([self.fixed[dim]])
            elif dim == self.time and self.entries is not None:
                found[dim] = self.entries[entries.get(dim, slice(None))]
            elif dim in entries:
                found[dim] = entries[dim]
        yield self.store, self.name, found

    def mark(self) -> str:
        return f"{self.store.path} {self.name} {sorted(self.fixed.items())}"


@dataclass(frozen=True, eq=False)
class Accumulated:
    """The sum of a variable over several steps of its store; the item's time is the last.

    Attributes:
        source: the amount of each step; all summed steps must exist.
        steps: number of steps.
        step_text: length of a step, for attributes.
    """

    source: Plain
    steps: int
    step_text: str

    @property
    def described(self) -> VariableInfo:
        d = self.source.described
        attrs = {**d.attrs, "cell_methods": f"time: sum (interval: {self.step_text})"}
        return replace(d, attrs=attrs, dtype=np.dtype(np.float32))

    def read(self, where: Where) -> Array:
        total = sum(part.read(where).astype(np.float64) for part in self._parts())
        return np.asarray(total, np.float32)

    def _parts(self) -> Iterator[Plain]:
        assert self.source.entries is not None
        for back in range(self.steps - 1, -1, -1):
            yield replace(self.source, entries=self.source.entries - back)

    def starts(self, dim: str) -> Array:
        return self.source.starts(dim)

    def needs(self, entries: Mapping[str, Array]) -> Iterator[Need]:
        for part in self._parts():
            yield from part.needs(entries)

    def mark(self) -> str:
        return f"{self.source.mark()} sum of {self.steps}"


@dataclass(frozen=True, eq=False)
class SolarForcing:
    """A solar forcing.

    Attributes:
        what: `cos_zenith` or `toa_radiation`.
        dims: time, y, x.
        times: of the items.
        latitudes, longitudes: in degrees, broadcasting to the grid (y, x).
    """

    what: str
    dims: tuple[str, str, str]
    times: Array
    latitudes: Array
    longitudes: Array

    @property
    def described(self) -> VariableInfo:
        grid = np.broadcast_shapes(self.latitudes.shape, self.longitudes.shape)
        shape = (len(self.times), *grid)
        units = {"cos_zenith": "1", "toa_radiation": "W m-2"}[self.what]
        chunks = (1, *grid)
        return VariableInfo(self.dims, shape, np.dtype(np.float32), {"units": units}, chunks, False)

    def read(self, where: Where) -> Array:
        time, *grid = (where.get(dim, slice(None)) for dim in self.dims)
        times = np.atleast_1d(self.times[time])
        values = solar_forcing(self.what, times, self.latitudes, self.longitudes)
        values = values[(slice(None), *grid)]
        return values[0] if isinstance(time, int) else values

    def starts(self, dim: str) -> Array:
        size = self.described.shape[self.dims.index(dim)]
        return np.arange(size + 1) if dim == self.dims[0] else np.array([0, size])

    def needs(self, entries: Mapping[str, Array]) -> Iterator[Need]:
        yield from ()

    def mark(self) -> str:
        return self.what


def solar_forcing(what: str, times: Array, latitudes: Array, longitudes: Array) -> Array:
    """A solar forcing, (T, y, x) float32."""
    formula = {"cos_zenith": cos_zenith, "toa_radiation": toa_radiation}[what]
    return formula(times, latitudes, longitudes)


@dataclass(frozen=True, eq=False)
class Coarse:
    """A variable of a coarser grid, on the grid of the items.

    Attributes:
        source: the variable.
        regrid: maps (..., y, x) of the source's grid to that of the items.
        grid: names of y and x of the source, and of the items.
        shape: cells along y and x of the items.
    """

    source: DerivedSource
    regrid: BlockMeans | Interpolation
    grid: tuple[tuple[str, str], tuple[str, str]]
    shape: tuple[int, int]

    @property
    def described(self) -> VariableInfo:
        d, (theirs, ours) = self.source.described, self.grid
        left = [i for i, dim in enumerate(d.dims) if dim not in theirs]
        dims = (*(d.dims[i] for i in left), *ours)
        shape = (*(d.shape[i] for i in left), *self.shape)
        chunks = (*(d.chunks[i] for i in left), *self.shape)
        return replace(d, dims=dims, shape=shape, chunks=chunks, dtype=np.dtype(np.float32))

    def read(self, where: Where) -> Array:
        theirs, ours = self.grid
        inside = {dim: cut for dim, cut in where.items() if dim not in ours}
        values = self.source.read(inside)
        kept = [d for d in self.source.described.dims if not isinstance(inside.get(d), int)]
        values = np.moveaxis(values, [kept.index(dim) for dim in theirs], [-2, -1])
        cuts = tuple(where.get(dim, slice(None)) for dim in ours)
        return self.regrid(values)[(..., *cuts)]

    def starts(self, dim: str) -> Array:
        ours = self.grid[1]
        if dim in ours:
            return np.array([0, self.shape[ours.index(dim)]])
        return self.source.starts(dim)

    def needs(self, entries: Mapping[str, Array]) -> Iterator[Need]:
        ours = self.grid[1]
        yield from self.source.needs({d: e for d, e in entries.items() if d not in ours})

    def mark(self) -> str:
        digest = hashlib.sha256()
        for value in self.regrid.__dict__.values():
            digest.update(np.ascontiguousarray(value).tobytes())
        return f"{self.source.mark()} by {type(self.regrid).__name__} {digest.hexdigest()}"


class DerivedStore:
    """Variables computed from those of stores; reads like a `Store`.

    Attributes:
        path: of the first store.
        attrs: its global attributes.
        variables: the derived variables.
    """

    def __init__(
        self, store: Readable, sources: Mapping[str, DerivedSource], time: str, entries: Array
    ) -> None:
        """Derive variables from a store.

        Args:
            store: its coordinates and attributes are used.
            sources: the variables, by name.
            time: name of the time dimension.
            entries: entries of the store along time that are used.
        """
        self.store, self.sources = store, dict(sources)
        self.time, self.entries = time, entries
        self.path, self.attrs = store.path, store.attrs
        self.variables: Mapping[str, VariableInfo] = {n: s.described for n, s in sources.items()}
        self._coords: xarray.Dataset | None = None

    @property
    def coords(self) -> xarray.Dataset:
        """Coordinates of the store at the used times."""
        if self._coords is None:
            self._coords = self.store.coords.isel({self.time: self.entries})
        return self._coords

    @property
    def stats(self) -> Stats:
        """Read statistics of the store."""
        return self.store.stats

    def read(self, variable: str, where: Where | None = None) -> Array:
        """As `Store.read`."""
        if variable not in self.sources and variable in self.coords.variables:
            found = self.coords[variable]
            cuts = tuple((where or {}).get(str(dim), slice(None)) for dim in found.dims)
            return np.asarray(found.values[cuts], np.float32)
        return self._found(variable).read(where or {})

    def read_raw(self, variable: str, where: Where | None = None) -> Array:
        """As `read`: derived variables are numeric."""
        return self.read(variable, where)

    def starts(self, variable: str, dim: str) -> Array:
        """As `Store.starts`."""
        return self._found(variable).starts(dim)

    def fingerprint(self, variables: Iterable[str] | None = None, *, times: bool = True) -> str:
        """A hash of the used data, see `Store.fingerprint`."""
        used = self.sources if variables is None else set(variables)
        stores: dict[int, tuple[Readable, set[str]]] = {}
        for name in used:
            for store, inner, _ in self.sources[name].needs({}):
                stores.setdefault(id(store), (store, set()))[1].add(inner)
        marks = [f"{name} {self.sources[name].mark()}" for name in sorted(used)]
        digest = hashlib.sha256("\n".join(marks).encode())
        digest.update(self.entries.astype("<i8").tobytes())
        for store, names in stores.values():
            digest.update(store.fingerprint(sorted(names), times=times).encode())
        return digest.hexdigest()

    def _found(self, variable: str) -> DerivedSource:
        if variable not in self.sources:
            raise DataError(
                f"{self.path}: no variable {variable!r}; it has {listed(self.sources, 20)}"
                f"{nearest(variable, self.sources)}"
            )
        return self.sources[variable]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_coords": None}
