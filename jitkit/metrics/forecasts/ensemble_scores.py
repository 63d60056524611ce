"""Scores of ensembles against the truth: weighted sums over cells, then means over initial times.

    ensemble (M, C, X1..Xn), truth (C, X1..Xn) ─ Tally.add ─▶ sums by initial time, lead, channel
    sums of some initial times ─ Tally.scores ─▶ numbers by lead and channel, (L, C)

    rmse           root of the mean square error of the ensemble's mean, units of the data
    crps           continuous ranked probability score, the fair estimate for M members: what an
                   ensemble of infinitely many would have, on average (Ferro 2014,
                   doi:10.1002/qj.2270); of a single forecast it is the mean absolute error
    bias           mean error of the ensemble's mean
    spread         root of the mean variance of the members, times √((M + 1) / M)
    spread_skill   spread over rmse: 1 where the truth is like one more member (Fortin et al. 2014,
                   doi:10.1175/JHM-D-14-0008.1), below it where the ensemble is too sure
    rank_error     how uneven the rank histogram is: (M + 1) Σ (share - 1 / (M + 1))²; 0 is flat
    spectrum.AXIS  mean |log| of the members' power over the truth's along an axis; 0 is right

All are over cells that both know, weighted (by area). A number that cannot be had is NaN: spread
of a single forecast, anything where no cell is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jitkit.errors import DataError
from jitkit.metrics.fields.spectra import bands, power_spectrum
from jitkit.utils.types import Array

ScoreSums = dict[str, Array]

SUMS = ("weight", "lacking", "square", "error", "crps", "variance")
RESAMPLES = 400  # of the initial times


def fair_crps(ensemble: Array, truth: Array) -> Array:
    """CRPS of M members, unbiased for any M: mean |x - y| - Σ |xi - xj| / (2 M (M - 1)).

    The double sum is over sorted members, in M log M (Ferro 2014, doi:10.1002/qj.2270; the sorted
    form: Zamo & Naveau 2018, doi:10.1007/s11004-017-9709-7).

    Args:
        ensemble: members, (M, ...). One member has its absolute error.
        truth: what came, (...).
    """
    members = len(ensemble)
    error = np.abs(ensemble - truth).mean(axis=0)
    if members == 1:
        return error
    place = 2 * np.arange(1, members + 1) - members - 1
    apart = np.tensordot(place, np.sort(ensemble, axis=0), 1)  # Σ over pairs of |xi - xj|
    return error - apart / (members * (members - 1))


def ranks(ensemble: Array, truth: Array, rng: np.random.Generator) -> Array:
    """How many of M members lie below the truth, 0 to M, those that equal it by lot.

    Args:
        ensemble: members, (M, ...).
        truth: what came, (...).
        rng: breaks ties evenly.
    """
    below, ties = ((ensemble < truth).sum(axis=0), (ensemble == truth).sum(axis=0))
    return below + rng.integers(0, ties + 1)


@dataclass(frozen=True, eq=False)
class ScoreFrame:
    """What is scored: where, along which axes, of how much weight.

    Attributes:
        channels: C names.
        axes: name and kind (``"line"`` or ``"circle"``) of X1..Xn.
        weights: of the cells, (X1..Xn), such as their areas; only their ratios matter.
    """

    channels: Sequence[str]
    axes: Sequence[tuple[str, str]]
    weights: Array

    @property
    def grid(self) -> tuple[int, ...]:
        """Cells along each axis."""
        return self.weights.shape

    @property
    def spectral(self) -> list[int]:
        """Axes that are long enough to have wavenumbers, by number."""
        return [i for i, size in enumerate(self.grid) if size >= 4]


class Tally:
    """Sums of one system of forecasts over cells, by initial time, lead and channel.

    Memory is that of some hundred numbers for each of them, whatever the grid.

    Args:
        frame: what is scored.
        inits, leads: how many.
        members: M.
    """

    def __init__(self, frame: ScoreFrame, inits: int, leads: int, members: int) -> None:
        self.frame, self.members = frame, members
        shape = (inits, leads, len(frame.channels))
        self.sums: ScoreSums = {name: np.zeros(shape) for name in SUMS}
        self.histogram: Array = np.zeros((*shape, members + 1))
        self.power: ScoreSums = {}
        self.true_power: ScoreSums = {}
        self.rows: ScoreSums = {}
        for i in frame.spectral:
            name, count = frame.axes[i][0], len(bands(frame.grid[i])[0])
            self.power[name] = np.zeros((*shape, count))
            self.true_power[name] = np.zeros((*shape, count))
            self.rows[name] = np.zeros(shape)

    def add(
        self, init: int, lead: int, ensemble: Array, truth: Array, rng: np.random.Generator
    ) -> None:
        """Take in the forecast of one initial time and lead.

        Args:
            init, lead: by number.
            ensemble: (M, C, X1..Xn), physical units, NaN missing.
            truth: (C, X1..Xn), the same.
            rng: breaks ties of ranks.

        Raises:
            DataError: arrays of another shape.
        """
        shape = (len(self.frame.channels), *self.frame.grid)
        if truth.shape != shape or ensemble.shape != (self.members, *shape):
            raise DataError(
                f"a forecast of shape {ensemble.shape} and truth of {truth.shape}; expected "
                f"{(self.members, *shape)} and {shape}"
            )
        for c, y in enumerate(truth):
            at = (init, lead, c)
            self._add_values(at, ensemble[:, c], y, rng)
            for i in self.frame.spectral:
                self._add_power(at, i, ensemble[:, c], y)

    def _add_values(
        self, at: tuple[int, int, int], x: Array, y: Array, rng: np.random.Generator
    ) -> None:
        known = np.isfinite(y)
        both = known & np.isfinite(x).all(axis=0)
        weights, x, y = self.frame.weights[both], x[:, both].astype(np.float64), y[both]
        error = x.mean(axis=0) - y
        found = {
            "weight": np.ones_like(error),
            "square": error**2,
            "error": error,
            "crps": fair_crps(x, y),
        }
        if self.members > 1:
            found["variance"] = x.var(axis=0, ddof=1)
        for name, values in found.items():
            self.sums[name][at] = weights @ values
        self.sums["lacking"][at] = self.frame.weights[known & ~both].sum()
        self.histogram[at] = np.bincount(ranks(x, y, rng), weights, self.members + 1)

    def _add_power(self, at: tuple[int, int, int], axis: int, x: Array, y: Array) -> None:
        name, kind = self.frame.axes[axis]
        of_rows = np.moveaxis(self.frame.weights, axis, -1).sum(axis=-1)
        turned, true = np.moveaxis(x, axis + 1, -1), np.moveaxis(y, axis, -1)
        whole = np.isfinite(true).all(axis=-1) & np.isfinite(turned).all(axis=(0, -1))
        starts, widths = bands(self.frame.grid[axis])

        def power(rows: Array) -> Array:
            found = power_spectrum(rows.astype(np.float64), kind)
            return np.add.reduceat(found, starts, axis=-1) / widths

        weights = of_rows[whole]
        self.rows[name][at] = weights.sum()
        self.true_power[name][at] = weights @ power(true[whole])
        self.power[name][at] = weights @ power(turned[:, whole]).mean(axis=0)

    # Numbers, by lead and channel, of all initial times or of those that are drawn

    def scores(self, drawn: Array | None = None) -> ScoreSums:
        """Every score, (L, C) each.

        Args:
            drawn: initial times by number, repeated as a bootstrap draws them; all once where not
                given.
        """
        sums = {name: self._over(values, drawn) for name, values in self.sums.items()}
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = {name: sums[name] / sums["weight"] for name in SUMS}
            rmse = np.sqrt(mean["square"])
            spread = np.sqrt(mean["variance"] * (self.members + 1) / self.members)
            shares = self.shares(drawn)
            found = {"rmse": rmse, "crps": mean["crps"], "bias": mean["error"]}
            if self.members > 1:
                found |= {"spread": spread, "spread_skill": spread / rmse}
                uneven = np.square(shares - 1 / (self.members + 1)).sum(axis=-1)
                found["rank_error"] = (self.members + 1) * uneven
            for axis in self.power:
                logs = np.abs(np.log(self.power_ratio(axis, drawn)))
                found[f"spectrum.{axis}"] = logs.mean(axis=-1)
        return found

    def shares(self, drawn: Array | None = None) -> Array:
        """The rank histogram as shares, (L, C, M + 1)."""
        counts = self._over(self.histogram, drawn)
        with np.errstate(invalid="ignore"):
            return counts / counts.sum(axis=-1, keepdims=True)

    def power_ratio(self, axis: str, drawn: Array | None = None) -> Array:
        """Power of members over that of the truth in each band, (L, C, bands)."""
        power, true = (self._over(p[axis], drawn) for p in (self.power, self.true_power))
        with np.errstate(invalid="ignore", divide="ignore"):
            return power / true

    def rank_error_by_chance(self, blocks: Array) -> Array:
        """What ``rank_error`` would be on average if the histogram were flat, (L, C).

        The variance of each share, from how it differs between blocks of initial times: cells near
        each other are no independent trials, so their number does not tell.

        Args:
            blocks: the block of each initial time, by number.
        """
        counts = np.stack([self.histogram[blocks == b].sum(axis=0) for b in np.unique(blocks)])
        n = len(counts)
        if n < 2:
            return np.full(counts.shape[1:3], np.nan)
        total = counts.sum(axis=0)
        weight = total.sum(axis=-1, keepdims=True)
        with np.errstate(invalid="ignore"):
            rest = counts - total / weight * counts.sum(axis=-1, keepdims=True)
            variance = np.square(rest / weight).sum(axis=0) * n / (n - 1)
        return (self.members + 1) * variance.sum(axis=-1)

    @property
    def lacking(self) -> float:
        """Share of the truth's cells, by weight, that the forecasts did not know."""
        lacking, known = (float(self.sums[name].sum()) for name in ("lacking", "weight"))
        return lacking / (lacking + known) if lacking + known else float("nan")

    @staticmethod
    def _over(values: Array, drawn: Array | None) -> Array:
        """Sums over initial times, (L, C, ...)."""
        if drawn is None:
            return values.sum(axis=0)
        times = np.bincount(drawn, minlength=len(values)).astype(float)
        return np.tensordot(times, values, 1)


def drawn_blocks(n: int, length: int, rng: np.random.Generator) -> Array:
    """Initial times of one resample: blocks of neighbours, drawn with repetition, (n,).

    The circular block bootstrap (Politis & Romano 1992): every time is in as many blocks.

    Args:
        n: initial times.
        length: of a block; it should be longer than errors remember each other.
        rng: the source of chance.
    """
    starts = rng.integers(0, n, -(-n // length))
    return ((starts[:, None] + np.arange(length)) % n).ravel()[:n]


def block_length(n: int) -> int:
    """Initial times of a block where nothing is known of their memory: the cube root of n.

    (The rate at which it should grow: Künsch 1989, doi:10.1214/aos/1176347265.)

    >>> [block_length(n) for n in (1, 16, 100, 365)]
    [1, 3, 5, 7]
    """
    return max(1, round(n ** (1 / 3)))
