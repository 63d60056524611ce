"""Baseline forecasts: persistence, climatology, climatological ensemble, linear regression.

persistence                the initial state
climatology                training mean by day of the year and hour
climatological_ensemble    training states of the same season and hour in other years
linear_regression          a cell's next anomaly from those of its neighbourhood, autoregressive
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, Protocol

import numpy as np

from jitkit.errors import DataError
from jitkit.metrics.forecasts.climatology import Climatology, StateSeries, subsample, year_and_hour
from jitkit.utils.console import bar
from jitkit.utils.types import Array

WINDOW = 15 / 365  # fraction of a year: maximum difference in day of the year
RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # per pair, on standardised anomalies
PRIOR_WEIGHTS = (0.0, 1.0)  # weight of a cell's own anomaly at infinite ridge
CANDIDATES = tuple(product(PRIOR_WEIGHTS, RIDGES))
TAIL = 5  # the last fifth of the pairs selects the candidate
ITERATIONS = 200  # of the power iteration
RADIUS = 1  # cells to each side in a neighbourhood


class ForecastSystem(Protocol):
    """A source of ensemble forecasts."""

    name: str
    members: int

    def forecast(self, start: int, steps: int) -> Array:
        """The ensemble ``steps`` steps after a start, (members, C, X1..Xn), NaN missing."""


class Persistence:
    """The initial state at all leads."""

    name, members = "persistence", 1

    def __init__(self, states: StateSeries) -> None:
        self._states = states
        self._cached: tuple[int, Array] | None = None

    def forecast(self, start: int, steps: int) -> Array:
        """(1, C, X1..Xn), as `ForecastSystem`."""
        if self._cached is None or self._cached[0] != start:
            self._cached = (start, self._states.read(start)[None])
        return self._cached[1]


class ClimatologyForecast:
    """The climatology at the verifying time."""

    name, members = "climatology", 1

    def __init__(self, states: StateSeries, climatology: Climatology) -> None:
        self._states, self._climatology = states, climatology

    def forecast(self, start: int, steps: int) -> Array:
        """(1, C, X1..Xn), as `ForecastSystem`."""
        return self._climatology.mean_at(_target(self._states, start, steps))[None]


class ClimatologicalEnsemble:
    """Training states of the same season and hour, drawn for every start.

    A member is a consecutive sequence of training states, so it is consistent in time. Sequences
    begin within 15 days of the start's day of the year, or farther if there are too few.
    """

    name = "climatological_ensemble"

    def __init__(self, states: StateSeries, members: int, max_steps: int, seed: int) -> None:
        """Find the possible sequences.

        Args:
            states: the series.
            members: sequences for each start.
            max_steps: length of each in steps.
            seed: draws depend on it and on the start.

        Raises:
            DataError: training has fewer sequences of this length than members.
        """
        self.members, self._seed, self._states = members, seed, states
        trained = set(states.train.tolist())
        begins = [p for p in states.train.tolist() if states.after(p, max_steps) in trained]
        if len(begins) < members:
            raise DataError(
                f"training has {len(begins)} sequences of {max_steps} steps, fewer than {members} "
                "members; use shorter leads or fewer members"
            )
        self._begins = np.array(begins)
        self._year_fraction, self._hour = year_and_hour(states.times)

    def forecast(self, start: int, steps: int) -> Array:
        """(members, C, X1..Xn), as `ForecastSystem`."""
        positions = [self._states.after(int(p), steps) for p in self._draw(start)]
        return np.stack([self._states.read(p) for p in positions if p is not None])

    def _draw(self, start: int) -> Array:
        """First positions of the sequences."""
        fraction, hour = self._year_fraction[self._begins], self._hour[self._begins]
        seasonal = np.abs((fraction - self._year_fraction[start] + 0.5) % 1 - 0.5)
        distance = seasonal + np.where(hour == self._hour[start], 0.0, 1.0)  # other hours come last
        limit = max(WINDOW, float(np.sort(distance)[self.members - 1]))
        rng = np.random.default_rng([self._seed, start])
        return rng.choice(self._begins[distance <= limit], self.members, replace=False)


class LinearRegression:
    """A cell's next anomaly as a linear combination of its neighbourhood, with weights per cell.

    Predictors are the anomalies from climatology of the same channel in the cell and its
    neighbours along every axis (3 x 3 cells of a map). Weights are fitted by ridge regression in
    closed form for one step; further steps repeat it. Missing cells and cells outside the grid
    have anomaly zero.

    The ridge shrinks weights towards climatology or persistence. Each channel uses the ridge and
    the target with the smallest error on the last fifth of the pairs, when fitted to the rest.
    Anomalies of a stationary series decay; if the fitted ones would grow, as with few or drifting
    states, the weights are scaled down to spectral radius 1.
    """

    name, members = "linear_regression", 1

    def __init__(
        self, states: StateSeries, climatology: Climatology, weights: Array, kinds: Sequence[str]
    ) -> None:
        self._states, self._climatology, self._kinds = states, climatology, kinds
        self.weights = weights  # (neighbours, C, X1..Xn)
        self._cached: tuple[int, int, Array] | None = None

    @classmethod
    def fit(
        cls, states: StateSeries, climatology: Climatology, positions: Array, kinds: Sequence[str]
    ) -> LinearRegression:
        """Fit to the pairs of consecutive states that begin at ``positions``.

        Args:
            states: the series.
            climatology: climatology of the training states.
            positions: first states of the pairs.
            kinds: axis kinds of X1..Xn, ``"line"`` or ``"circle"``.

        Raises:
            DataError: there is no pair.
        """
        trained = set(states.train.tolist())
        pairs = [(int(p), n) for p in positions if (n := states.after(int(p), 1)) in trained]
        if not pairs:
            raise DataError("training has no two consecutive states for a linear regression")
        tail = len(pairs) - len(pairs) // TAIL
        sums, candidates = _NormalEquations(), list[Array]()
        errors: Any = np.zeros((len(CANDIDATES), len(states.channels)))
        with bar("linear regression", len(pairs), unit="pairs") as done:
            for i, (first, second) in enumerate(pairs):
                assert second is not None
                x = neighbourhood(_anomaly(states, climatology, first), kinds)
                y = _anomaly(states, climatology, second)
                if i >= tail:
                    if i == tail:
                        candidates = [sums.solve([each] * len(y)) for each in CANDIDATES]
                    errors += _square_errors(candidates, x, y)
                sums.add(x, y)
                done(i + 1)
        if tail == len(pairs):  # too few pairs: the largest ridge, towards climatology
            errors[len(RIDGES) - 1] = -1
        weights = sums.solve([CANDIDATES[i] for i in errors.argmin(axis=0)])
        return cls(states, climatology, weights / _growth(weights, kinds), kinds)

    def forecast(self, start: int, steps: int) -> Array:
        """(1, C, X1..Xn), as `ForecastSystem`."""
        done, anomaly = self._latest(start, steps)
        for _ in range(done, steps):
            anomaly = (self.weights * neighbourhood(anomaly, self._kinds)).sum(axis=0)
        self._cached = (start, steps, anomaly)
        mean = self._climatology.mean_at(_target(self._states, start, steps))
        return (mean + _per_channel(self._climatology.deviation, mean) * anomaly)[None]

    def _latest(self, start: int, steps: int) -> tuple[int, Array]:
        """The latest cached anomaly and its step."""
        if self._cached is not None and self._cached[0] == start and self._cached[1] <= steps:
            return self._cached[1:]
        return 0, _anomaly(self._states, self._climatology, start)


class _NormalEquations:
    """Sums of the normal equations of every cell, (neighbours, neighbours, C, X1..Xn)."""

    def __init__(self) -> None:
        self.count = 0
        self.normal: Array | None = None
        self.moment: Array | None = None

    def add(self, x: Array, y: Array) -> None:
        """Add a pair: predictors (neighbours, C, X1..Xn), next state (C, X1..Xn), NaN missing."""
        if self.normal is None or self.moment is None:
            self.normal, self.moment = np.zeros((len(x), *x.shape)), np.zeros(x.shape)
        known = np.isfinite(y)
        for c in range(len(y)):  # one channel at a time, to save memory
            observed = np.where(known[c], x[:, c], 0)
            self.normal[:, :, c] += observed[:, None] * x[None, :, c]
            self.moment[:, c] += observed * np.nan_to_num(y[c])
        self.count += 1

    def solve(self, priors: Sequence[tuple[float, float]]) -> Array:
        """Weights (neighbours, C, X1..Xn).

        Args:
            priors: for each channel, prior weight of the cell's own anomaly, and ridge.
        """
        assert self.normal is not None and self.moment is not None
        size, weights = len(self.normal), np.empty_like(self.moment)
        for c, (prior, ridge) in enumerate(priors):
            each = np.moveaxis(self.normal[:, :, c].reshape(size, size, -1), -1, 0)
            each = each + ridge * self.count * np.eye(size)  # (cells, neighbours, neighbours)
            moment = self.moment[:, c].reshape(size, -1).T[..., None].copy()
            moment[:, size // 2] += prior * ridge * self.count
            solution = np.linalg.solve(each, moment)[..., 0].T
            weights[:, c] = solution.reshape(weights[:, c].shape)
        return weights


def _square_errors(weights: Sequence[Array], x: Array, y: Array) -> Array:
    """Square errors summed over observed cells for several sets of weights, (sets, C)."""
    errors = np.stack([(each * x).sum(axis=0) - y for each in weights])
    return np.square(np.nan_to_num(errors)).reshape(*errors.shape[:2], -1).sum(axis=-1)


def _growth(weights: Array, kinds: Sequence[str]) -> Array:
    """Spectral radius of one step for each channel, at least 1, (C, 1..1).

    By power iteration from noise.
    """
    x = np.random.default_rng(0).standard_normal(weights.shape[1:])
    cells = tuple(range(1, x.ndim))
    logs = []
    for _ in range(ITERATIONS):
        x = (weights * neighbourhood(x, kinds)).sum(axis=0)
        size = np.sqrt(np.square(x).sum(axis=cells, keepdims=True))
        x = x / np.where(size > 0, size, 1)
        logs.append(np.log(np.maximum(size, np.finfo(float).tiny)))
    settled = np.mean(logs[ITERATIONS // 2 :], axis=0)  # a mean, since complex pairs oscillate
    return np.asarray(np.maximum(np.exp(settled), 1))


def neighbourhood(anomaly: Array, kinds: Sequence[str]) -> Array:
    """Anomalies of each cell and its neighbours, (neighbours, C, X1..Xn), zero where missing.

    Args:
        anomaly: (C, X1..Xn).
        kinds: axis kinds of X1..Xn; circles are periodic, lines are padded with zeros.
    """
    values = np.nan_to_num(anomaly)
    for axis, kind in enumerate(kinds, 1):
        widths = [(0, 0)] * values.ndim
        widths[axis] = (RADIUS, RADIUS)
        values = np.pad(values, widths, mode="wrap" if kind == "circle" else "constant")
    grid = anomaly.shape[1:]
    shifts = product(range(2 * RADIUS + 1), repeat=len(grid))
    cuts = [tuple(slice(s, s + n) for s, n in zip(shift, grid, strict=True)) for shift in shifts]
    return np.stack([values[:, *cut] for cut in cuts])


def _anomaly(states: StateSeries, climatology: Climatology, position: int) -> Array:
    """Anomaly in standard deviations of the channel's anomalies, (C, X1..Xn)."""
    mean = climatology.mean_at(position)
    return (states.read(position) - mean) / _per_channel(climatology.deviation, mean)


