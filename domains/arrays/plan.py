"""Plan of an item: axes, sample dimensions and channels of a store; default patch size.

variables (time, level, latitude, longitude)
  axes    latitude, longitude  -> X1, X2          sample  time  -> one item each
  unroll  level                -> channels z.500, z.850, ...
  window  steps of time        -> an additional first axis
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, prod
from typing import TYPE_CHECKING, Any

import numpy as np

from jitkit.domains.arrays.coordinates import Selection, coordinate, label, matching
from jitkit.domains.arrays.read import ArrayVariable, Indexer
from jitkit.errors import DataError, RecipeError, listed, nearest
from jitkit.fields import Axis, Kind
from jitkit.stores.chunks import as_slices
from jitkit.utils.types import Array

if TYPE_CHECKING:
    from jitkit.stores.store import Readable, VariableInfo

MAX_TOKENS = 512


@dataclass(frozen=True, eq=False)
class ArrayPlan:
    """Mapping from a store's dimensions and variables to items.

    Attributes:
        axes: dimensions of the grid and their kinds, in grid order, without the window's axis.
        sample: dimensions from which items are drawn; the last varies fastest.
        along: the sample dimension of windows, strides and past steps.
        unroll: dimensions whose entries are channels.
        entries: used entries by dimension: indices in the store, in order.
        values: coordinate values of the entries, by sample dimension.
        variables: predicted variables.
    """

    axes: Mapping[str, Kind]
    sample: tuple[str, ...]
    along: str
    unroll: tuple[str, ...]
    entries: Mapping[str, Array]
    values: Mapping[str, Array]
    variables: tuple[ArrayVariable, ...]

    @property
    def grid(self) -> tuple[int, ...]:
        """Cells along each axis, without the window's axis."""
        return tuple(len(self.entries[axis]) for axis in self.axes)

    def indexers(self) -> dict[str, Indexer]:
        """Indexers of the dimensions that are not sample dimensions: all used entries of axes and
        unrolled dimensions, the only entry of others."""
        whole = {*self.axes, *self.unroll}
        return {
            dim: as_slices(entries) if dim in whole else int(entries[0])
            for dim, entries in self.entries.items()
            if dim not in self.sample
        }


# Which dimensions and variables


def make_plan(
    store: Readable,
    *,
    axes: Mapping[str, Kind] | None,
    sample: Sequence[str] | None,
    along: str | None,
    unroll: Sequence[str],
    select: Mapping[str, Selection],
    variables: Sequence[str] | None,
    conditioning_variables: Iterable[str] = (),
) -> ArrayPlan:
    """Resolve a recipe's keys against the dimensions and variables of a store.

    Args:
        store: the data.
        axes, sample, along, unroll, select, variables: keys of section ``domain``.
        conditioning_variables: conditions, not predicted unless named in ``variables``.

    Raises:
        RecipeError, DataError: a key does not fit the store; the text lists what is available.
    """
    sizes = {d: n for v in store.variables.values() for d, n in zip(v.dims, v.shape, strict=True)}
    axes = _checked_axes(store, sizes, axes)
    requested = {"sample": sample or (), "unroll": unroll, "select": select}
    for key, dims in requested.items():
        for dim in dims:
            _check_dim(dim, sizes, f"domain.{key}")
    names = _predicted_variables(store, axes, variables, set(conditioning_variables))
    all_sizes = {str(dim): size for dim, size in store.coords.sizes.items()} | sizes
    entries = {dim: np.arange(size) for dim, size in all_sizes.items()}
    for dim, selection in select.items():
        selected = matching(coordinate(store, dim, sizes[dim]), selection, f"domain.select.{dim}")
        entries[dim] = selected if dim in unroll else np.unique(selected)
    sample_dims = _sample_dims(store, names, axes, unroll, sample, entries)
    if along is not None and along not in sample_dims:
        near = nearest(along, sample_dims)
        raise RecipeError(
            f"domain.along: {along!r} is not a sample dimension; there are "
            f"{listed(sample_dims)}{near}"
        )
    _check_dims(store, names, axes, sample_dims, unroll, entries)
    _check_circles(store, axes, sizes, entries)
    return ArrayPlan(
        axes=axes,
        sample=sample_dims,
        along=along or sample_dims[0],
        unroll=tuple(unroll),
        entries=entries,
        values={dim: coordinate(store, dim, sizes[dim])[entries[dim]] for dim in sample_dims},
        variables=tuple(as_channels(store, name, unroll, entries) for name in names),
    )


