"""Which variables and dimensions of a store make up an item.

variables (time, level, latitude, longitude)
  axes    latitude, longitude  -> X1, X2          sample  time  -> one item each
  unroll  level                -> channels z.500, z.850, ...
  window  steps of time        -> an axis of its own, in front of the others
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, prod
from typing import TYPE_CHECKING, Any

import numpy as np

from jitkit.domains.arrays.coordinates import Selection, coordinate, label, matching
from jitkit.domains.arrays.read import ArrayVariable, Cut
from jitkit.errors import DataError, RecipeError, listed, nearest
from jitkit.fields import Axis, Kind
from jitkit.stores.chunks import stretches
from jitkit.utils.types import Array

if TYPE_CHECKING:
    from jitkit.stores.store import Described, Readable

MOST_TOKENS = 512


@dataclass(frozen=True, eq=False)
class ArrayPlan:
    """How items lie in a store.

    Attributes:
        axes: dimensions of the grid and their kinds, in the grid's order, without the window's.
        sample: dimensions that items are drawn from; the last changes fastest.
        along: the one of them that windows, strides and past steps go along.
        unroll: dimensions whose entries are channels.
        entries: by dimension, which entries are used: indices in the store, in order.
        values: by sample dimension, the coordinate of its entries.
        variables: what is predicted.
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
        """Cells along each axis, without the window's."""
        return tuple(len(self.entries[axis]) for axis in self.axes)

    def cuts(self) -> dict[str, Cut]:
        """What is read along dimensions that no item moves along: all entries of axes and unrolled
        dimensions, the first, which is the only one, of others."""
        whole = {*self.axes, *self.unroll}
        return {
            dim: stretches(entries) if dim in whole else int(entries[0])
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
    spoken_for: Iterable[str] = (),
) -> ArrayPlan:
    """Find what a recipe means in a store.

    Args:
        store: the data.
        axes, sample, along, unroll, select, variables: keys of section ``domain``.
        spoken_for: variables that are conditions, and so not predicted unless named.

    Raises:
        RecipeError, DataError: it cannot be meant; the text says what there is.
    """
    sizes = {d: n for v in store.variables.values() for d, n in zip(v.dims, v.shape, strict=True)}
    axes = _axes(store, sizes, axes)
    asked = {"sample": sample or (), "unroll": unroll, "select": select}
    for key, dims in asked.items():
        for dim in dims:
            _known(dim, sizes, f"domain.{key}")
    names = _predicted(store, axes, variables, set(spoken_for))
    everywhere = {str(dim): size for dim, size in store.coords.sizes.items()} | sizes
    entries = {dim: np.arange(size) for dim, size in everywhere.items()}
    for dim, selection in select.items():
        chosen = matching(coordinate(store, dim, sizes[dim]), selection, f"domain.select.{dim}")
        entries[dim] = chosen if dim in unroll else np.unique(chosen)
    drawn = _sample(store, names, axes, unroll, sample, entries)
    if along is not None and along not in drawn:
        near = nearest(along, drawn)
        raise RecipeError(
            f"domain.along: {along!r} is no sample dimension; there are {listed(drawn)}{near}"
        )
    _check_dims(store, names, axes, drawn, unroll, entries)
    _check_circles(store, axes, sizes, entries)
    return ArrayPlan(
        axes=axes,
        sample=drawn,
        along=along or drawn[0],
        unroll=tuple(unroll),
        entries=entries,
        values={dim: coordinate(store, dim, sizes[dim])[entries[dim]] for dim in drawn},
        variables=tuple(as_channels(store, name, unroll, entries) for name in names),
    )


