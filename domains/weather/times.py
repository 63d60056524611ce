"""Times of a store that a recipe uses, gaps between them, and accumulation windows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jitkit.domains.arrays import Data, find_gaps, in_seconds, label, segments
from jitkit.domains.weather.anemoi import Anemoi
from jitkit.domains.weather.geography import coordinate_of
from jitkit.domains.weather.section import WeatherSection
from jitkit.domains.weather.timedelta import duration
from jitkit.errors import DataError, RecipeError, listed, nearest
from jitkit.utils.console import warn
from jitkit.utils.types import Array

if TYPE_CHECKING:
    from jitkit.stores.store import Readable


def times_of(store: Readable, dim: str) -> Array:
    """Times of a store, (n,).

    Raises:
        DataError: they are not increasing.
    """
    times = coordinate_of(store, dim)
    if len(times) > 1 and not (np.diff(times) > times[0] - times[0]).all():
        raise DataError(f"{store.path}: {dim} is not increasing; sort the data")
    return times


def used_entries(store: Readable, times: Array, section: WeatherSection) -> Array:
    """Entries along time that a recipe uses, before ``select``."""
    used = np.ones(len(times), bool)
    if isinstance(store, Anemoi):
        used &= ~store.missing
    if section.every is not None:
        every = duration(section.every)
        if every.unit == "steps":
            used &= np.arange(len(times)) % every.amount == 0
        else:
            every.in_steps(time_step(times), "domain.every")
            used &= _since_midnight(times) % every.seconds == 0
    if not used.any():
        raise DataError(
            f"domain.every: no time is a multiple of {section.every} from midnight; the first are "
            f"{listed([label(t) for t in times[:4]])}"
        )
    return np.flatnonzero(used)


def _since_midnight(times: Array) -> Array:
    """Whole seconds since midnight."""
    if times.dtype.kind == "M":
        return (times.astype("M8[s]") - times.astype("M8[D]").astype("M8[s]")).astype(np.int64)
    return np.array([t.hour * 3600 + t.minute * 60 + t.second for t in times.tolist()])


def time_step(times: Array) -> float:
    """Seconds between times, the median of the first thousand steps."""
    if len(times) < 2:
        return 1.0
    steps = np.diff(times)
    return float(np.median([in_seconds(step) for step in steps[:1000]]))


_warned: set[str] = set()  # once per process


def warn_of_gaps(data: Data, time: str, path: str | None) -> None:
    """Warn of missing times where items would span them."""
    values = data.plan.values[time]
    gaps = np.flatnonzero(find_gaps(values))
    if not len(gaps) or data.section.conditions.past == 0:
        return
    text = (
        f"{path}: {len(gaps)} gap{'s' * (len(gaps) > 1)} in {time}, the first after "
        f"{label(values[gaps[0]])}; items that would span a gap are left out"
    )
    if text not in _warned:
        _warned.add(text)
        warn(text)


def accumulation_steps(
    times: Array, names: Mapping[str, Any], section: WeatherSection
) -> dict[str, int]:
    """Number of steps over which each accumulated variable is summed."""
    step, found = time_step(times), {}
    for name, text in section.accumulate.items():
        if name not in names:
            raise RecipeError(
                f"domain.accumulate: {name!r} is not among the variables: {listed(names)}"
                f"{nearest(name, names)}"
            )
        found[name] = duration(text).in_steps(step, f"domain.accumulate.{name}")
    return found


def with_whole_window(store: Readable, times: Array, entries: Array, steps: int) -> Array:
    """Entries that end a window of ``steps`` steps without a gap."""
    if steps == 1:
        return entries
    entries = entries[entries >= steps - 1]
    first = entries - steps + 1
    segment = segments(times)
    complete = segment[entries] == segment[first]
    if isinstance(store, Anemoi):
        absent = np.concatenate([[0], np.cumsum(store.missing)])
        complete &= absent[entries + 1] == absent[first]
    if not complete.any():
        raise DataError(
            f"domain.accumulate: {store.path} has no {steps} consecutive steps without a gap"
        )
    return entries[complete]