def _per_channel(stds: Array, values: Array) -> Array:
    """Standard deviations (C,) broadcast to (C, X1..Xn); 1 for a channel without variance."""
    return np.where(stds > 0, stds, 1).reshape(-1, *[1] * (values.ndim - 1))


def _target(states: StateSeries, start: int, steps: int) -> int:
    position = states.after(start, steps)
    assert position is not None, "a lead without a verifying state is not scored"
    return position


def baselines(
    states: StateSeries,
    *,
    kinds: Sequence[str],
    members: int,
    max_steps: int,
    max_states: int,
    seed: int,
) -> tuple[list[ForecastSystem], list[str]]:
    """The four baselines fitted to training states, and notes on those with too few states.

    Args:
        states: the series.
        kinds: axis kinds of X1..Xn, ``"line"`` or ``"circle"``.
        members: size of the climatological ensemble.
        max_steps: length of a forecast in steps.
        max_states: maximum number of training states, and of pairs, to read.
        seed: seed of random draws.
    """
    positions = subsample(states.train, max_states, seed)
    climatology = Climatology.fit(states, positions)
    systems: list[ForecastSystem] = [Persistence(states), ClimatologyForecast(states, climatology)]
    notes = []
    try:
        systems.append(ClimatologicalEnsemble(states, members, max_steps, seed))
    except DataError as error:
        notes.append(f"no climatological ensemble: {error}")
    systems.append(LinearRegression.fit(states, climatology, positions, kinds))
    return systems, notes
