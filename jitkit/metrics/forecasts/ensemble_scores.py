"""Ensemble scores: fair CRPS, RMSE, bias, spread-skill ratio, rank histogram, power spectra.

    ensemble (M, C, X1..Xn), analysis (C, X1..Xn)
        ─ ScoreAccumulator.add ─▶ weighted sums over cells, by initial time, lead, channel
        ─ ScoreAccumulator.scores ─▶ scores over initial times, (L, C)

    rmse           root mean square error of the ensemble mean, units of the data
    crps           continuous ranked probability score, fair for M members: the expected score of
                   an infinite ensemble (Ferro 2014, doi:10.1002/qj.2270); the mean absolute error
                   for a single forecast
    bias           mean error of the ensemble mean
    spread         root mean variance of the members, times √((M + 1) / M)
    spread_skill   spread / rmse: 1 if the analysis is exchangeable with the members (Fortin et
                   al. 2014, doi:10.1175/JHM-D-14-0008.1), below 1 if underdispersive
    rank_error     unevenness of the rank histogram: (M + 1) Σ (share - 1 / (M + 1))²; 0 is flat
    spectrum.AXIS  mean |log| of the members' power over the analysis's along an axis; 0 is ideal

All use cells observed in both, with (area) weights. Undefined scores are NaN: spread of a single
forecast, anything without observed cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jitkit.errors import DataError
from jitkit.metrics.fields.spectra import bands, power_spectrum
from jitkit.utils.types import Array

ScoreSums = dict[str, Array]

SUMS = ("weight", "missing", "square", "error", "crps", "variance")
RESAMPLES = 400  # bootstrap resamples of the initial times


def fair_crps(ensemble: Array, observation: Array) -> Array:
    """Fair CRPS of M members, unbiased for any M: mean |x - y| - Σ |xi - xj| / (2 M (M - 1)).

    The double sum is computed over sorted members in O(M log M) (Ferro 2014,
    doi:10.1002/qj.2270; sorted form: Zamo & Naveau 2018, doi:10.1007/s11004-017-9709-7).

    Args:
        ensemble: members, (M, ...); for one member the absolute error.
        observation: verifying analysis or observation, (...).
    """
    members = len(ensemble)
    error = np.abs(ensemble - observation).mean(axis=0)
    if members == 1:
        return error
    weights = 2 * np.arange(1, members + 1) - members - 1
    differences = np.tensordot(weights, np.sort(ensemble, axis=0), 1)  # Σ |xi - xj|, i < j
    return error - differences / (members * (members - 1))


def ranks(ensemble: Array, observation: Array, rng: np.random.Generator) -> Array:
    """Rank of the observation among M members, 0 to M, ties broken at random.

    Args:
        ensemble: members, (M, ...).
        observation: verifying analysis or observation, (...).
        rng: for ties.
    """
    below, ties = ((ensemble < observation).sum(axis=0), (ensemble == observation).sum(axis=0))
    return below + rng.integers(0, ties + 1)


@dataclass(frozen=True, eq=False)
class ScoreFrame:
    """Channels, axes and cell weights of the scored fields.

    Attributes:
        channels: C names.
        axes: name and kind (``"line"`` or ``"circle"``) of X1..Xn.
        weights: weights of the cells, (X1..Xn), such as areas; only their ratios matter.
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
        """Indices of the axes that are long enough for spectra."""
        return [i for i, size in enumerate(self.grid) if size >= 4]


