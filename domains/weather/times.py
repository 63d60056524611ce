"""Which times of a store a recipe uses, and over how many of them sums go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jitkit.domains.arrays import Data, holes, in_seconds, label, runs
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
        DataError: they do not rise.
    """
    times = coordinate_of(store, dim)
    if len(times) > 1 and not (np.diff(times) > times[0] - times[0]).all():
        raise DataError(f"{store.path}: {dim} does not rise from entry to entry; sort the data")
    return times


def used(store: Readable, times: Array, section: WeatherSection) -> Array:
    """Entries of the times that a recipe uses, but for ``select``."""
    used = np.ones(len(times), bool)
    if isinstance(store, Anemoi):
        used &= ~store.missing
    if section.every is not None:
        every = duration(section.every)
        if every.unit == "steps":
            used &= np.arange(len(times)) % every.amount == 0
        else:
            every.in_steps(step_of(times), "domain.every")
            used &= _since_midnight(times) % every.seconds == 0
    if not used.any():
        raise DataError(
            f"domain.every: no time is a multiple of {section.every} from midnight; the first are "
            f"{listed([label(t) for t in times[:4]])}"
        )
    return np.flatnonzero(used)


def _since_midnight(times: Array) -> Array:
    """Whole seconds since the beginning of the day."""
    if times.dtype.kind == "M":
        return (times.astype("M8[s]") - times.astype("M8[D]").astype("M8[s]")).astype(np.int64)
    return np.array([t.hour * 3600 + t.minute * 60 + t.second for t in times.tolist()])


def step_of(times: Array) -> float:
    """Seconds from one time to the next, the median of the first thousand."""
    if len(times) < 2:
        return 1.0
    steps = np.diff(times)
    return float(np.median([in_seconds(step) for step in steps[:1000]]))


_told: set[str] = set()  # once in a process is enough


def tell_gaps(data: Data, time: str, path: str | None) -> None:
    """Say where times are missing, if items would reach over them."""
    values = data.plan.values[time]
    gaps = np.flatnonzero(holes(values))
    if not len(gaps) or data.section.conditions.past == 0:
        return
    text = (
        f"{path}: {len(gaps)} gap{'s' * (len(gaps) > 1)} in {time}, the first after "
        f"{label(values[gaps[0]])}; items that would reach over one are left out"
    )
    if text not in _told:
        _told.add(text)
        warn(text)


def sums_of(times: Array, names: Mapping[str, Any], section: WeatherSection) -> dict[str, int]:
    """Steps of the data over which variables are summed."""
    step, found = step_of(times), {}
    for name, text in section.accumulate.items():
        if name not in names:
            raise RecipeError(
                f"domain.accumulate: {name!r} is not among the variables: {listed(names)}"
                f"{nearest(name, names)}"
            )
        found[name] = duration(text).in_steps(step, f"domain.accumulate.{name}")
    return found


def whole(store: Readable, times: Array, entries: Array, steps: int) -> Array:
    """Those of some entries that end so many steps without a gap."""
    if steps == 1:
        return entries
    entries = entries[entries >= steps - 1]
    first = entries - steps + 1
    run = runs(times)
    whole = run[entries] == run[first]
    if isinstance(store, Anemoi):
        absent = np.concatenate([[0], np.cumsum(store.missing)])
        whole &= absent[entries + 1] == absent[first]
    if not whole.any():
        raise DataError(
            f"domain.accumulate: nowhere in {store.path} do {steps} steps follow one another "
            "without a gap"
        )
    return entries[whole]