def as_channels(
    store: Readable, name: str, unroll: Sequence[str], entries: Mapping[str, Array]
) -> ArrayVariable:
    """A variable of a store and the channels that it makes."""
    dims, shape = described(store, name)
    unrolled = tuple(dim for dim in dims if dim in unroll)
    labels = [
        [label(value) for value in coordinate(store, dim, size)[entries[dim]]]
        for dim, size in zip(dims, shape, strict=True)
        if dim in unroll
    ]
    channels = tuple(".".join([name, *words]) for words in product(*labels))
    if len(set(channels)) < len(channels):
        raise DataError(
            f"domain.unroll: {listed(unrolled)} of {name!r} has entries of one name "
            f"({listed(channels)}); give the coordinate different values"
        )
    return ArrayVariable(name, dims, unrolled, channels)


def described(store: Readable, name: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Dimensions and shape of a variable or a coordinate."""
    found: Described | Any = store.variables.get(name)
    if found is None and name in store.coords.variables:
        found = store.coords[name]
    if found is None:
        known = [*store.variables, *map(str, store.coords.variables)]
        raise DataError(
            f"no variable {name!r}; there are {listed(known, 20)}{nearest(name, known)}"
        )
    return tuple(map(str, found.dims)), tuple(found.shape)


def _axes(
    store: Readable, sizes: Mapping[str, int], axes: Mapping[str, Kind] | None
) -> Mapping[str, Kind]:
    if axes is not None:  # none at all is for a record whose window is the axis
        for dim in axes:
            _known(dim, sizes, "domain.axes")
        return axes
    if not sizes:
        raise DataError(f"{store.path} has no variables with dimensions to train on")
    largest = max(store.variables.values(), key=lambda v: len(v.shape))
    likely = ", ".join(f"{dim}: line" for dim in largest.dims[-2:] if len(largest.dims) > 1)
    raise RecipeError(
        f"domain.axes is not set: which dimensions are the grid of one item? There are "
        f"{_with_sizes(sizes)}; for example axes: {{{likely or 'x: line'}}}, with circle for one "
        "that closes on itself, such as longitude all round the globe"
    )


def _known(dim: str, sizes: Mapping[str, int], key: str) -> None:
    if dim not in sizes:
        raise RecipeError(
            f"{key}: no dimension {dim!r}; there are {_with_sizes(sizes)}{nearest(dim, sizes)}"
        )


def _with_sizes(sizes: Mapping[str, int]) -> str:
    return listed([f"{dim} ({size})" for dim, size in sizes.items()], 12)


def _predicted(
    store: Readable, axes: Mapping[str, Kind], asked: Sequence[str] | None, spoken_for: set[str]
) -> list[str]:
    """Names of the variables that are predicted."""
    if asked is None:
        found = [
            name
            for name, v in sorted(store.variables.items())  # a folder's own order is arbitrary
            if v.dtype.kind in "fiu" and set(axes) < set(v.dims) and name not in spoken_for
        ]
        if found:
            return found
        on_grid = [name for name, v in store.variables.items() if set(axes) <= set(v.dims)]
        raise DataError(
            f"{store.path}: no numeric variable has the axes {listed(axes)} and a dimension beside "
            "them to draw samples from"
            + (f"; {listed(on_grid)} has the axes alone" if on_grid else "")
            + f"; its variables are {_with_dims(store, store.variables)}"
        )
    for name in asked:
        if name not in store.variables:
            known = listed(store.variables, 20)
            near = nearest(name, store.variables)
            raise RecipeError(f"domain.variables: no variable {name!r}; there are {known}{near}")
        if store.variables[name].dtype.kind not in "fiub":
            raise RecipeError(
                f"domain.variables: {name!r} holds no numbers ({store.variables[name].dtype}); "
                "domain.conditions.categories can tell it to the model"
            )
        lacking = [dim for dim in axes if dim not in store.variables[name].dims]
        if lacking:
            raise RecipeError(
                f"domain.variables: {_with_dims(store, [name])} lacks axis {listed(lacking)}; "
                "predicted variables have all axes (others may be conditions)"
            )
    if not asked or len(set(asked)) < len(asked):
        raise RecipeError("domain.variables: name at least one variable, and each once")
    return list(asked)


def _with_dims(store: Readable, names: Iterable[str]) -> str:
    return listed([f"{name}({', '.join(store.variables[name].dims)})" for name in names], 12)


def _sample(
    store: Readable,
    names: Sequence[str],
    axes: Mapping[str, Kind],
    unroll: Sequence[str],
    asked: Sequence[str] | None,
    entries: Mapping[str, Array],
) -> tuple[str, ...]:
    """The sample dimensions: as asked, else all that are left and have more than one entry."""
    taken = [dim for dim in (*axes, *unroll) if dim in (asked or ())]
    if taken:
        raise RecipeError(f"domain.sample: {listed(taken)} is among the axes or unrolled already")
    dims = dict.fromkeys(d for name in names for d in store.variables[name].dims)
    left = [dim for dim in dims if dim not in axes and dim not in unroll]
    found = list(asked) if asked else [d for d in left if len(entries[d]) > 1] or left[:1]
    if not found:
        raise DataError(
            f"no dimension is left to draw samples from: {_with_dims(store, names)} has only axes "
            "and unrolled dimensions; take one out of domain.axes or domain.unroll"
        )
    return tuple(found)


def _check_dims(
    store: Readable,
    names: Sequence[str],
    axes: Mapping[str, Kind],
    sample: Sequence[str],
    unroll: Sequence[str],
    entries: Mapping[str, Array],
) -> None:
    """Every dimension of every predicted variable has its part, and none lacks a sample's."""
    for name in names:
        dims = store.variables[name].dims
        lacking = [dim for dim in sample if dim not in dims]
        if lacking:
            others = [other for other in names if lacking[0] in store.variables[other].dims]
            raise DataError(
                f"variable {_with_dims(store, [name])} has no dimension {listed(lacking)}, along "
                f"which samples of {listed(others)} are drawn; unroll it, choose one entry by "
                "domain.select, or leave one of them out of domain.variables"
            )
        for dim in dims:
            if dim not in (*axes, *sample, *unroll) and len(entries[dim]) > 1:
                raise DataError(
                    f"dimension {dim} ({len(entries[dim])}) of {name!r} is neither axis nor sample "
                    "dimension nor unrolled: add it to domain.unroll (a channel for each entry) "
                    "or domain.sample, or choose one entry by domain.select"
                )


FULL_CIRCLE = 360.0


def _check_circles(
    store: Readable,
    axes: Mapping[str, Kind],
    sizes: Mapping[str, int],
    entries: Mapping[str, Array],
) -> None:
    """A circle is whole, and of degrees it has 360."""
    for dim, kind in axes.items():
        if kind != "circle":
            continue
        if len(entries[dim]) < sizes[dim]:
            raise RecipeError(
                f"domain.axes: {dim} is a circle, but domain.select leaves {len(entries[dim])} of "
                f"its {sizes[dim]} cells, which have ends: make it a line"
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
    """The axes of a layout, a window of more than one step in front, with the default patch.

    Its rule: the same power of two along all axes (no more than an axis has cells), the smallest
    with which an item is at most 512 tokens. That is a model for one processor; ``model.patch``
    asks for another.

    >>> [axis.patch for axis in make_axes({"y": "line", "x": "circle"}, (18, 432), ("time", 1))]
    [8, 8]
    """
    named = [(dim, size, kind) for (dim, kind), size in zip(axes.items(), grid, strict=True)]
    if window[1] > 1:
        named.insert(0, (*window, "line"))
    if len(named) > 4:
        raise RecipeError(
            f"domain.axes: an item has at most 4 axes, not {len(named)} "
            f"({listed(name for name, *_ in named)}); unroll one, or draw samples from it"
        )
    sizes = [size for _, size, _ in named]
    patch = 1
    while prod(ceil(size / patch) for size in sizes) > MOST_TOKENS:
        patch *= 2
    return [Axis(name, size, min(patch, size), kind) for name, size, kind in named]