class ScoreAccumulator:
    """Score sums of one forecast system over cells, by initial time, lead and channel.

    Stores a few hundred values for each of these, independent of the grid size.

    Args:
        frame: channels, axes, weights.
        inits, leads: number of initial times and leads.
        members: M.
    """

    def __init__(self, frame: ScoreFrame, inits: int, leads: int, members: int) -> None:
        self.frame, self.members = frame, members
        shape = (inits, leads, len(frame.channels))
        self.sums: ScoreSums = {name: np.zeros(shape) for name in SUMS}
        self.histogram: Array = np.zeros((*shape, members + 1))
        self.power: ScoreSums = {}
        self.analysis_power: ScoreSums = {}
        self.row_weights: ScoreSums = {}
        for i in frame.spectral:
            name, count = frame.axes[i][0], len(bands(frame.grid[i])[0])
            self.power[name] = np.zeros((*shape, count))
            self.analysis_power[name] = np.zeros((*shape, count))
            self.row_weights[name] = np.zeros(shape)

    def add(
        self, init: int, lead: int, ensemble: Array, analysis: Array, rng: np.random.Generator
    ) -> None:
        """Add the forecast of one initial time and lead.

        Args:
            init, lead: indices.
            ensemble: (M, C, X1..Xn), physical units, NaN missing.
            analysis: verifying analysis or observation, (C, X1..Xn), likewise.
            rng: breaks ties of ranks.

        Raises:
            DataError: arrays of another shape.
        """
        shape = (len(self.frame.channels), *self.frame.grid)
        if analysis.shape != shape or ensemble.shape != (self.members, *shape):
            raise DataError(
                f"forecast of shape {ensemble.shape} and analysis of {analysis.shape}; expected "
                f"{(self.members, *shape)} and {shape}"
            )
        for c, y in enumerate(analysis):
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
        terms = {
            "weight": np.ones_like(error),
            "square": error**2,
            "error": error,
            "crps": fair_crps(x, y),
        }
        if self.members > 1:
            terms["variance"] = x.var(axis=0, ddof=1)
        for name, values in terms.items():
            self.sums[name][at] = weights @ values
        self.sums["missing"][at] = self.frame.weights[known & ~both].sum()
        self.histogram[at] = np.bincount(ranks(x, y, rng), weights, self.members + 1)

    def _add_power(self, at: tuple[int, int, int], axis: int, x: Array, y: Array) -> None:
        name, kind = self.frame.axes[axis]
        row_weights = np.moveaxis(self.frame.weights, axis, -1).sum(axis=-1)
        members, analysis = np.moveaxis(x, axis + 1, -1), np.moveaxis(y, axis, -1)
        complete = np.isfinite(analysis).all(axis=-1) & np.isfinite(members).all(axis=(0, -1))
        starts, widths = bands(self.frame.grid[axis])

        def power(rows: Array) -> Array:
            spectrum = power_spectrum(rows.astype(np.float64), kind)
            return np.add.reduceat(spectrum, starts, axis=-1) / widths

        weights = row_weights[complete]
        self.row_weights[name][at] = weights.sum()
        self.analysis_power[name][at] = weights @ power(analysis[complete])
        self.power[name][at] = weights @ power(members[:, complete]).mean(axis=0)

    # Scores by lead and channel, over all initial times or a bootstrap resample

    def scores(self, indices: Array | None = None) -> ScoreSums:
        """Every score, (L, C) each.

        Args:
            indices: of a bootstrap resample of the initial times; default: all once.
        """
        sums = {name: self._over(values, indices) for name, values in self.sums.items()}
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = {name: sums[name] / sums["weight"] for name in SUMS}
            rmse = np.sqrt(mean["square"])
            spread = np.sqrt(mean["variance"] * (self.members + 1) / self.members)
            shares = self.rank_shares(indices)
            scores = {"rmse": rmse, "crps": mean["crps"], "bias": mean["error"]}
            if self.members > 1:
                scores |= {"spread": spread, "spread_skill": spread / rmse}
                uneven = np.square(shares - 1 / (self.members + 1)).sum(axis=-1)
                scores["rank_error"] = (self.members + 1) * uneven
            for axis in self.power:
                logs = np.abs(np.log(self.power_ratio(axis, indices)))
                scores[f"spectrum.{axis}"] = logs.mean(axis=-1)
        return scores

    def rank_shares(self, indices: Array | None = None) -> Array:
        """The rank histogram as relative frequencies, (L, C, M + 1)."""
        counts = self._over(self.histogram, indices)
        with np.errstate(invalid="ignore"):
            return counts / counts.sum(axis=-1, keepdims=True)

    def power_ratio(self, axis: str, indices: Array | None = None) -> Array:
        """Power of the members over that of the analysis in each band, (L, C, bands)."""
        power, reference = (self._over(p[axis], indices) for p in (self.power, self.analysis_power))
        with np.errstate(invalid="ignore", divide="ignore"):
            return power / reference

    def expected_rank_error(self, blocks: Array) -> Array:
        """Expected ``rank_error`` by chance if the true histogram were flat, (L, C).

        From the variance of each share between blocks of initial times, because neighbouring cells
        are not independent trials.

        Args:
            blocks: index of the block of each initial time.
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
    def missing(self) -> float:
        """Weighted fraction of the analysis's cells that are missing in the forecasts."""
        missing, known = (float(self.sums[name].sum()) for name in ("missing", "weight"))
        return missing / (missing + known) if missing + known else float("nan")

    @staticmethod
    def _over(values: Array, indices: Array | None) -> Array:
        """Sums over initial times, (L, C, ...)."""
        if indices is None:
            return values.sum(axis=0)
        counts = np.bincount(indices, minlength=len(values)).astype(float)
        return np.tensordot(counts, values, 1)


def block_bootstrap_indices(n: int, length: int, rng: np.random.Generator) -> Array:
    """Indices of one resample of the circular block bootstrap (Politis & Romano 1992), (n,).

    Blocks of consecutive times are drawn with replacement; every time is in equally many blocks.

    Args:
        n: number of initial times.
        length: block length; should exceed the decorrelation time of the errors.
        rng: random generator.
    """
    starts = rng.integers(0, n, -(-n // length))
    return ((starts[:, None] + np.arange(length)) % n).ravel()[:n]


def block_length(n: int) -> int:
    """Default block length of the bootstrap: the cube root of n.

    This is the optimal growth rate (Künsch 1989, doi:10.1214/aos/1176347265).

    >>> [block_length(n) for n in (1, 16, 100, 365)]
    [1, 3, 5, 7]
    """
    return max(1, round(n ** (1 / 3)))
