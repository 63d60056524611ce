"""What a model of arrays is told of an item: maps, earlier steps, numbers, classes.

static, grids, past   Grid     maps on the item's own grid
scalars               Scalars  numbers of the item's place: a day of the year, a parameter
categories            Category a class of the item's place: a kind of flow, a station's name
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import atan2, cos, isnan, nan, pi, sin
from typing import TYPE_CHECKING, Any

import numpy as np

from jitkit.domains.arrays.coordinates import is_time, label
from jitkit.domains.arrays.plan import ArrayPlan, as_channels, described
from jitkit.domains.arrays.read import ArrayVariable, read_channels
from jitkit.errors import DataError, listed, nearest
from jitkit.sections import Natural, Section
from jitkit.utils.types import Array

if TYPE_CHECKING:
    from jitkit.stores.store import Readable

MOST_CLASSES = 10_000


class ConditionsSection(Section):
    """Key ``conditions``: what the model is told besides the noise."""

    static: list[str] = []
    """Variables or coordinates without sample dimension, as maps: orography, a land-sea mask."""
    grids: list[str] = []
    """Other variables at the item's own place and time, as maps: forcings, a coarse field."""
    past: Natural = 0
    """Earlier steps of the predicted variables, as maps, along the dimension of the window."""
    scalars: list[str] = []
    """Numbers: `time.dayofyear` and `time.hour` (as sine and cosine), `time.year`, or a numeric
    coordinate or variable along sample dimensions; those of a window's first step."""
    categories: list[str] = []
    """Classes: integer or text variables along sample dimensions; each a condition of its own."""

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of all variables among them."""
        return (*self.static, *self.grids, *self.scalars, *self.categories)


@dataclass(frozen=True, eq=False)
class Series:
    """Values at places along sample dimensions.

    Attributes:
        dims: some of the sample dimensions, perhaps none.
        values: at their entries.
    """

    dims: tuple[str, ...]
    values: Array

    def at(self, place: Mapping[str, int]) -> Any:
        """The value of a place, given as positions."""
        return self.values[tuple(place[dim] for dim in self.dims)]


@dataclass(frozen=True)
class Number:
    """A number as a network takes it: standardized, or as sine and cosine where it is cyclic.

    Attributes:
        name: as the recipe has it.
        center: mean of the training split; where a cycle begins.
        spread: standard deviation of the training split; length of a cycle.
        cyclic: whether it returns.
    """

    name: str
    center: float
    spread: float
    cyclic: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the numbers it makes."""
        return (f"{self.name}.sin", f"{self.name}.cos") if self.cyclic else (self.name,)

    def encode(self, value: float) -> tuple[float, ...]:
        """Numbers of about unit variance; NaN is unknown."""
        x = (value - self.center) / self.spread
        root = 2**0.5  # sine and cosine of all phases have a variance of a half
        return (root * sin(2 * pi * x), root * cos(2 * pi * x)) if self.cyclic else (x,)

    def decode(self, numbers: Sequence[float]) -> float:
        """Undo `encode`."""
        if not self.cyclic:
            return numbers[0] * self.spread + self.center
        if any(isnan(number) for number in numbers):
            return nan
        return atan2(*numbers) / (2 * pi) % 1 * self.spread + self.center


@dataclass(frozen=True)
class Classes:
    """A category and the names of its classes, in order."""

    name: str
    classes: tuple[int | str, ...]

    def encode(self, value: Any) -> int:
        """Number of a class; one more than the last for a missing one.

        Raises:
            DataError: a class that was not there when the model was trained.
        """
        if value is None:
            return len(self.classes)
        if value not in self.classes:
            known = [str(name) for name in self.classes]
            raise DataError(
                f"{self.name}: class {value!r} is not among the {len(known)} that the model knows: "
                f"{listed(known)}{nearest(str(value), known)}"
            )
        return self.classes.index(value)

    def decode(self, number: int) -> int | str | None:
        """Undo `encode`."""
        return self.classes[number] if 0 <= number < len(self.classes) else None


# Along sample dimensions


