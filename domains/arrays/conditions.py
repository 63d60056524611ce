"""Conditions of a model of arrays: maps, past steps, scalars, categories.

static, grids, past   Grid     maps on the item's grid
scalars               Scalars  numbers along sample dimensions: a day of the year, a parameter
categories            Category classes along sample dimensions: a kind of flow, a station's name
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import atan2, cos, isnan, nan, pi, sin
from typing import TYPE_CHECKING, Any

import numpy as np

from jitkit.domains.arrays.coordinates import is_time, label
from jitkit.domains.arrays.plan import ArrayPlan, as_channels, dims_and_shape
from jitkit.domains.arrays.read import ArrayVariable, read_channels
from jitkit.errors import DataError, listed, nearest
from jitkit.sections import Natural, Section
from jitkit.utils.types import Array

if TYPE_CHECKING:
    from jitkit.stores.store import Readable

MAX_CLASSES = 10_000


class ConditionsSection(Section):
    """Key ``conditions``: what the model is conditioned on."""

    static: list[str] = []
    """Maps without sample dimension, variables or coordinates: orography, a land-sea mask."""
    grids: list[str] = []
    """Maps of other variables at the same time as the item: forcings, a coarse field."""
    past: Natural = 0
    """Number of earlier steps of the predicted variables, as maps, along the window's dimension."""
    scalars: list[str] = []
    """Numbers: `time.dayofyear` and `time.hour` (as sine and cosine), `time.year`, or a numeric
    coordinate or variable along sample dimensions; at the first step of a window."""
    categories: list[str] = []
    """Classes: integer or text variables along sample dimensions; each is a separate condition."""

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of all conditioning variables."""
        return (*self.static, *self.grids, *self.scalars, *self.categories)


@dataclass(frozen=True, eq=False)
class Series:
    """Values along sample dimensions.

    Attributes:
        dims: some or none of the sample dimensions.
        values: at the used entries of ``dims``.
    """

    dims: tuple[str, ...]
    values: Array

    def at(self, position: Mapping[str, int]) -> Any:
        """The value at a position along the sample dimensions."""
        return self.values[tuple(position[dim] for dim in self.dims)]


@dataclass(frozen=True)
class ScalarCondition:
    """Encoding of a scalar condition: standardized, or sine and cosine if it is cyclic.

    Attributes:
        name: in the recipe.
        center: mean of the training split; start of the cycle if cyclic.
        spread: standard deviation of the training split; length of the cycle if cyclic.
        cyclic: whether the values are periodic.
    """

    name: str
    center: float
    spread: float
    cyclic: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the encoded features."""
        return (f"{self.name}.sin", f"{self.name}.cos") if self.cyclic else (self.name,)

    def encode(self, value: float) -> tuple[float, ...]:
        """Features of about unit variance; NaN is unknown."""
        x = (value - self.center) / self.spread
        root = 2**0.5  # sine and cosine of a uniform phase have variance 1/2
        return (root * sin(2 * pi * x), root * cos(2 * pi * x)) if self.cyclic else (x,)

    def decode(self, features: Sequence[float]) -> float:
        """Undo `encode`."""
        if not self.cyclic:
            return features[0] * self.spread + self.center
        if any(isnan(x) for x in features):
            return nan
        return atan2(*features) / (2 * pi) % 1 * self.spread + self.center


@dataclass(frozen=True)
class CategoryCondition:
    """Encoding of a categorical condition; ``classes`` are in order."""

    name: str
    classes: tuple[int | str, ...]

    def encode(self, value: Any) -> int:
        """Index of a class; a missing value is the null class, one after the last.

        Raises:
            DataError: a class that is not in the training data.
        """
        if value is None:
            return len(self.classes)
        if value not in self.classes:
            names = [str(name) for name in self.classes]
            raise DataError(
                f"{self.name}: class {value!r} is not among the {len(names)} of the training data: "
                f"{listed(names)}{nearest(str(value), names)}"
            )
        return self.classes.index(value)

    def decode(self, index: int) -> int | str | None:
        """Undo `encode`."""
        return self.classes[index] if 0 <= index < len(self.classes) else None


# Along sample dimensions


