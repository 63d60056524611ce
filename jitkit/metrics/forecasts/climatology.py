"""Climatology: mean of each cell by day of the year and hour of the day, fitted in one pass.

Each cell has a mean and harmonics of the annual cycle for every hour of the day in the data, fitted
by least squares to training states. It is smooth in the day of the year by construction, and needs
1 + 2 harmonics values per cell and hour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from jitkit.errors import DataError
from jitkit.utils.console import bar
from jitkit.utils.types import Array

MAX_HARMONICS = 4  # of the annual cycle: down to three months
DAYS_PER_YEAR = 365.2425
HOURS_PER_DAY = 24


class StateSeries(Protocol):
    """A time series of fields; positions are indices in time order."""

    @property
    def times(self) -> Array:
        """Times of all states, datetime64 or cftime, (n,)."""

    @property
    def train(self) -> Array:
        """Positions of the training states, to which baselines are fitted."""

    @property
    def channels(self) -> Sequence[str]:
        """C names."""

    def read(self, position: int) -> Array:
        """A state, (C, X1..Xn) in physical units, NaN missing."""

    def after(self, position: int, steps: int) -> int | None:
        """The position ``steps`` forecast steps later; None if the data have none."""


def year_and_hour(times: Array) -> tuple[Array, Array]:
    """Fraction of the year in [0, 1) and hour of the day of each time, (n,)."""
    import xarray

    parts = xarray.DataArray(times, dims="time").dt
    hour = parts.hour + parts.minute / 60
    days = 365 + np.asarray(parts.is_leap_year) if times.dtype.kind == "M" else _days(times)
    return np.asarray((parts.dayofyear - 1 + hour / HOURS_PER_DAY) / days), np.asarray(hour)


def _days(times: Array) -> Array:
    """Length in days of the year of each cftime."""
    return np.array(
        [t.replace(month=12, day=30 if t.calendar == "360_day" else 31).dayofyr for t in times]
    )


def years_of(times: Array) -> float:
    """Years from the first to the last time."""
    span = times[-1] - times[0]
    days = span / np.timedelta64(1, "D") if times.dtype.kind == "M" else span.days
    return float(days) / DAYS_PER_YEAR


def subsample(positions: Array, most: int, seed: int) -> Array:
    """At most ``most`` of the positions, in order, drawn at random so that all hours occur."""
    if len(positions) <= most:
        return positions
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(positions, most, replace=False))


@dataclass(frozen=True, eq=False)
class Climatology:
    """Mean of each cell by day of the year and hour of the day.

    Attributes:
        year_fraction: fraction of the year of each state of the series, (n,).
        hour_index: index of each state's hour of the day, (n,).
        harmonics: number of harmonics of the annual cycle, 0 if training spans less than a year.
        coefficients: (H, 1 + 2 harmonics, C, X1..Xn); NaN in cells that were never observed.
        deviation: standard deviation of a channel's anomalies over cells and times, (C,).
    """

    year_fraction: Array
    hour_index: Array
    harmonics: int
    coefficients: Array
    deviation: Array

    @classmethod
    def fit(cls, states: StateSeries, positions: Array) -> Climatology:
        """Fit by least squares to the states at ``positions``; each is read once.

        Raises:
            DataError: too few states for the mean of each hour.
        """
        year_fraction, hour = year_and_hour(states.times)
        hours = np.unique(hour[positions])
        # the nearest hour for those without training states
        hour_index = np.abs(hour[:, None] - hours).argmin(axis=1)
        harmonics = _num_harmonics(
            states.times[positions], year_fraction[positions], hour_index[positions]
        )
        if min(np.bincount(hour_index[positions])) < 2 * (1 + 2 * harmonics):
            raise DataError(
                f"{len(positions)} training states at {len(hours)} hours of the day are too few "
                "for a climatology"
            )
        basis = _basis(year_fraction[positions], harmonics)
        sums = _Sums(len(hours), basis.shape[1])
        with bar("climatology", len(positions), unit="states") as done:
            for i, position in enumerate(positions.tolist()):
                sums.add(int(hour_index[position]), basis[i], states.read(position))
                done(i + 1)
        return cls(year_fraction, hour_index, harmonics, *sums.solve())

    def mean_at(self, position: int) -> Array:
        """The mean state for the day of the year and hour of a position, (C, X1..Xn) float32."""
        basis = _basis(self.year_fraction[position : position + 1], self.harmonics)[0]
        coefficients = self.coefficients[self.hour_index[position]]
        return np.tensordot(basis, coefficients, 1).astype(np.float32)


def _num_harmonics(times: Array, year_fraction: Array, hour_index: Array) -> int:
    """Number of harmonics that training can resolve: at most one per full year."""
    phases = min(
        len(np.unique(np.round(year_fraction[hour_index == s] * 366)))
        for s in np.unique(hour_index)
    )
    whole = int(years_of(times) + 0.1)
    return max(0, min(MAX_HARMONICS, whole, (phases - 1) // 2))


def _basis(year_fraction: Array, harmonics: int) -> Array:
    """1, √2 cos and √2 sin of every harmonic, (n, 1 + 2 harmonics)."""
    angle = 2 * np.pi * np.outer(year_fraction, np.arange(1, harmonics + 1))
    ones = np.ones((len(year_fraction), 1))
    return np.concatenate([ones, 2**0.5 * np.cos(angle), 2**0.5 * np.sin(angle)], axis=1)


class _Sums:
    """Least-squares sums for every cell, over the times at which it was observed."""

    def __init__(self, hours: int, size: int) -> None:
        self.hours, self.size = hours, size
        self.normal: Array = np.zeros((hours, size, size))
        self.unobserved: dict[int, Array] = {}  # by channel: excess of ``normal`` in each cell
        self.product: Array | None = None
        self.squares: Array | None = None
        self.observed: Array | None = None

    def add(self, hour_index: int, basis: Array, state: Array) -> None:
        """Add a state (C, X1..Xn) at an hour."""
        if self.product is None or self.squares is None or self.observed is None:
            self.product = np.zeros((self.hours, self.size, *state.shape))
            self.squares, self.observed = np.zeros(state.shape), np.zeros(state.shape)
        known = np.isfinite(state)
        outer = np.outer(basis, basis)
        self.normal[hour_index] += outer
        x = np.where(known, state, 0).astype(np.float64)
        self.product[hour_index] += np.multiply.outer(basis, x)
        self.squares += x**2
        self.observed += known
        for c in np.flatnonzero(~known.reshape(len(state), -1).all(axis=1)).tolist():
            if c not in self.unobserved:
                self.unobserved[c] = np.zeros((*self.normal.shape, *state.shape[1:]))
            self.unobserved[c][hour_index] += np.multiply.outer(outer, ~known[c])

    def solve(self) -> tuple[Array, Array]:
        """Coefficients (H, P, C, X1..Xn), and each channel's deviation of anomalies (C,)."""
        assert self.product is not None and self.squares is not None and self.observed is not None
        coefficients = np.empty_like(self.product)
        for c in range(coefficients.shape[2]):
            coefficients[:, :, c] = self._solve_channel(c)
        coefficients[:, :, self.observed == 0] = np.nan
        explained = (coefficients * self.product).sum(axis=(0, 1))
        cells = tuple(range(1, self.squares.ndim))
        rest = np.nansum(self.squares - explained, axis=cells, where=self.observed > 0)
        variance = np.maximum(rest, 0) / np.maximum(self.observed.sum(axis=cells), 1)
        return coefficients, np.sqrt(variance)

    def _solve_channel(self, c: int) -> Array:
        """Coefficients of a channel, (H, P, X1..Xn)."""
        assert self.product is not None
        product = self.product[:, :, c]
        grid = product.shape[2:]
        flat = product.reshape(self.hours, self.size, -1)
        if c not in self.unobserved:
            return np.linalg.solve(self.normal, flat).reshape(product.shape)
        normal = self.normal[..., None] - self.unobserved[c].reshape(*self.normal.shape, -1)
        each = np.moveaxis(normal, -1, 1)  # (H, cells, P, P)
        inverse = np.linalg.pinv(each, rcond=1e-6, hermitian=True)
        return np.einsum("hnij,hjn->hin", inverse, flat).reshape(self.hours, self.size, *grid)
