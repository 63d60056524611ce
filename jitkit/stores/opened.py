"""Result of opening an array file: a lazy xarray dataset and a chunk source per variable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from jitkit.stores.chunks import Direct, Source, read_box
from jitkit.stores.locations import Location

if TYPE_CHECKING:
    import xarray


@dataclass
class Opened:
    """An open file or store.

    Attributes:
        raw: every variable, undecoded; usable inside the opener's context.
        sources: chunk sources of the numeric variables, by name; usable after the context.
        location: location of its bytes.
    """

    raw: xarray.Dataset
    sources: Mapping[str, Source]
    location: Location


def from_sources(sources: Mapping[str, Source], location: Location) -> Opened:
    """Arrays without named axes: dim_0, dim_1, ...; dim_0_of_SIZE where sizes differ."""
    import xarray

    sizes: dict[str, int] = {}
    variables = {}
    for name in sorted(sources, key=lambda name: -len(sources[name].shape)):
        dims = []
        for axis, size in enumerate(sources[name].shape):
            dim = f"dim_{axis}"
            if sizes.setdefault(dim, size) != size:
                dim = f"dim_{axis}_of_{size}"
                sizes[dim] = size
            dims.append(dim)
        variables[name] = as_variable(dims, sources[name], {})
    in_order = {name: variables[name] for name in sources}
    numeric = {n: s for n, s in sources.items() if s.dtype.kind in "iufb"}
    return Opened(xarray.Dataset(in_order), numeric, location)


def as_variable(dims: Any, source: Source, attrs: Mapping[str, Any]) -> xarray.Variable:
    """A source as a lazy xarray variable."""
    import xarray
    from xarray.backends import BackendArray
    from xarray.core import indexing

    if isinstance(source, Direct):
        return xarray.Variable(dims, source.view((slice(None),) * len(source.shape)), dict(attrs))

    class Adapter(BackendArray):
        """Reads the whole variable, because only coordinates are read this way."""

        shape, dtype = source.shape, source.dtype

        def __getitem__(self, key: Any) -> Any:
            return indexing.explicit_indexing_adapter(
                key, self.shape, indexing.IndexingSupport.BASIC, self._read
            )

        def _read(self, key: tuple[Any, ...]) -> Any:
            box = tuple(slice(0, size, 1) for size in source.shape)
            cells = read_box(source, box, partial(map, source.chunk), source.dtype)
            return cells[key]

    return xarray.Variable(dims, indexing.LazilyIndexedArray(Adapter()), dict(attrs))
