"""Gaussian random fields on a circle x line grid with known distribution, and metrics of them.

Two channels: T = mean + std G1 and p = mean + std (r G1 + sqrt(1 - r²) G2), G1 and G2 independent,
of unit variance and of covariance c(longitudes) x C(latitudes). The circle is sampled exactly by
FFT, the line by Cholesky. An island across the periodic edge has no data.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import log, sqrt
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jitkit.utils.types import Array

CHANNELS = ("temperature", "pressure")
UNITS = ("K", "Pa")
MEANS = np.array([288.0, 101_325.0])
STDS = np.array([8.0, 600.0])
CORRELATION = 0.6
FALL = ((4.0, 2.0), (6.0, 1.5))  # of G1 and G2: (k0, q) of power ~ (1 + (k / k0)²)^-q
REACH = 3.0  # cells of latitude, of the Matérn covariance with smoothness 3/2


class Estimate(NamedTuple):
    """A mean over samples and its standard error, with the same shape."""

    value: Array
    error: Array

    @classmethod
    def of(cls, each: Array) -> Estimate:
        """From one value per sample, (N, ...)."""
        return cls(each.mean(axis=0), each.std(axis=0, ddof=1) / sqrt(len(each)))

    def part(self, *index: int) -> Estimate:
        """The estimate at an index."""
        return Estimate(self.value[index], self.error[index])

    def over(self, known: float) -> Estimate:
        """The ratio to a known value."""
        return Estimate(self.value / known, self.error / known)


@dataclass(frozen=True)
class GaussianFields:
    """The distribution: fields of (2, rows, columns); rows are a line, columns a circle."""

    rows: int = 16
    columns: int = 32

    @cached_property
    def island(self) -> Array:
        """True where data are always missing, (rows, columns): a quarter of each, at the seam."""
        rows, columns = np.indices((self.rows, self.columns))
        from_seam = np.minimum(columns, self.columns - 1 - columns)
        within = (rows >= self.rows // 8) & (rows < self.rows // 8 + self.rows // 4)
        return within & (from_seam < self.columns // 8)

    @cached_property
    def full_rows(self) -> Array:
        """Rows without missing cells."""
        return np.flatnonzero(~self.island.any(axis=1))

    @cached_property
    def full_columns(self) -> Array:
        """Columns without missing cells."""
        return np.flatnonzero(~self.island.any(axis=0))

    @cached_property
    def circle_power(self) -> Array:
        """Variance of each channel at each wavenumber of the circle, (2, columns / 2 + 1)."""
        k = np.arange(self.columns // 2 + 1)
        twice = np.where((k == 0) | (2 * k == self.columns), 1, 2)  # k and -k
        g1, g2 = (twice * (1 + (k / k0) ** 2) ** -q for k0, q in FALL)
        g1, g2 = g1 / g1.sum(), g2 / g2.sum()
        return np.stack([g1, CORRELATION**2 * g1 + (1 - CORRELATION**2) * g2])

    @cached_property
    def line_covariance(self) -> Array:
        """Covariance between rows, (rows, rows)."""
        apart = np.abs(np.subtract.outer(np.arange(self.rows), np.arange(self.rows)))
        s = sqrt(3) * apart / REACH
        return (1 + s) * np.exp(-s)

    @cached_property
    def line_power(self) -> Array:
        """Expected value of `line_power_of`, (rows / 2 + 1); the same for both channels."""
        tapered = np.hanning(self.rows)[:, None] * np.fft.rfft(np.eye(self.rows), axis=0).T
        return np.einsum("ik,ij,jk->k", tapered, self.line_covariance, tapered.conj()).real

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        """Fields in K and Pa, NaN on the island, (n, 2, rows, columns) float32."""
        white = rng.standard_normal((n, 2, self.rows, self.columns))
        own = np.array([self.circle_power[0], self._second_power])
        k = np.arange(self.columns // 2 + 1)
        twice = np.where((k == 0) | (2 * k == self.columns), 1, 2)
        amplitude = np.sqrt(self.columns * own / twice)[None, :, None]
        g = np.fft.irfft(np.fft.rfft(white) * amplitude, self.columns)
        g = np.linalg.cholesky(self.line_covariance) @ g
        z = np.stack([g[:, 0], CORRELATION * g[:, 0] + sqrt(1 - CORRELATION**2) * g[:, 1]], axis=1)
        values = MEANS[:, None, None] + STDS[:, None, None] * z
        values[..., self.island] = np.nan
        return values.astype(np.float32)

    @property
    def _second_power(self) -> Array:
        """Of G2 alone."""
        g1, both = self.circle_power
        return (both - CORRELATION**2 * g1) / (1 - CORRELATION**2)

    def from_noise(self, eps: Array) -> Array:
        """Results of the exact sampler, in K and Pa: C^½ eps, C the covariance.

        The conditional mean is linear and has the eigenvectors of C, so dz/dt = v transports a
        component of variance s from eps to √s eps.

        Args:
            eps: standard Gaussian noise, (n, 2, rows, columns); noise on the island has no effect.
        """
        s, waves = np.linalg.eigh(self.covariance())
        seen = eps[..., ~self.island].reshape(len(eps), -1)
        z = np.full(eps.shape, np.nan)
        z[..., ~self.island] = ((seen @ waves * np.sqrt(s)) @ waves.T).reshape(len(eps), 2, -1)
        return (MEANS[:, None, None] + STDS[:, None, None] * z).astype(np.float32)

    def covariance(self) -> Array:
        """Of all cells with data, channel by channel, in standard deviations."""
        k, lags = np.arange(self.columns // 2 + 1), np.arange(self.columns)
        waves = np.cos(2 * np.pi * np.outer(k, lags) / self.columns)
        apart = np.abs(np.subtract.outer(lags, lags))
        seen = np.ix_(*[~self.island.ravel()] * 2)
        powers = (self.circle_power[0], self._second_power)
        g1, g2 = (np.kron(self.line_covariance, (p @ waves)[apart])[seen] for p in powers)
        r = CORRELATION
        return np.block([[g1, r * g1], [r * g1, r**2 * g1 + (1 - r**2) * g2]])

    def least_loss(self, t: Array) -> Array:
        """The minimal v-loss of any network at times ``t``, with unit noise.

        It is the error of the conditional mean per cell over (1 - t)²: the mean of
        s / (t² s + (1 - t)²) over the eigenvalues s of the covariance.
        """
        s = np.linalg.eigvalsh(self.covariance())
        return (s / (t[:, None] ** 2 * s + (1 - t[:, None]) ** 2)).mean(axis=1)

    # Measures, on anomalies in standard deviations, (N, 2, rows, columns)

    def circle_power_of(self, z: Array) -> Estimate:
        """Variance at each wavenumber of the circle, over full rows, (2, columns / 2 + 1)."""
        k = np.arange(self.columns // 2 + 1)
        twice = np.where((k == 0) | (2 * k == self.columns), 1, 2)
        waves = np.fft.rfft(z[:, :, self.full_rows]) / self.columns
        return Estimate.of((twice * np.abs(waves) ** 2).mean(axis=2))

    def line_power_of(self, z: Array) -> Estimate:
        """Power of tapered full columns (Hann) at each wavenumber, (2, rows / 2 + 1)."""
        tapered = np.hanning(self.rows)[:, None] * z[..., self.full_columns]
        return Estimate.of((np.abs(np.fft.rfft(tapered, axis=2)) ** 2).mean(axis=3))

    def seam_ratio(self, z: Array, patch: int) -> Estimate:
        """Mean square of jumps across the seam over that at all other edges of tokens, (2,)."""
        edges = self._squares(z)[..., patch - 1 :: patch]  # the seam's is the last
        return ratio_of(edges[..., -1], edges[..., :-1].mean(axis=2))

    def edge_ratio(self, z: Array, patch: int) -> Estimate:
        """Mean square of jumps at edges of tokens except the seam, over that inside, (2,)."""
        squares = self._squares(z)[..., :-1]
        at_edge = np.arange(self.columns - 1) % patch == patch - 1
        return ratio_of(squares[..., at_edge].mean(axis=2), squares[..., ~at_edge].mean(axis=2))

    def seam_distance(self, z: Array) -> Array:
        """Kolmogorov-Smirnov distance of jumps across the seam and on the opposite side, (2,).

        Each sample gives one jump of each kind, because the test needs independent values; the rows
        alternate.
        """
        seam, opposite = self.jumps(z)
        return np.array([ks_distance(seam[:, c], opposite[:, c]) for c in range(2)])

    def jumps(self, z: Array) -> tuple[Array, Array]:
        """Jumps across the seam and on the opposite side of the circle, (N, 2) each."""
        jumps, every = self._jumps(z), np.arange(len(z))
        rows = every % len(self.full_rows)
        return jumps[every, :, rows, -1], jumps[every, :, rows, self.columns // 2 - 1]

    def _squares(self, z: Array) -> Array:
        """Mean square over full rows of each jump, (N, 2, columns)."""
        return np.square(self._jumps(z)).mean(axis=2)

    def _jumps(self, z: Array) -> Array:
        """Next column minus this one on full rows, the seam last, (N, 2, full rows, columns)."""
        full = z[:, :, self.full_rows]
        return np.roll(full, -1, axis=3) - full


def ratio_of(above: Array, below: Array) -> Estimate:
    """Ratio of two means over samples, each from (N, ...), with the error of both."""
    mean = below.mean(axis=0)
    ratio = above.mean(axis=0) / mean
    rest = (above - ratio * below) / mean
    return Estimate(ratio, rest.std(axis=0, ddof=1) / sqrt(len(above)))


def standardized(values: Array) -> Array:
    """Anomalies in standard deviations, with the exact means and standard deviations."""
    return (values.astype(np.float64) - MEANS[:, None, None]) / STDS[:, None, None]


def marginals(z: Array) -> tuple[Estimate, Estimate, Estimate]:
    """Mean (2,), standard deviation (2,) and correlation of the channels, over cells with data."""
    mean = Estimate.of(np.nanmean(z, axis=(2, 3)))
    square = Estimate.of(np.nanmean(np.square(z), axis=(2, 3)))
    std = np.sqrt(square.value - mean.value**2)
    product = Estimate.of(np.nanmean(z[:, 0] * z[:, 1], axis=(1, 2)))
    covariance = product.value - mean.value.prod()
    correlation = Estimate(covariance / std.prod(), product.error / std.prod())
    return mean, Estimate(std, square.error / (2 * std)), correlation


def ks_distance(a: Array, b: Array) -> float:
    """The largest difference of two empirical distribution functions."""
    both = np.sort(np.concatenate([a, b]))
    below = [np.searchsorted(np.sort(x), both, "right") / len(x) for x in (a, b)]
    return float(np.abs(below[0] - below[1]).max())


def ks_critical(n: int, m: int, level: float) -> float:
    """Critical value of `ks_distance` at significance ``level``."""
    return sqrt(-log(level / 2) / 2 * (n + m) / (n * m))


def write_zarr(values: Array, fields: GaussianFields, path: Path) -> None:
    """Fields as a Zarr store of two variables, (sample, latitude, longitude)."""
    import xarray

    dims = ("sample", "latitude", "longitude")
    south, west = 90 - 180 * (np.arange(fields.rows) + 0.5) / fields.rows, 360 / fields.columns
    coords = {
        "sample": np.arange(len(values)),
        "latitude": ("latitude", south, {"units": "degrees_north"}),
        "longitude": ("longitude", np.arange(fields.columns) * west, {"units": "degrees_east"}),
    }
    variables = {
        name: (dims, values[:, c], {"units": unit})
        for c, (name, unit) in enumerate(zip(CHANNELS, UNITS, strict=True))
    }
    chunks = {name: {"chunks": (256, fields.rows, fields.columns)} for name in CHANNELS}
    data = xarray.Dataset(variables, coords)
    data.to_zarr(path, mode="w", encoding=chunks, consolidated=False)