def series(store: Readable, plan: ArrayPlan, name: str, key: str) -> Series:
    """Values of a variable or coordinate at every place; text stays text, times stay times.

    Raises:
        DataError: it is not there, or has other dimensions than sample dimensions.
    """
    dims, shape = described(store, name)
    beyond = [d for d in dims if d not in plan.sample and len(plan.entries[d]) > 1]
    if beyond:
        raise DataError(
            f"{key}: {name!r} has dimension {listed(beyond)}; scalars and categories lie along "
            f"sample dimensions ({listed(plan.sample)}); what lies on the grid is a map: "
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


def find_number(store: Readable, plan: ArrayPlan, name: str, train: Array) -> tuple[Number, Series]:
    """A number of a recipe and its values; standardized over the training split.

    Args:
        store, plan: the data.
        name: ``time.dayofyear`` and the like, or a variable or coordinate.
        train: positions of training along the first sample dimension.
    """
    key = "domain.conditions.scalars"
    head, _, part = name.rpartition(".")
    if part in PARTS and name not in store.variables:
        times = _times(store, plan, head, key)
        found = Series(times.dims, part_of_time(times.values, part))
        if part in CYCLES:
            start, length = CYCLES[part](times.values)
            return Number(name, start, length, cyclic=True), found
        return standardized(name, found, plan, train), found
    found = series(store, plan, name, key)
    if found.values.dtype.kind not in "fiub":
        raise DataError(
            f"{key}: {name!r} holds no numbers; of times say {name}.dayofyear, {name}.hour or "
            f"{name}.year; text is a category"
        )
    found = Series(found.dims, found.values.astype(np.float64))
    return standardized(name, found, plan, train), found


def standardized(name: str, values: Series, plan: ArrayPlan, train: Array) -> Number:
    """Mean and standard deviation of a series over the training split."""
    first = plan.sample[0]
    seen = values.values
    if first in values.dims:
        seen = np.take(seen, train, axis=values.dims.index(first))
    seen = seen[np.isfinite(seen)]
    if not len(seen) or float(seen.std()) <= 1e-12 * float(np.abs(seen).max()):
        lack = "no values" if not len(seen) else f"one value, {seen[0]:g},"
        raise DataError(
            f"domain.conditions.scalars: {name!r} has {lack} in the training split, which tells "
            "the model nothing; leave it out"
        )
    return Number(name, float(seen.mean()), float(seen.std()))


def find_classes(store: Readable, plan: ArrayPlan, name: str) -> tuple[Classes, Series]:
    """A category of a recipe and the class of every place, None where it is missing."""
    key = "domain.conditions.categories"
    found = series(store, plan, name, key)
    values = found.values
    if values.dtype.kind in "fiub":
        numbers = values.astype(np.float64)
        if not np.isfinite(numbers).any() or (numbers % 1)[np.isfinite(numbers)].any():
            raise DataError(f"{key}: {name!r} holds fractions; it is for domain.conditions.scalars")
        classes: list[int | str | None] = [None if isnan(x) else int(x) for x in numbers.ravel()]
    elif is_time(values):
        raise DataError(f"{key}: {name!r} holds times; domain.conditions.scalars has {name}.year")
    else:
        classes = [str(x) for x in values.ravel()]
    known = tuple(sorted({x for x in classes if x is not None}))
    if len(known) > MOST_CLASSES:
        raise DataError(f"{key}: {name!r} has {len(known)} classes, more than {MOST_CLASSES}")
    each = np.empty(len(classes), object)
    each[:] = classes
    return Classes(name, known), Series(found.dims, each.reshape(values.shape))


# Parts of a time

PARTS = ("dayofyear", "hour", "year")
DAYS = {"360_day": 360.0, "noleap": 365.0, "365_day": 365.0, "all_leap": 366.0, "366_day": 366.0}
CYCLES: dict[str, Callable[[Array], tuple[float, float]]] = {
    "dayofyear": lambda times: (1.0, DAYS.get(getattr(times.flat[0], "calendar", ""), 365.25)),
    "hour": lambda times: (0.0, 24.0),
}
"""Where a cycle begins and how long it is, for times of a calendar."""


def _times(store: Readable, plan: ArrayPlan, name: str, key: str) -> Series:
    found = series(store, plan, name, key)
    if is_time(found.values):
        return found
    what = label(found.values.flat[0]) if found.values.size else "nothing"
    raise DataError(
        f"{key}: {name!r} holds no times but values like {what}; a coordinate of times has units "
        "such as 'days since 2000-01-01'"
    )


def part_of_time(times: Array, part: str) -> Array:
    """Day of the year (1.0 is the beginning of January 1), hour of the day, or year."""
    year, day, hour = (_of_numpy if times.dtype.kind == "M" else _of_cftime)(times.ravel())
    values = {"dayofyear": 1 + day + hour / 24, "hour": hour, "year": year}[part]
    return np.asarray(values).reshape(times.shape)


def _of_numpy(times: Array) -> tuple[Array, Array, Array]:
    """Year, whole days since its beginning, hours since midnight; float64."""
    years, days = times.astype("M8[Y]"), times.astype("M8[D]")
    since_new_year = (days - years.astype("M8[D]")).astype(np.float64)
    seconds = (times.astype("M8[s]") - days.astype("M8[s]")).astype(np.float64)
    return years.astype(np.int64) + 1970.0, since_new_year, seconds / 3600


def _of_cftime(times: Array) -> tuple[Array, Array, Array]:
    parts = [
        (t.year, t.dayofyr - 1, t.hour + t.minute / 60 + t.second / 3600) for t in times.tolist()
    ]
    year, day, hour = np.array(parts, np.float64).reshape(-1, 3).T
    return year, day, hour


# Maps


def find_maps(
    store: Readable, plan: ArrayPlan, names: Sequence[str], *, key: str, sample: Sequence[str]
) -> tuple[ArrayVariable, ...]:
    """Variables that are told as maps.

    Args:
        store, plan: the data.
        names: as the recipe has them.
        key: where, for messages.
        sample: sample dimensions that they may have.

    Raises:
        DataError: one is not there, or has a dimension that it may not have.
    """
    for name in names:
        dims, _ = described(store, name)
        allowed = (*plan.axes, *plan.unroll, *sample)
        beyond = [d for d in dims if d not in allowed and len(plan.entries[d]) > 1]
        if beyond:
            hint = (
                "; what changes from item to item is for domain.conditions.grids"
                if set(beyond) <= set(plan.sample)
                else "; unroll it, or choose one entry by domain.select"
            )
            raise DataError(f"{key}: {name!r} has dimension {listed(beyond)}{hint}")
        if not set(dims) & set(plan.axes):
            raise DataError(
                f"{key}: {name!r} lies on none of the axes {listed(plan.axes)}; a number without "
                "place on the grid is for domain.conditions.scalars"
            )
    return tuple(as_channels(store, name, plan.unroll, plan.entries) for name in names)


def read_static(store: Readable, plan: ArrayPlan, variables: Sequence[ArrayVariable]) -> Array:
    """Static maps in physical units, (C, X1..Xn)."""
    return read_channels(store, variables, plan.cuts(), (), plan.axes)


def past_channels(channels: Sequence[str], past: int) -> list[str]:
    """Names of the channels of earlier steps, the oldest step first.

    >>> past_channels(["t", "u"], 2)
    ['t@-2', 'u@-2', 't@-1', 'u@-1']
    """
    return [f"{name}@-{steps}" for steps in range(past, 0, -1) for name in channels]


def as_facts(numbers: Sequence[Number], classes: Sequence[Classes]) -> dict[str, Any]:
    """Numbers and classes as plain JSON; `from_facts` undoes it."""
    return {
        "numbers": [asdict(number) for number in numbers],
        "categories": [{"name": c.name, "classes": list(c.classes)} for c in classes],
    }


def from_facts(metadata: Mapping[str, Any]) -> tuple[tuple[Number, ...], tuple[Classes, ...]]:
    """Undo `as_facts`."""
    return (
        tuple(Number(**number) for number in metadata["numbers"]),
        tuple(Classes(c["name"], tuple(c["classes"])) for c in metadata["categories"]),
    )
