"""Coordinates: selection by range or list; numeric, text and time values (numpy or cftime).

All functions take the values of one coordinate, or 0, 1, 2, ... for a dimension without one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ConfigDict, model_validator
from pydantic import Field as Limit

from jitkit.errors import DataError, RecipeError, listed, nearest
from jitkit.sections import Section
from jitkit.utils.types import Array

if TYPE_CHECKING:
    from jitkit.stores.store import Readable

Value = int | float | str


class Range(Section):
    """A range of a dimension by coordinate, both ends included; by index if it has none.

    Times may be partial: ``to: 2015`` means to the end of that year.
    """

    model_config = ConfigDict(serialize_by_alias=True)

    start: Value | None = Limit(default=None, alias="from")
    """First value; by default the start."""
    stop: Value | None = Limit(default=None, alias="to")
    """Last value; by default the end."""

    @model_validator(mode="after")
    def _bounded(self) -> Range:
        if self.start is None and self.stop is None:
            raise RecipeError("give from, to or both; leave the key out to use all entries")
        return self

    def __str__(self) -> str:
        ends = (("from", self.start), ("to", self.stop))
        return " ".join(f"{word} {value}" for word, value in ends if value is not None)


Selection = Range | list[Value]


def matching(values: Array, selection: Range | Sequence[Value], key: str) -> Array:
    """Indices of the selected entries; for a list, in the order of the list.

    Args:
        values: the dimension's coordinate, (n,).
        selection: a range, or a list of values.
        key: of the recipe, for messages.

    Raises:
        DataError: nothing matches, or a listed value does not.
        RecipeError: text that is not a time, or a range of names.
    """
    if not isinstance(selection, Range):
        indices = [_indices_of(values, value, key) for value in selection]
        if not indices:
            raise RecipeError(f"{key}: an empty list; leave the key out to use all entries")
        return np.concatenate(indices)
    selected = np.ones(len(values), bool)
    if selection.start is not None:
        selected &= comparable(values) >= value_bounds(values, selection.start, key)[0]
    if selection.stop is not None:
        selected &= comparable(values) < value_bounds(values, selection.stop, key)[1]
    if not selected.any():
        raise DataError(f"{key}: no entries {selection}; {extent(values)}")
    return np.flatnonzero(selected)


def extent(values: Array) -> str:
    """The values of a coordinate, or their number and range, as text."""
    few = [label(value) for value in values[:8]]
    if len(values) <= 8:
        return f"there are {listed(few)}"
    return f"there are {len(values)} values from {label(values[0])} to {label(values[-1])}"


def label(value: Any) -> str:
    """A coordinate value as short text.

    >>> label(np.float32(0.1)), label(500.0), label(np.datetime64("2006-04-16T00:00"))
    ('0.1', '500', '2006-04-16')
    """
    text = str(value.astype("M8[s]") if isinstance(value, np.datetime64) else value)
    if is_number(value):
        return text.removesuffix(".0")
    return re.sub(r"[T ]00:00:00$", "", text)


def is_number(value: Any) -> bool:
    """Whether a value is an integer or a float, not a bool."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def is_time(values: Array) -> bool:
    """Whether a coordinate holds times: numpy, or cftime of any calendar."""
    return values.dtype.kind == "M" or (len(values) > 0 and hasattr(values.flat[0], "calendar"))


def comparable(values: Array) -> Array:
    """Values for comparisons: numpy times in seconds, since nanoseconds cover only 1678 to 2262."""
    return values.astype("M8[s]") if values.dtype.kind == "M" else values


def in_seconds(difference: Any) -> float:
    """A difference of two times (numpy or cftime) in seconds."""
    if isinstance(difference, np.timedelta64):
        return float(difference / np.timedelta64(1, "s"))
    return float(difference.total_seconds())


def _indices_of(values: Array, value: Value, key: str) -> Array:
    if is_time(values):
        low, high = value_bounds(values, value, key)
        hit = (comparable(values) >= low) & (comparable(values) < high)
    elif values.dtype.kind in "iufb" and isinstance(value, int | float):
        hit = np.isclose(values.astype(np.float64), value, rtol=1e-6, atol=0)
    else:
        hit = np.array([str(value) == label(entry) for entry in values])
    if not hit.any():
        raise DataError(f"{key}: no {value!r}; {extent(values)}{_near(values, value)}")
    return np.flatnonzero(hit)