def read_series(store: Readable, plan: ArrayPlan, name: str, key: str) -> Series:
    """Values of a variable or coordinate along sample dimensions; text and times keep their type.

    Raises:
        DataError: it does not exist, or has other dimensions than sample dimensions.
    """
    dims, shape = dims_and_shape(store, name)
    beyond = [d for d in dims if d not in plan.sample and len(plan.entries[d]) > 1]
    if beyond:
        raise DataError(
            f"{key}: {name!r} has dimension {listed(beyond)}; scalars and categories are along "
            f"sample dimensions ({listed(plan.sample)}); a variable on the grid is a map: "
            "domain.conditions.grids or static"
        )
    if name in store.coords.variables:
        values = np.asarray(store.coords[name].values)
    else:
        numeric = store.variables[name].dtype.kind in "fiub"
        values = store.read(name) if numeric else store.read_raw(name)
    for axis, dim in enumerate(dims):
        values = np.take(values, plan.entries[dim], axis=axis)
    kept = tuple(dim for dim in dims if dim in plan.sample)
    return Series(kept, values.reshape([len(plan.entries[dim]) for dim in kept]))


def find_scalar(
    store: Readable, plan: ArrayPlan, name: str, train: Array
) -> tuple[ScalarCondition, Series]:
    """A scalar condition, standardized over the training split, and its values.

    Args:
        store, plan: the data.
        name: ``time.dayofyear``, ``time.hour``, ``time.year``, or a variable or coordinate.
        train: training positions along the first sample dimension.
    """
    key = "domain.conditions.scalars"
    head, _, part = name.rpartition(".")
    if part in TIME_PARTS and name not in store.variables:
        times = _times(store, plan, head, key)
        series = Series(times.dims, part_of_time(times.values, part))
        if part in CYCLES:
            start, length = CYCLES[part](times.values)
            return ScalarCondition(name, start, length, cyclic=True), series
        return standardized(name, series, plan, train), series
    series = read_series(store, plan, name, key)
    if series.values.dtype.kind not in "fiub":
        raise DataError(
            f"{key}: {name!r} is not numeric; for times use {name}.dayofyear, {name}.hour or "
            f"{name}.year; text is a category"
        )
    series = Series(series.dims, series.values.astype(np.float64))
    return standardized(name, series, plan, train), series


def standardized(name: str, series: Series, plan: ArrayPlan, train: Array) -> ScalarCondition:
    """A scalar condition with the mean and standard deviation of the training split."""
    first, values = plan.sample[0], series.values
    if first in series.dims:
        values = np.take(values, train, axis=series.dims.index(first))
    values = values[np.isfinite(values)]
    if not len(values) or float(values.std()) <= 1e-12 * float(np.abs(values).max()):
        lack = "no values" if not len(values) else f"one value, {values[0]:g},"
        raise DataError(
            f"domain.conditions.scalars: {name!r} has {lack} in the training split, which carries "
            "no information; leave it out"
        )
    return ScalarCondition(name, float(values.mean()), float(values.std()))


def find_category(store: Readable, plan: ArrayPlan, name: str) -> tuple[CategoryCondition, Series]:
    """A categorical condition, and the class at every position, None where missing."""
    key = "domain.conditions.categories"
    series = read_series(store, plan, name, key)
    values = series.values
    if values.dtype.kind in "fiub":
        numbers = values.astype(np.float64)
        if not np.isfinite(numbers).any() or (numbers % 1)[np.isfinite(numbers)].any():
            raise DataError(f"{key}: {name!r} holds fractions; use domain.conditions.scalars")
        classes: list[int | str | None] = [None if isnan(x) else int(x) for x in numbers.ravel()]
    elif is_time(values):
        raise DataError(f"{key}: {name!r} holds times; domain.conditions.scalars has {name}.year")
    else:
        classes = [str(x) for x in values.ravel()]
    distinct = tuple(sorted({x for x in classes if x is not None}))
    if len(distinct) > MAX_CLASSES:
        raise DataError(f"{key}: {name!r} has {len(distinct)} classes, more than {MAX_CLASSES}")
    each = np.empty(len(classes), object)
    each[:] = classes
    return CategoryCondition(name, distinct), Series(series.dims, each.reshape(values.shape))


# Parts of a time

TIME_PARTS = ("dayofyear", "hour", "year")
DAYS_PER_YEAR = {
    "360_day": 360.0,
    "noleap": 365.0,
    "365_day": 365.0,
    "all_leap": 366.0,
    "366_day": 366.0,
}
CYCLES: dict[str, Callable[[Array], tuple[float, float]]] = {
    "dayofyear": lambda times: (
        1.0,
        DAYS_PER_YEAR.get(getattr(times.flat[0], "calendar", ""), 365.25),
    ),
    "hour": lambda times: (0.0, 24.0),
}
"""Start and length of a cycle, given times of a calendar."""


