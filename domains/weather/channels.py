"""Channels of the model: variables at pressure levels, some accumulated over time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from jitkit.domains.arrays import dimension_kind, label, matching
from jitkit.domains.weather.derived import Accumulated, DerivedSource, Plain
from jitkit.domains.weather.geography import Dims, by_level, coordinate_of
from jitkit.domains.weather.section import WeatherSection
from jitkit.domains.weather.timedelta import format_duration
from jitkit.errors import DataError, RecipeError, listed
from jitkit.utils.types import Array

if TYPE_CHECKING:
    from jitkit.stores.store import Readable


@dataclass(frozen=True, eq=False)
class Channel:
    """A variable at a level.

    Attributes:
        name: of the channel, ``temperature.500``.
        variable: name in the recipe.
        level: value of the level coordinate; None without levels.
        source: what it is read from.
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
    """One channel for each level of each variable."""
    found = []
    for name, levels in names.items():
        for level, source in _levels(store, dims, name, levels, section, entries):
            if not {dims.time, dims.y, dims.x} <= set(source.described.dims):
                raise DataError(
                    f"variable {name!r} has dimensions {listed(source.described.dims)}, but "
                    f"predicted variables need {dims.time}, {dims.y} and {dims.x}; a variable "
                    "without time belongs in domain.static"
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
    """A variable at each of its levels; the level is None for a variable without levels."""
    make = partial(Plain, store, time=dims.time, entries=entries)
    if name not in store.variables:
        each = by_level(store, name, levels or ())
        return [(level, make(n, fixed={})) for level, n in zip(levels or (), each, strict=True)]
    fixed, over = others_of(store, dims, name, section)
    if over is None:
        if levels is not None:
            raise DataError(
                f"domain.variables.{name}: levels {listed(map(label, levels))} are requested, but "
                f"the variable has none: ({', '.join(store.variables[name].dims)})"
            )
        return [(None, make(name, fixed=fixed))]
    values = coordinate_of(store, over)
    requested = levels if levels is not None else section.select.get(over)
    chosen = np.arange(len(values))
    if requested is not None:
        chosen = matching(values, requested, f"domain.variables.{name}")
    return [(values[i], make(name, fixed={**fixed, over: int(i)})) for i in chosen]


def others_of(
    store: Readable, dims: Dims, name: str, section: WeatherSection
) -> tuple[dict[str, int], str | None]:
    """Further dimensions of a variable: those fixed to one entry, and the level dimension."""
    fixed, over = {}, None
    for dim, size in zip(store.variables[name].dims, store.variables[name].shape, strict=True):
        if dim in dims.all:
            continue
        part = dimension_kind(store, dim)[0]
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
                f"variable {name!r} has a dimension {dim} ({size}) that is not time, level or "
                f"grid; choose one entry: domain.select.{dim}=[{label(_first_of(store, dim))}]"
            )
    return fixed, over


def _first_of(store: Readable, dim: str) -> Any:
    values = coordinate_of(store, dim)
    return values[0] if len(values) else 0


def summed(channel: Channel, sums: Mapping[str, int], step: float) -> DerivedSource:
    """A channel's source, accumulated over time where the recipe requests it."""
    steps = sums.get(channel.variable)
    return Accumulated(channel.source, steps, format_duration(step)) if steps else channel.source