def _near(values: Array, value: Value) -> str:
    """A hint at the nearest entry."""
    if values.dtype.kind in "iuf" and not isinstance(value, str):
        closest = values[np.argmin(np.abs(values.astype(np.float64) - value))]
        return f"; the nearest is {label(closest)}"
    return nearest(str(value), [label(entry) for entry in values[:1000]])


def value_bounds(values: Array, value: Value, key: str) -> tuple[Any, Any]:
    """Interval [low, high) that a value covers: a partial time, or a number with its rounding."""
    if is_time(values):
        bounds = _numpy_bounds if values.dtype.kind == "M" else _cftime_bounds
        try:
            return bounds(str(value), values)
        except ValueError as error:
            example = label(values[0])
            raise RecipeError(
                f"{key}: {value!r} is not a time; write it as {example[:4]} or {example}"
            ) from error
    if values.dtype.kind not in "iuf" or isinstance(value, str):
        raise RecipeError(f"{key}: a range {value!r} needs numbers or times, and {extent(values)}")
    slack = 1e-6 * abs(value)  # so that 0.1 matches the float32 coordinate 0.1
    return value - slack, np.nextafter(value + slack, np.inf)


def _numpy_bounds(text: str, values: Array) -> tuple[Any, Any]:
    if not re.match(r"-?\d", text):  # numpy also knows now, today and NaT
        raise ValueError(text)
    low = np.datetime64(text)
    unit = np.datetime_data(low.dtype)[0]
    return low.astype("M8[s]"), (low + np.timedelta64(1, unit)).astype("M8[s]")  # type: ignore[call-overload]


_TIME = re.compile(r"(\d{1,4})(?:-(\d\d))?(?:-(\d\d))?(?:[T ](\d\d))?(?::(\d\d))?(?::(\d\d))?")


def _cftime_bounds(text: str, values: Array) -> tuple[Any, Any]:
    from datetime import timedelta

    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(text)
    given = [int(part) for part in match.groups() if part is not None]
    year, month = given[0], given[1] if len(given) > 1 else 1

    def time(*parts: int) -> Any:
        return values[0].replace(
            **dict(zip(("year", "month", "day", "hour", "minute", "second"), parts, strict=True)),
            microsecond=0,
        )

    low = time(*given, *(1, 1, 1, 0, 0, 0)[len(given) :])
    if len(given) == 1:
        return low, time(year + 1, 1, 1, 0, 0, 0)
    if len(given) == 2:
        return low, time(year + month // 12, month % 12 + 1, 1, 0, 0, 0)
    length = (timedelta(days=1), timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1))
    return low, low + length[len(given) - 3]


def find_gaps(values: Array) -> Array:
    """Gaps between neighbouring entries, (n - 1,) bool: steps above 1.5 times the median step."""
    none = np.zeros(max(0, len(values) - 1), bool)
    if len(values) < 3 or (values.dtype.kind not in "iuf" and not is_time(values)):
        return none
    steps = np.diff(values)
    if steps.dtype == object:
        steps = np.array([in_seconds(step) for step in steps])
    lengths = np.abs(steps.astype(np.float64))
    return np.asarray(lengths > 1.5 * np.median(lengths))


def segments(values: Array) -> Array:
    """Number of the gap-free segment of each entry, (n,).

    >>> segments(np.array([0, 1, 2, 5, 6]))
    array([0, 0, 0, 1, 1])
    """
    return np.concatenate([[0], np.cumsum(find_gaps(values))])


def coordinate(store: Readable, dim: str, size: int) -> Array:
    """Values of a dimension's coordinate, (size,); 0, 1, 2, ... if it has none."""
    if dim in store.coords.variables and store.coords[dim].dims == (dim,):
        return np.asarray(store.coords[dim].values)
    return np.arange(size)
