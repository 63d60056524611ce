"""What the dimensions of a store probably are, and why.

    time, members, runs            sample dimensions, time first
    x, y                           axes; a longitude all round the globe is a circle
    levels                         channels where few or uneven, else an axis
    names of bands or channels     channels

A dimension is known by its coordinate's attributes (CF: axis, standard_name, units), else by its
name, else by its place: of dimensions of which nothing is known the first is drawn from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jitkit.domains.arrays.plan import FULL_CIRCLE, coordinate
from jitkit.errors import DataError, listed

if TYPE_CHECKING:
    from jitkit.domains.stores.store import Described, Store

Part = Literal["time", "member", "x", "y", "level", "names", "unknown"]

NAMES: dict[Part, str] = {
    "time": r"time|t|date|valid_time|init_time|forecast_reference_time|.*_time|time_counter|tau",
    "member": r"member|number|realization|realisation|ensemble.*|ens|run|simulation|sample|samples|"
    r"case|trajectory|batch|n|index|subject|trial|epoch|patient|record|obs",
    "x": r"lon|longitude|x|xc|easting|rlon|grid_longitude|projection_x_coordinate|i|ni|nx|"
    r"col|cols|column|width|xdim",
    "y": r"lat|latitude|y|yc|northing|rlat|grid_latitude|projection_y_coordinate|j|nj|ny|"
    r"row|rows|height_px|ydim",
    "level": r"lev|level|levels|plev|pressure|pressure_level|isobaric.*|depth|depth[tuvw]|height|"
    r"altitude|z|model_level.*|hybrid.*|sigma|layer|deptht?",
    "names": r"channel|channels|band|bands|variable|variables|feature|features|sensor|electrode|"
    r"species|component",
}
FEW_LEVELS = 40  # are channels where they are uneven
EVEN_LEVELS = 8  # are channels though they are even
RECORD = 256  # steps of an item that is a stretch of one long record


@dataclass(frozen=True)
class Guess:
    """What a recipe says of a store's dimensions and variables.

    Attributes:
        axes, sample, unroll, variables, conditions, window, stride: as in section ``domain``.
        static: variables on the axes alone.
        reasons: a line for each choice.
        unsure: (what may be wrong, the override that changes it).
    """

    axes: Mapping[str, str]
    sample: tuple[str, ...]
    unroll: tuple[str, ...]
    variables: tuple[str, ...]
    static: tuple[str, ...] = ()
    scalars: tuple[str, ...] = ()
    window: int = 1
    stride: int = 1
    reasons: tuple[str, ...] = ()
    unsure: tuple[tuple[str, str], ...] = ()

    def section(self) -> dict[str, Any]:
        """Keys of section ``domain``."""
        keys: dict[str, Any] = {
            "variables": list(self.variables),
            "axes": dict(self.axes),
            "sample": list(self.sample),
        }
        if self.unroll:
            keys["unroll"] = list(self.unroll)
        if self.window > 1:
            keys |= {"window": self.window, "stride": self.stride}
        if self.scalars:
            keys["conditions"] = {"scalars": list(self.scalars)}
        return keys

    def without(self, names: Iterable[str]) -> Guess:
        """The same, with some variables not predicted.

        Raises:
            DataError: none would be left.
        """
        dropped = [name for name in self.variables if name in set(names)]
        left = tuple(name for name in self.variables if name not in dropped)
        if not left:
            raise DataError(
                f"nothing to train on: {listed(dropped)} is the same in every cell that was looked "
                "at"
            )
        return replace(self, variables=left)

    def role(self, name: str, *, constant: bool) -> str:
        """What becomes of a variable, in a word or two."""
        if name in self.variables:
            return "predicted"
        if constant:
            return "left out: constant"
        return "static" if name in self.static else "left out"


def guess(store: Store) -> Guess:
    """Guess what a store's dimensions are.

    Raises:
        DataError: it has no numeric variable with dimensions to make items of.
    """
    numeric = {n: v for n, v in store.variables.items() if v.numeric and prod(v.shape) > 1}
    if not numeric:
        raise DataError(
            f"{store.path} has no numeric variable with more than one value; its variables are "
            f"{listed([f'{n} ({v.dtype})' for n, v in store.variables.items()], 12) or 'none'}"
        )
    main = _main(numeric)
    parts = {d: part_of(store, d, n) for d, n in zip(main.dims, main.shape, strict=True) if n > 1}
    parts = _by_place(parts, store)
    sizes = dict(zip(main.dims, main.shape, strict=True))
    found = _assigned(store, parts, sizes)
    whole = {*found.axes, *found.sample}
    predicted = [
        n
        for n, v in numeric.items()
        if whole <= set(v.dims) and set(_long(v)) <= whole | set(found.unroll)
    ]
    static = [
        n
        for n, v in numeric.items()
        if found.axes and set(found.axes) <= set(v.dims) and not set(v.dims) & set(found.sample)
    ]
    return replace(
        found, variables=tuple(predicted), static=tuple(static), scalars=_seasons(store, found)
    )


def _main(numeric: Mapping[str, Described]) -> Described:
    """A variable of the dimensions that hold most numbers."""
    held: dict[tuple[str, ...], int] = {}
    for v in numeric.values():
        held[_long(v)] = held.get(_long(v), 0) + prod(v.shape)
    dims = max(held, key=lambda d: (held[d], len(d)))
    return next(v for v in numeric.values() if _long(v) == dims)


def _long(variable: Described) -> tuple[str, ...]:
    """Its dimensions of more than one entry."""
    return tuple(d for d, n in zip(variable.dims, variable.shape, strict=True) if n > 1)


# What a dimension is


def part_of(store: Store, dim: str, size: int) -> Part:
    """What a dimension is by its coordinate's attributes, else by its name."""
    coords = store.coords
    if dim in coords.variables and coords[dim].dims == (dim,):
        values, attrs = coords[dim].values, coords[dim].attrs
        if values.dtype.kind in "US" or (
            values.dtype.kind == "O" and isinstance(values.flat[0], str)
        ):
            return "names"
        if values.dtype.kind in "MO":
            return "time"
        if (by_attrs := _by_attributes(attrs)) is not None:
            return by_attrs
    for part, pattern in NAMES.items():
        if re.fullmatch(pattern, dim.lower()):
            return part
    # a 2-D latitude on (y, x) says that these two are the grid
    for coord in coords.variables.values():
        if coord.ndim == 2 and dim in coord.dims and "degrees" in str(coord.attrs.get("units")):
            return "y" if coord.dims[0] == dim else "x"
    return "unknown"


