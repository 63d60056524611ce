"""The mean of a sequence of fields by day of the year and hour: a climatology, from a stream.

Each cell has a mean and waves of a year and its parts, for every hour of the day that the data
have, fitted by least squares to training states. That is smooth in the day of the year by
construction, and needs (1 + 2 waves) numbers a cell and hour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from jitkit.errors import DataError
from jitkit.utils.console import bar
from jitkit.utils.types import Array

WAVES = 4  # of a year: down to three months
DAYS = 365.2425  # of a year
HOURS = 24


class StateSeries(Protocol):
    """Fields that follow one another in time; positions are their numbers in order."""

    @property
    def times(self) -> Array:
        """Of all states, numpy's or cftime's, (n,)."""

    @property
    def train(self) -> Array:
        """Positions that a model was trained on, and from which baselines may learn."""

    @property
    def channels(self) -> Sequence[str]:
        """C names."""

    def read(self, position: int) -> Array:
        """A state, (C, X1..Xn) in physical units, NaN missing."""

    def after(self, position: int, steps: int) -> int | None:
        """The position so many steps of the forecast later; None where the data have none."""


def year_and_hour(times: Array) -> tuple[Array, Array]:
    """Share of the year that has passed, in [0, 1), and hour of the day, for each time, (n,)."""
    import xarray

    parts = xarray.DataArray(times, dims="time").dt
    hour = parts.hour + parts.minute / 60
    days = 365 + np.asarray(parts.is_leap_year) if times.dtype.kind == "M" else _days(times)
    return np.asarray((parts.dayofyear - 1 + hour / HOURS) / days), np.asarray(hour)


def _days(times: Array) -> Array:
    """Days of the year of each time of another calendar."""
    return np.array(
        [t.replace(month=12, day=30 if t.calendar == "360_day" else 31).dayofyr for t in times]
    )


def years_of(times: Array) -> float:
    """Years from the first to the last time."""
    apart = times[-1] - times[0]
    days = apart / np.timedelta64(1, "D") if times.dtype.kind == "M" else apart.days
    return float(days) / DAYS


def chosen(positions: Array, most: int, seed: int) -> Array:
    """At most so many of some positions, in order, drawn so that every hour has its chance."""
    if len(positions) <= most:
        return positions
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(positions, most, replace=False))


@dataclass(frozen=True, eq=False)
class Climatology:
    """Mean of each cell by day of the year and hour of the day.

    Attributes:
        share: of the year that has passed at each state of the sequence, (n,).
        slot: which hour of the day each state has, by number, (n,).
        waves: of the year, 0 where training spans less than one.
        coefficients: (H, 1 + 2 waves, C, X1..Xn); NaN in cells that were never observed.
        deviation: of a channel's anomalies over cells and times, (C,).
    """

    share: Array
    slot: Array
    waves: int
    coefficients: Array
    deviation: Array

    @classmethod
    def fit(cls, states: StateSeries, positions: Array) -> Climatology:
        """By least squares over the states at ``positions``; each is read once.

        Raises:
            DataError: fewer states than the mean of each hour needs.
        """
        share, hour = year_and_hour(states.times)
        hours = np.unique(hour[positions])
        slot = np.abs(hour[:, None] - hours).argmin(axis=1)  # the nearest where training lacks one
        waves = _waves(states.times[positions], share[positions], slot[positions])
        if min(np.bincount(slot[positions])) < 2 * (1 + 2 * waves):
            raise DataError(
                f"{len(positions)} training states at {len(hours)} hours of the day are too few "
                "for a climatology"
            )
        basis = _basis(share[positions], waves)
        sums = _Sums(len(hours), basis.shape[1])
        with bar("climatology", len(positions), unit="states") as done:
            for i, position in enumerate(positions.tolist()):
                sums.add(int(slot[position]), basis[i], states.read(position))
                done(i + 1)
        return cls(share, slot, waves, *sums.solved())

    def of(self, position: int) -> Array:
        """The mean state at a position's day of the year and hour, (C, X1..Xn) float32."""
        basis = _basis(self.share[position : position + 1], self.waves)[0]
        return np.tensordot(basis, self.coefficients[self.slot[position]], 1).astype(np.float32)