def _times(store: Readable, plan: ArrayPlan, name: str, key: str) -> Series:
    series = read_series(store, plan, name, key)
    if is_time(series.values):
        return series
    example = label(series.values.flat[0]) if series.values.size else "nothing"
    raise DataError(
        f"{key}: {name!r} does not hold times but values like {example}; a time coordinate has "
        "units such as 'days since 2000-01-01'"
    )


def part_of_time(times: Array, part: str) -> Array:
    """Day of the year (1.0 is the start of January 1), hour of the day, or year."""
    year, day, hour = (_parts_of_numpy if times.dtype.kind == "M" else _parts_of_cftime)(
        times.ravel()
    )
    values = {"dayofyear": 1 + day + hour / 24, "hour": hour, "year": year}[part]
    return np.asarray(values).reshape(times.shape)


def _parts_of_numpy(times: Array) -> tuple[Array, Array, Array]:
    """Year, whole days since its start, hours since midnight; float64."""
    years, days = times.astype("M8[Y]"), times.astype("M8[D]")
    since_new_year = (days - years.astype("M8[D]")).astype(np.float64)
    seconds = (times.astype("M8[s]") - days.astype("M8[s]")).astype(np.float64)
    return years.astype(np.int64) + 1970.0, since_new_year, seconds / 3600


def _parts_of_cftime(times: Array) -> tuple[Array, Array, Array]:
    parts = [
        (t.year, t.dayofyr - 1, t.hour + t.minute / 60 + t.second / 3600) for t in times.tolist()
    ]
    year, day, hour = np.array(parts, np.float64).reshape(-1, 3).T
    return year, day, hour


# Maps


def find_maps(
    store: Readable, plan: ArrayPlan, names: Sequence[str], *, key: str, sample: Sequence[str]
) -> tuple[ArrayVariable, ...]:
    """Variables of the map conditions.

    Args:
        store, plan: the data.
        names: in the recipe.
        key: of the recipe, for messages.
        sample: sample dimensions that the variables may have.

    Raises:
        DataError: a variable does not exist, or has a dimension that it may not have.
    """
    for name in names:
        dims, _ = dims_and_shape(store, name)
        allowed = (*plan.axes, *plan.unroll, *sample)
        beyond = [d for d in dims if d not in allowed and len(plan.entries[d]) > 1]
        if beyond:
            hint = (
                "; maps that change from item to item belong in domain.conditions.grids"
                if set(beyond) <= set(plan.sample)
                else "; unroll it, or select one entry with domain.select"
            )
            raise DataError(f"{key}: {name!r} has dimension {listed(beyond)}{hint}")
        if not set(dims) & set(plan.axes):
            raise DataError(
                f"{key}: {name!r} has none of the axes {listed(plan.axes)}; numbers that are not "
                "on the grid belong in domain.conditions.scalars"
            )
    return tuple(as_channels(store, name, plan.unroll, plan.entries) for name in names)


def read_static(store: Readable, plan: ArrayPlan, variables: Sequence[ArrayVariable]) -> Array:
    """Static maps in physical units, (C, X1..Xn)."""
    return read_channels(store, variables, plan.indexers(), (), plan.axes)


def past_channels(channels: Sequence[str], past: int) -> list[str]:
    """Channel names of the past steps, the oldest first.

    >>> past_channels(["t", "u"], 2)
    ['t@-2', 'u@-2', 't@-1', 'u@-1']
    """
    return [f"{name}@-{steps}" for steps in range(past, 0, -1) for name in channels]


def to_metadata(
    scalars: Sequence[ScalarCondition], categories: Sequence[CategoryCondition]
) -> dict[str, Any]:
    """Scalar and categorical conditions as plain JSON; `from_metadata` undoes it."""
    return {
        "numbers": [asdict(scalar) for scalar in scalars],
        "categories": [{"name": c.name, "classes": list(c.classes)} for c in categories],
    }


def from_metadata(
    metadata: Mapping[str, Any],
) -> tuple[tuple[ScalarCondition, ...], tuple[CategoryCondition, ...]]:
    """Undo `to_metadata`."""
    return (
        tuple(ScalarCondition(**number) for number in metadata["numbers"]),
        tuple(CategoryCondition(c["name"], tuple(c["classes"])) for c in metadata["categories"]),
    )
