"""A stochastic system with known forecast distribution: fields with drift, damping and forcing.

    x[s + 1] = M (A x[s] + e[s]) on a line of latitudes and a circle of longitudes, two channels.

A shifts each channel along the circle by an integer number of cells per step and damps wavenumber k
by a(k). e is Gaussian noise, correlated over cells and channels, white in time. M sets an island to
zero, where there are no data. The observed cells of a state therefore determine the distribution of
its future. The forecast s steps ahead is Gaussian with mean (M A)^s x and covariance
V[s] = (M A) V[s - 1] (M A)' + M Q M. Without the island, power at wavenumber k is
q(k) / (1 - a(k)²).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from jitkit.utils.types import Array

CHANNELS = ("temperature", "pressure")
UNITS = ("K", "Pa")
MEANS = np.array([288.0, 101_325.0])[:, None, None]
STDS = np.array([8.0, 600.0])[:, None, None]  # of the system without an island
CORRELATION = 0.6  # of the channels' noise, at every wavenumber
DRIFT = (1, 2)  # cells eastward per step
MEMORY = ((0.95, 6.0), (0.9, 8.0))  # (a0, k0) of a(k) = a0 / sqrt(1 + (k / k0)²)
FALL = ((4.0, 2.0), (6.0, 1.5))  # (k0, q) of power ~ (1 + (k / k0)²)^-q
REACH = 4.0  # cells of latitude, over which the exponential covariance falls to 1 / e
HOURS = 6  # of a step
BLOCK = 4096  # steps whose noise is drawn at once


@dataclass(frozen=True)
class DriftingFields:
    """The system; states are (..., 2, rows, columns), in standard deviations unless stated.

    Attributes:
        rows, columns: cells of latitude and of longitude; both even.
        has_island: whether a part of the grid is never observed.
    """

    rows: int = 16
    columns: int = 32
    has_island: bool = True

    @cached_property
    def island(self) -> Array:
        """True where data are always missing, (rows, columns): a quarter of each, at the seam."""
        rows, columns = np.indices((self.rows, self.columns))
        from_seam = np.minimum(columns, self.columns - 1 - columns)
        within = (rows >= self.rows // 8) & (rows < self.rows // 8 + self.rows // 4)
        return within & (from_seam < self.columns // 8) & self.has_island

    @cached_property
    def memory(self) -> Array:
        """a(k) of each channel, (2, columns / 2 + 1)."""
        k = np.arange(self.columns // 2 + 1)
        return np.stack([a0 / np.sqrt(1 + (k / k0) ** 2) for a0, k0 in MEMORY])

    @cached_property
    def power(self) -> Array:
        """Variance at each wavenumber without an island, (2, columns / 2 + 1); sums to 1."""
        k = np.arange(self.columns // 2 + 1)
        twice = np.where((k == 0) | (2 * k == self.columns), 1, 2)  # k and -k
        found = np.stack([twice * (1 + (k / k0) ** 2) ** -q for k0, q in FALL])
        return found / found.sum(axis=1, keepdims=True)

    @cached_property
    def line_covariance(self) -> Array:
        """Covariance between rows, (rows, rows)."""
        apart = np.abs(np.subtract.outer(np.arange(self.rows), np.arange(self.rows)))
        return np.exp(-apart / REACH)

    def advance(self, x: Array) -> Array:
        """One step without noise, M A x."""
        waves = np.fft.rfft(x) * self._carried[:, None]
        return np.where(self.island, 0, np.fft.irfft(waves, self.columns))

    def noise(self, n: int, rng: np.random.Generator) -> Array:
        """M e of ``n`` steps, (n, 2, rows, columns)."""
        return self._coloured(rng.standard_normal((n, 2, self.rows, self.columns)))

    def series(self, steps: int, rng: np.random.Generator, *, spin_up: int = 200) -> Array:
        """Consecutive states, (steps, 2, rows, columns) float32, from a stationary start.

        Args:
            steps: number of states.
            rng: the only source of randomness.
            spin_up: discarded steps from zero; 0.95^200 of the slowest mode remains.
        """
        x: Array = np.zeros((2, self.rows, self.columns))
        for e in self.noise(spin_up, rng):
            x = self.advance(x) + e
        found = np.empty((steps, *x.shape), np.float32)
        for first in range(0, steps, BLOCK):
            for i, e in enumerate(self.noise(min(BLOCK, steps - first), rng), first):
                x = self.advance(x) + e
                found[i] = x
        return found

    def ensemble(self, x: Array, members: int, steps: int, rng: np.random.Generator) -> Array:
        """Draws of the exact forecast from one state, (steps, members, 2, rows, columns)."""
        states = np.broadcast_to(x, (members, *x.shape))
        found = []
        for _ in range(steps):
            states = self.advance(states) + self.noise(members, rng)
            found.append(states)
        return np.stack(found)

    # Covariances, of flattened states: (2 rows columns, 2 rows columns)

    @cached_property
    def step_matrix(self) -> Array:
        """M A."""
        size = 2 * self.rows * self.columns
        basis = np.eye(size).reshape(size, 2, self.rows, self.columns)
        return self.advance(basis).reshape(size, size).T

    @cached_property
    def noise_covariance(self) -> Array:
        """M Q M."""
        size = 2 * self.rows * self.columns
        basis = np.eye(size).reshape(size, 2, self.rows, self.columns)
        factor = self._coloured(basis).reshape(size, size)  # rows are the responses to unit vectors
        return factor.T @ factor

    def forecast_variance(self, steps: int) -> Array:
        """Variance of the exact forecast in each cell, (steps, 2, rows, columns)."""
        found, v = [], np.zeros_like(self.noise_covariance)
        for _ in range(steps):
            v = self.step_matrix @ v @ self.step_matrix.T + self.noise_covariance
            found.append(np.diag(v).reshape(2, self.rows, self.columns))
        return np.stack(found)

    @cached_property
    def stationary_covariance(self) -> Array:
        """Stationary covariance: P = (M A) P (M A)' + M Q M, summed by doubling."""
        p, a = self.noise_covariance, self.step_matrix
        while np.abs(a).max() > 1e-9:
            p, a = p + a @ p @ a.T, a @ a
        return p

    @cached_property
    def _carried(self) -> Array:
        """Eigenvalue of A at each wavenumber, complex, (2, columns / 2 + 1)."""
        k = np.arange(self.columns // 2 + 1)
        turns = np.exp(-2j * np.pi * np.outer(DRIFT, k) / self.columns)
        return self.memory * turns

    def _coloured(self, white: Array) -> Array:
        """White noise (n, 2, rows, columns) with the covariance of the noise of the system."""
        k = np.arange(self.columns // 2 + 1)
        twice = np.where((k == 0) | (2 * k == self.columns), 1, 2)
        power = self.power * (1 - self.memory**2)
        amplitude = np.sqrt(self.columns * power / twice)
        r = CORRELATION
        mixed = np.stack([white[:, 0], r * white[:, 0] + sqrt(1 - r**2) * white[:, 1]], axis=1)
        e = np.fft.irfft(np.fft.rfft(mixed) * amplitude[:, None], self.columns)
        return np.where(self.island, 0, np.linalg.cholesky(self.line_covariance) @ e)


def physical(x: Array, fields: DriftingFields) -> Array:
    """States in K and Pa, float32, NaN on the island."""
    return np.where(fields.island, np.nan, MEANS + STDS * x).astype(np.float32)


def standardised(values: Array) -> Array:
    """Undo `physical`: float64, zero on the island."""
    return np.nan_to_num((values.astype(np.float64) - MEANS) / STDS)


def latitudes(fields: DriftingFields) -> Array:
    """Centres of the rows in degrees, from north to south, (rows,)."""
    return 90 - 180 * (np.arange(fields.rows) + 0.5) / fields.rows


def write_zarr(states: Array, fields: DriftingFields, path: Path, start: str) -> None:
    """States (time, 2, rows, columns) as a Zarr store of two variables and a land-sea mask."""
    import xarray

    first = np.datetime64(start, "ns")
    times = first + np.arange(len(states)) * np.timedelta64(HOURS, "h")
    longitudes = np.arange(fields.columns) * 360 / fields.columns
    coords = {
        "time": times,
        "latitude": ("latitude", latitudes(fields), {"units": "degrees_north"}),
        "longitude": ("longitude", longitudes, {"units": "degrees_east"}),
    }
    values = physical(states, fields)
    variables: dict[str, Any] = {
        name: (("time", "latitude", "longitude"), values[:, c], {"units": unit})
        for c, (name, unit) in enumerate(zip(CHANNELS, UNITS, strict=True))
    }
    mask = fields.island.astype(np.float32)
    attrs = {"units": "1", "standard_name": "land_binary_mask"}
    variables["land_sea_mask"] = (("latitude", "longitude"), mask, attrs)
    chunks = {name: {"chunks": (256, fields.rows, fields.columns)} for name in CHANNELS}
    data = xarray.Dataset(variables, coords)
    data.to_zarr(path, mode="w", encoding=chunks, consolidated=False)


def optimum(fields: DriftingFields, steps: Sequence[int]) -> Array:
    """Minimal expected CRPS of each cell, σ / √π of the exact forecast, in K and Pa.

    It is the CRPS of a Gaussian forecast, averaged over outcomes drawn from it (Gneiting & Raftery
    2007, doi:10.1198/016214506000001437, equation 21).

    Returns:
        (len(steps), 2, rows, columns), zero on the island.
    """
    variance = fields.forecast_variance(max(steps))[[s - 1 for s in steps]]
    return STDS * np.sqrt(variance / np.pi)