def as_channels(
    store: Readable, name: str, unroll: Sequence[str], entries: Mapping[str, Array]
) -> ArrayVariable:
    """A variable of a store with its channels."""
    dims, shape = dims_and_shape(store, name)
    unrolled = tuple(dim for dim in dims if dim in unroll)
    labels = [
        [label(value) for value in coordinate(store, dim, size)[entries[dim]]]
        for dim, size in zip(dims, shape, strict=True)
        if dim in unroll
    ]
    channels = tuple(".".join([name, *entry]) for entry in product(*labels))
    if len(set(channels)) < len(channels):
        raise DataError(
            f"domain.unroll: {listed(unrolled)} of {name!r} has entries with the same name "
            f"({listed(channels)}); give the coordinate distinct values"
        )
    return ArrayVariable(name, dims, unrolled, channels)


def dims_and_shape(store: Readable, name: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Dimensions and shape of a variable or a coordinate."""
    found: VariableInfo | Any = store.variables.get(name)
    if found is None and name in store.coords.variables:
        found = store.coords[name]
    if found is None:
        known = [*store.variables, *map(str, store.coords.variables)]
        raise DataError(
            f"no variable {name!r}; there are {listed(known, 20)}{nearest(name, known)}"
        )
    return tuple(map(str, found.dims)), tuple(found.shape)


def _checked_axes(
    store: Readable, sizes: Mapping[str, int], axes: Mapping[str, Kind] | None
) -> Mapping[str, Kind]:
    if axes is not None:  # empty for a time series whose window is the axis
        for dim in axes:
            _check_dim(dim, sizes, "domain.axes")
        return axes
    if not sizes:
        raise DataError(f"{store.path} has no variables with dimensions to train on")
    largest = max(store.variables.values(), key=lambda v: len(v.shape))
    likely = ", ".join(f"{dim}: line" for dim in largest.dims[-2:] if len(largest.dims) > 1)
    raise RecipeError(
        f"domain.axes is not set: which dimensions are the grid of one item? There are "
        f"{_with_sizes(sizes)}; for example axes: {{{likely or 'x: line'}}}, with circle for a "
        "periodic one, such as global longitude"
    )


def _check_dim(dim: str, sizes: Mapping[str, int], key: str) -> None:
    if dim not in sizes:
        raise RecipeError(
            f"{key}: no dimension {dim!r}; there are {_with_sizes(sizes)}{nearest(dim, sizes)}"
        )


def _with_sizes(sizes: Mapping[str, int]) -> str:
    return listed([f"{dim} ({size})" for dim, size in sizes.items()], 12)


def _predicted_variables(
    store: Readable,
    axes: Mapping[str, Kind],
    requested: Sequence[str] | None,
    conditioning_variables: set[str],
) -> list[str]:
    """Names of the predicted variables."""
    if requested is None:
        names = [
            name
            for name, v in sorted(store.variables.items())  # a folder's order is arbitrary
            if v.dtype.kind in "fiu"
            and set(axes) < set(v.dims)
            and name not in conditioning_variables
        ]
        if names:
            return names
        on_grid = [name for name, v in store.variables.items() if set(axes) <= set(v.dims)]
        raise DataError(
            f"{store.path}: no numeric variable has the axes {listed(axes)} and another dimension "
            "to draw samples from"
            + (f"; {listed(on_grid)} has only the axes" if on_grid else "")
            + f"; its variables are {_with_dims(store, store.variables)}"
        )
    for name in requested:
        if name not in store.variables:
            known, near = listed(store.variables, 20), nearest(name, store.variables)
            raise RecipeError(f"domain.variables: no variable {name!r}; there are {known}{near}")
        if store.variables[name].dtype.kind not in "fiub":
            raise RecipeError(
                f"domain.variables: {name!r} is not numeric ({store.variables[name].dtype}); "
                "domain.conditions.categories can condition the model on it"
            )
        missing = [dim for dim in axes if dim not in store.variables[name].dims]
        if missing:
            raise RecipeError(
                f"domain.variables: {_with_dims(store, [name])} lacks axis {listed(missing)}; "
                "predicted variables have all axes (others may be conditions)"
            )
    if not requested or len(set(requested)) < len(requested):
        raise RecipeError("domain.variables: name at least one variable, and each once")
    return list(requested)


def _with_dims(store: Readable, names: Iterable[str]) -> str:
    return listed([f"{name}({', '.join(store.variables[name].dims)})" for name in names], 12)


def _sample_dims(
    store: Readable,
    names: Sequence[str],
    axes: Mapping[str, Kind],
    unroll: Sequence[str],
    requested: Sequence[str] | None,
    entries: Mapping[str, Array],
) -> tuple[str, ...]:
    """The sample dimensions: as requested, else the remaining ones with more than one entry."""
    taken = [dim for dim in (*axes, *unroll) if dim in (requested or ())]
    if taken:
        raise RecipeError(f"domain.sample: {listed(taken)} is already an axis or unrolled")
    dims = dict.fromkeys(d for name in names for d in store.variables[name].dims)
    left = [dim for dim in dims if dim not in axes and dim not in unroll]
    sample = list(requested or ()) or [d for d in left if len(entries[d]) > 1] or left[:1]
    if not sample:
        raise DataError(
            f"no dimension is left to draw samples from: {_with_dims(store, names)} has only axes "
            "and unrolled dimensions; remove one from domain.axes or domain.unroll"
        )
    return tuple(sample)


def _check_dims(
    store: Readable,
    names: Sequence[str],
    axes: Mapping[str, Kind],
    sample: Sequence[str],
    unroll: Sequence[str],
    entries: Mapping[str, Array],
) -> None:
    """Check that each dimension of the predicted variables has a role, and that every variable has
    all sample dimensions."""
    for name in names:
        dims = store.variables[name].dims
        missing = [dim for dim in sample if dim not in dims]
        if missing:
            others = [other for other in names if missing[0] in store.variables[other].dims]
            raise DataError(
                f"variable {_with_dims(store, [name])} has no dimension {listed(missing)}, along "
                f"which samples of {listed(others)} are drawn; unroll it, select one entry with "
                "domain.select, or leave one of them out of domain.variables"
            )
        for dim in dims:
            if dim not in (*axes, *sample, *unroll) and len(entries[dim]) > 1:
                raise DataError(
                    f"dimension {dim} ({len(entries[dim])}) of {name!r} is neither axis nor sample "
                    "dimension nor unrolled: add it to domain.unroll (a channel for each entry) "
                    "or domain.sample, or select one entry with domain.select"
                )


FULL_CIRCLE = 360.0


def _check_circles(
    store: Readable,
    axes: Mapping[str, Kind],
    sizes: Mapping[str, int],
    entries: Mapping[str, Array],
) -> None:
    """Check that every entry of a circle is used, and that a circle in degrees covers 360."""
    for dim, kind in axes.items():
        if kind != "circle":
            continue
        if len(entries[dim]) < sizes[dim]:
            raise RecipeError(
                f"domain.axes: {dim} is a circle, but domain.select leaves {len(entries[dim])} of "
                f"its {sizes[dim]} cells, which do not close: make it a line"
            )
        if dim not in store.coords.variables or sizes[dim] < 3:
            continue
        units = str(store.coords[dim].attrs.get("units", ""))
        values = coordinate(store, dim, sizes[dim])
        if not units.startswith("degree") or values.dtype.kind not in "iuf":
            continue
        step = abs(float(values[-1]) - float(values[0])) / (len(values) - 1)
        if abs(step * len(values) - FULL_CIRCLE) > step / 2:
            raise RecipeError(
                f"domain.axes: {dim} is a circle, but its {len(values)} cells of {step:g} {units} "
                f"make {step * len(values):g} degrees, not 360; make it a line"
            )


# The default patch


def make_axes(axes: Mapping[str, Kind], grid: Sequence[int], window: tuple[str, int]) -> list[Axis]:
    """The axes of a layout with the default patch; a window of several steps is the first axis.

    Default patch: the same power of two along all axes (clipped to the size of the axis), the
    smallest that gives at most 512 tokens per item. This suits a model on one CPU; ``model.patch``
    sets another.

    >>> [axis.patch for axis in make_axes({"y": "line", "x": "circle"}, (18, 432), ("time", 1))]
    [8, 8]
    """
    named = [(dim, size, kind) for (dim, kind), size in zip(axes.items(), grid, strict=True)]
    if window[1] > 1:
        named.insert(0, (*window, "line"))
    if len(named) > 4:
        raise RecipeError(
            f"domain.axes: an item has at most 4 axes, not {len(named)} "
            f"({listed(name for name, *_ in named)}); unroll one, or make it a sample dimension"
        )
    sizes = [size for _, size, _ in named]
    patch = 1
    while prod(ceil(size / patch) for size in sizes) > MAX_TOKENS:
        patch *= 2
    return [Axis(name, size, min(patch, size), kind) for name, size, kind in named]