def _by_attributes(attrs: Mapping[str, Any]) -> Part | None:
    axis, name = str(attrs.get("axis", "")).upper(), str(attrs.get("standard_name", ""))
    units = str(attrs.get("units", "")).lower()
    if axis == "X" or name in ("longitude", "projection_x_coordinate", "grid_longitude"):
        return "x"
    if axis == "Y" or name in ("latitude", "projection_y_coordinate", "grid_latitude"):
        return "y"
    if axis == "T" or name in ("time", "forecast_reference_time", "forecast_period"):
        return "time"
    if name == "realization":
        return "member"
    if axis == "Z" or attrs.get("positive") or units in ("hpa", "mbar", "millibar", "pa"):
        return "level"
    if re.fullmatch(r"degrees?_?e(ast)?", units):
        return "x"
    return "y" if re.fullmatch(r"degrees?_?n(orth)?", units) else None


def _by_place(parts: Mapping[str, Part], store: Store) -> dict[str, Part]:
    """Of dimensions of which nothing is known: the first is drawn from, if none else is.

    A single dimension is a record in time.
    """
    found = dict(parts)
    drawn = [d for d, part in found.items() if part in ("time", "member")]
    unknown = [d for d, part in found.items() if part == "unknown"]
    if not drawn and unknown:
        found[unknown[0]] = "member" if len(found) > 1 else "time"
    return found


def _assigned(store: Store, parts: Mapping[str, Part], sizes: Mapping[str, int]) -> Guess:
    """Axes, sample dimensions and channels from what the dimensions are."""
    axes: dict[str, str] = {}
    sample: list[str] = []
    unroll: list[str] = []
    reasons: list[str] = []
    unsure: list[tuple[str, str]] = []
    for dim, part in parts.items():
        values = coordinate(store, dim, sizes[dim])
        told = f"{dim} ({sizes[dim]})"
        if part in ("time", "member"):
            sample.append(dim)
            reasons.append(f"{told}: {'time' if part == 'time' else 'separate items'}, drawn from")
        elif part == "names" or (part == "level" and _as_channels(values)):
            unroll.append(dim)
            reasons.append(f"{told}: few or uneven, each entry a channel")
            if part == "level":
                unsure.append((f"{dim} as an axis", f"domain.unroll=[] domain.axes.{dim}=line"))
        else:
            axes[dim] = "circle" if part == "x" and closes(store, dim, values) else "line"
            reasons.append(f"{told}: axis, {axes[dim]}{_why(axes[dim], part)}")
            other = "line" if axes[dim] == "circle" else "circle"
            bare = dim not in store.coords.variables  # else its values have told
            if bare and part in ("x", "unknown"):
                unsure.append((f"{dim} as a {other}", f"domain.axes.{dim}={other}"))
    sample.sort(key=lambda dim: parts[dim] != "time")
    while len(axes) > 4:
        dim = next(iter(axes))
        del axes[dim]
        sample.append(dim)
        reasons.append(f"{dim}: drawn from, since an item has at most 4 axes")
    found = Guess(axes, tuple(sample), tuple(unroll), (), reasons=tuple(reasons))
    return _as_record(replace(found, unsure=tuple(unsure)), parts, sizes)