def _waves(times: Array, share: Array, slot: Array) -> int:
    """Waves that the training times can tell apart: none for less than a year, one a year more."""
    phases = min(len(np.unique(np.round(share[slot == s] * 366))) for s in np.unique(slot))
    whole = int(years_of(times) + 0.1)
    return max(0, min(WAVES, whole, (phases - 1) // 2))


def _basis(share: Array, waves: int) -> Array:
    """1, √2 cos and √2 sin of every wave, (n, 1 + 2 waves)."""
    angle = 2 * np.pi * np.outer(share, np.arange(1, waves + 1))
    ones = np.ones((len(share), 1))
    return np.concatenate([ones, 2**0.5 * np.cos(angle), 2**0.5 * np.sin(angle)], axis=1)


class _Sums:
    """Sums of least squares for every cell, each over the times at which it was observed."""

    def __init__(self, hours: int, size: int) -> None:
        self.hours, self.size = hours, size
        self.normal: Array = np.zeros((hours, size, size))
        self.lacking: dict[int, Array] = {}  # by channel, what ``normal`` has too much in a cell
        self.product: Array | None = None
        self.squares: Array | None = None
        self.observed: Array | None = None

    def add(self, slot: int, basis: Array, state: Array) -> None:
        """A state (C, X1..Xn) at an hour."""
        if self.product is None or self.squares is None or self.observed is None:
            self.product = np.zeros((self.hours, self.size, *state.shape))
            self.squares, self.observed = np.zeros(state.shape), np.zeros(state.shape)
        known = np.isfinite(state)
        outer = np.outer(basis, basis)
        self.normal[slot] += outer
        x = np.where(known, state, 0).astype(np.float64)
        self.product[slot] += np.multiply.outer(basis, x)
        self.squares += x**2
        self.observed += known
        for c in np.flatnonzero(~known.reshape(len(state), -1).all(axis=1)).tolist():
            if c not in self.lacking:
                self.lacking[c] = np.zeros((*self.normal.shape, *state.shape[1:]))
            self.lacking[c][slot] += np.multiply.outer(outer, ~known[c])

    def solved(self) -> tuple[Array, Array]:
        """Coefficients (H, P, C, X1..Xn), and the deviation of each channel's anomalies."""
        assert self.product is not None and self.squares is not None and self.observed is not None
        found = np.empty_like(self.product)
        for c in range(found.shape[2]):
            found[:, :, c] = self._of_channel(c)
        found[:, :, self.observed == 0] = np.nan
        explained = (found * self.product).sum(axis=(0, 1))
        cells = tuple(range(1, self.squares.ndim))
        rest = np.nansum(self.squares - explained, axis=cells, where=self.observed > 0)
        variance = np.maximum(rest, 0) / np.maximum(self.observed.sum(axis=cells), 1)
        return found, np.sqrt(variance)

    def _of_channel(self, c: int) -> Array:
        """(H, P, X1..Xn)."""
        assert self.product is not None
        product = self.product[:, :, c]
        grid = product.shape[2:]
        flat = product.reshape(self.hours, self.size, -1)
        if c not in self.lacking:
            return np.linalg.solve(self.normal, flat).reshape(product.shape)
        own = self.normal[..., None] - self.lacking[c].reshape(*self.normal.shape, -1)
        each = np.moveaxis(own, -1, 1)  # (H, cells, P, P)
        inverse = np.linalg.pinv(each, rcond=1e-6, hermitian=True)
        return np.einsum("hnij,hjn->hin", inverse, flat).reshape(self.hours, self.size, *grid)
