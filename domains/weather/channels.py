"""The channels that variables make: each of their levels one, some summed over time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from jitkit.domains.arrays import label, matching, part_of
from jitkit.domains.weather.derived import Accumulated, DerivedSource, Plain
from jitkit.domains.weather.geography import Dims, by_level, coordinate_of
from jitkit.domains.weather.section import WeatherSection
from jitkit.domains.weather.timedelta import in_words
from jitkit.errors import DataError, RecipeError, listed
from jitkit.utils.types import Array

if TYPE_CHECKING:
    from jitkit.stores.store import Readable


@dataclass(frozen=True, eq=False)
class Channel:
    """A variable at a level.

    Attributes:
        name: of the channel, ``temperature.500``.
        variable: of the store, by the recipe.
        level: value of its coordinate; None where it has none.
        source: where it is read.
    """

    name: str
    variable: str
    level: float | None
    source: Plain


def find_channels(
    store: Readable,
    dims: Dims,
    names: Mapping[str, list[float] | None],
    section: WeatherSection,
    entries: Array,
) -> list[Channel]:
    """The channels that variables make: each of their levels one."""
    found = []
    for name, levels in names.items():
        for level, source in _levels(store, dims, name, levels, section, entries):
            if not {dims.time, dims.y, dims.x} <= set(source.described.dims):
                raise DataError(
                    f"variable {name!r} has dimensions {listed(source.described.dims)}, and what "
                    f"is predicted has {dims.time}, {dims.y} and {dims.x}; without time it is for "
                    "domain.static"
                )
            channel = name if level is None else f"{name}.{label(level)}"
            found.append(Channel(channel, name, None if level is None else float(level), source))
    return found


def _levels(
    store: Readable,
    dims: Dims,
    name: str,
    levels: list[float] | None,
    section: WeatherSection,
    entries: Array,
) -> list[tuple[Any, Plain]]:
    """A variable at each of its levels (None: it has none)."""
    make = partial(Plain, store, time=dims.time, entries=entries)
    if name not in store.variables:
        each = by_level(store, name, levels or ())
        return [(level, make(n, fixed={})) for level, n in zip(levels or (), each, strict=True)]
    fixed, over = others_of(store, dims, name, section)
    if over is None:
        if levels is not None:
            raise DataError(
                f"domain.variables.{name}: levels {listed(map(label, levels))} are asked, and the "
                f"variable has none: ({', '.join(store.variables[name].dims)})"
            )
        return [(None, make(name, fixed=fixed))]
    values = coordinate_of(store, over)
    asked = levels if levels is not None else section.select.get(over)
    chosen = np.arange(len(values))
    if asked is not None:
        chosen = matching(values, asked, f"domain.variables.{name}")
    return [(values[i], make(name, fixed={**fixed, over: int(i)})) for i in chosen]


def others_of(
    store: Readable, dims: Dims, name: str, section: WeatherSection
) -> tuple[dict[str, int], str | None]:
    """Of a variable's further dimensions, those at one entry, and that of levels."""
    fixed, over = {}, None
    for dim, size in zip(store.variables[name].dims, store.variables[name].shape, strict=True):
        if dim in dims.all:
            continue
        part = part_of(store, dim)[0]
        if part == "level" and dim in store.coords.variables:
            over = dim
        elif size == 1:
            fixed[dim] = 0
        elif dim in section.select:
            chosen = matching(
                coordinate_of(store, dim), section.select[dim], f"domain.select.{dim}"
            )
            if len(chosen) > 1:
                raise RecipeError(f"domain.select.{dim}: choose one entry of {dim}")
            fixed[dim] = int(chosen[0])
        elif part != "member":
            raise DataError(
                f"variable {name!r} has a dimension {dim} ({size}) that is neither time, level nor "
                f"grid; choose one entry: domain.select.{dim}=[{label(_first_of(store, dim))}]"
            )
    return fixed, over


def _first_of(store: Readable, dim: str) -> Any:
    values = coordinate_of(store, dim)
    return values[0] if len(values) else 0


def summed(channel: Channel, sums: Mapping[str, int], step: float) -> DerivedSource:
    """A channel's source, summed over time where that is asked."""
    steps = sums.get(channel.variable)
    return Accumulated(channel.source, steps, in_words(step)) if steps else channel.source