def _as_record(found: Guess, parts: Mapping[str, Part], sizes: Mapping[str, int]) -> Guess:
    """One long record in windows, where no axis or no dimension to draw from is left.

    Raises:
        DataError: there is one item, and no record to cut.
    """
    if found.axes and found.sample:
        return found
    if not found.axes and found.sample:
        long = max(found.sample, key=lambda dim: sizes[dim])
        steps = sizes[long]
        window = min(RECORD, 2 ** int(np.log2(max(2, steps // 8))))
        told = f"{long}: one record, cut into items of {window} steps, each {window // 4 or 1} on"
        others = tuple(dim for dim in found.sample if dim != long)
        return replace(
            found,
            sample=(long, *others),
            window=window,
            stride=max(1, window // 4),
            reasons=(*found.reasons, told),
            unsure=(*found.unsure, ("the length of an item", f"domain.window={window}")),
        )
    first = next(iter(found.axes), None)
    if first is None or len(found.axes) < 2:
        raise DataError(
            f"nothing to draw items from: the dimensions are {listed(parts)}; an item needs a grid "
            "and there must be many items (times, members), or one long record in time"
        )
    axes = {dim: kind for dim, kind in found.axes.items() if dim != first}
    return replace(
        found,
        axes=axes,
        sample=(first,),
        reasons=(*found.reasons, f"{first}: drawn from after all, since nothing else is left"),
        unsure=(*found.unsure, (f"whether the entries of {first} are items", "domain.sample")),
    )


def _as_channels(values: np.ndarray[Any, np.dtype[Any]]) -> bool:
    """Levels are channels where they are few, or not many and uneven."""
    if len(values) <= EVEN_LEVELS or values.dtype.kind not in "iuf":
        return len(values) <= FEW_LEVELS
    steps = np.diff(values.astype(np.float64))
    even = bool(np.allclose(steps, steps[0], rtol=1e-3))
    return len(values) <= FEW_LEVELS and not even


def closes(store: Store, dim: str, values: np.ndarray[Any, np.dtype[Any]]) -> bool:
    """Whether even steps of longitude make 360 degrees."""
    if dim not in store.coords.variables or values.dtype.kind not in "iuf" or len(values) < 3:
        return False
    if not str(store.coords[dim].attrs.get("units", "degrees")).startswith("degree"):
        return False
    steps = np.diff(values.astype(np.float64))
    even = bool(np.allclose(steps, steps[0], rtol=1e-2, atol=1e-4))
    step = abs(float(steps.mean()))
    return even and abs(step * len(values) - FULL_CIRCLE) < step / 2


def _why(kind: str, part: Part) -> str:
    if kind == "circle":
        return ", since its steps make 360 degrees"
    return "" if part != "unknown" else ", by its place among the dimensions"


# Time


def hours_of_step(store: Store, dim: str) -> float | None:
    """Hours between entries of a time coordinate, their median; None where it has no times."""
    if dim not in store.coords.variables or store.coords[dim].dims != (dim,):
        return None
    values = store.coords[dim].values
    if len(values) < 2 or values.dtype.kind not in "MO":
        return None
    steps = np.diff(values)
    if values.dtype.kind == "M":
        return float(np.median(steps / np.timedelta64(1, "h")))
    return float(np.median([step.total_seconds() / 3600 for step in steps]))


def _seasons(store: Store, found: Guess) -> tuple[str, ...]:
    """Day of the year and hour, where times go round years and days in steps that tell them."""
    dim = found.sample[0]
    hours = hours_of_step(store, dim)
    if hours is None:
        return ()
    span = hours * len(store.coords[dim].values)
    year = span > 300 * 24 and hours < 200 * 24
    return tuple([f"{dim}.dayofyear"] * year + [f"{dim}.hour"] * (hours <= 12 and span > 48))
