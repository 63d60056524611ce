"""Forecasts that need no model, to hold one against: each is a `System`.

persistence                nothing changes
climatology                the mean of the day of the year and the hour, from training
climatological_ensemble    states of other years: the same season and hour, from training
linear_regression          a cell's next anomaly from those of its neighbourhood, step by step
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, Protocol

import numpy as np

from jitkit.errors import DataError
from jitkit.metrics.forecasts.climatology import Climatology, StateSeries, chosen, year_and_hour
from jitkit.utils.console import bar
from jitkit.utils.types import Array

WINDOW = 15 / 365  # of the year: how far from the season the states of other years may lie
RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of the number of pairs, on standardised anomalies
RESTS = (0.0, 1.0)  # what an infinite ridge leaves of a cell's own anomaly
TRIED = tuple(product(RESTS, RIDGES))
TAIL = 5  # the last fifth of the pairs says which of them is best
ROUNDS = 200  # of the power iteration
REACH = 1  # cells to each side that make up a neighbourhood


class System(Protocol):
    """Something that forecasts."""

    name: str
    members: int

    def forecast(self, start: int, steps: int) -> Array:
        """The ensemble so many steps after a start, (members, C, X1..Xn), NaN missing."""


class Persistence:
    """The state at the start, for ever."""

    name, members = "persistence", 1

    def __init__(self, states: StateSeries) -> None:
        self._states = states
        self._held: tuple[int, Array] | None = None

    def forecast(self, start: int, steps: int) -> Array:
        """(1, C, X1..Xn), as `System`."""
        if self._held is None or self._held[0] != start:
            self._held = (start, self._states.read(start)[None])
        return self._held[1]


class MeanOfSeason:
    """The climatology at the time that is forecast."""

    name, members = "climatology", 1

    def __init__(self, states: StateSeries, climatology: Climatology) -> None:
        self._states, self._climatology = states, climatology

    def forecast(self, start: int, steps: int) -> Array:
        """(1, C, X1..Xn), as `System`."""
        return self._climatology.of(_target(self._states, start, steps))[None]


class OtherYears:
    """Training states of the season and hour of what is forecast, drawn anew for every start.

    A member follows one stretch of training, so its states belong together as those of a forecast
    do. Stretches begin within 15 days of the start's place in the year, or as far from it as it
    takes to find enough of them.
    """

    name = "climatological_ensemble"

    def __init__(self, states: StateSeries, members: int, longest: int, seed: int) -> None:
        """Prepare to draw.

        Args:
            states: the sequence.
            members: stretches for each start.
            longest: steps that each goes on for.
            seed: draws are a function of it and the start.

        Raises:
            DataError: training has fewer stretches of this length than members.
        """
        self.members, self._seed, self._states = members, seed, states
        trained = set(states.train.tolist())
        begins = [p for p in states.train.tolist() if states.after(p, longest) in trained]
        if len(begins) < members:
            raise DataError(
                f"training has {len(begins)} stretches of {longest} steps, fewer than {members} "
                "members; forecast less far, or with fewer members"
            )
        self._begins = np.array(begins)
        self._share, self._hour = year_and_hour(states.times)

    def forecast(self, start: int, steps: int) -> Array:
        """(members, C, X1..Xn), as `System`."""
        found = [self._states.after(int(p), steps) for p in self._drawn(start)]
        return np.stack([self._states.read(p) for p in found if p is not None])

    def _drawn(self, start: int) -> Array:
        """Where the stretches begin."""
        share, hour = self._share[self._begins], self._hour[self._begins]
        apart = np.abs((share - self._share[start] + 0.5) % 1 - 0.5)
        near = apart + np.where(hour == self._hour[start], 0.0, 1.0)  # other hours come last
        reach = max(WINDOW, float(np.sort(near)[self.members - 1]))
        rng = np.random.default_rng([self._seed, start])
        return rng.choice(self._begins[near <= reach], self.members, replace=False)


class LinearRegression:
    """A cell's next anomaly as a sum over its neighbourhood, with weights of its own.

    Predictors are the anomalies (from the climatology) of the same channel in the cell and those
    beside it along every axis, 3 x 3 cells of a map. Their weights are ridge regression's, in
    closed form, fitted for one step on training pairs; more steps repeat it. A cell that is missing
    or outside the grid has no anomaly, zero.

    The ridge pulls weights to those of climatology or of persistence. Each channel has the ridge
    and the one of the two that forecast the last fifth of the pairs best when fitted to those
    before. Repeated for ever, anomalies of a stationary sequence die away; where those of the fit
    would grow, as few or drifting states make them, its weights are lowered until they do not.
    """

    name, members = "linear_regression", 1

    def __init__(
        self, states: StateSeries, climatology: Climatology, weights: Array, kinds: Sequence[str]
    ) -> None:
        self._states, self._climatology, self._kinds = states, climatology, kinds
        self.weights = weights  # (neighbours, C, X1..Xn)
        self._held: tuple[int, int, Array] | None = None

    @classmethod
    def fit(
        cls, states: StateSeries, climatology: Climatology, positions: Array, kinds: Sequence[str]
    ) -> LinearRegression:
        """From the pairs that begin at ``positions``.

        Args:
            states: the sequence.
            climatology: of its training.
            positions: starts of pairs in training.
            kinds: of X1..Xn, ``"line"`` or ``"circle"``.

        Raises:
            DataError: no pair.
        """
        trained = set(states.train.tolist())
        pairs = [(int(p), n) for p in positions if (n := states.after(int(p), 1)) in trained]
        if not pairs:
            raise DataError("training has no two states in a row for a linear regression")
        tail = len(pairs) - len(pairs) // TAIL
        sums, tried = _Normal(), list[Array]()
        errors: Any = np.zeros((len(TRIED), len(states.channels)))
        with bar("linear regression", len(pairs), unit="pairs") as done:
            for i, (first, second) in enumerate(pairs):
                assert second is not None
                x = neighbourhood(_anomaly(states, climatology, first), kinds)
                y = _anomaly(states, climatology, second)
                if i >= tail:
                    if i == tail:
                        tried = [sums.solved([each] * len(y)) for each in TRIED]
                    errors += _square_errors(tried, x, y)
                sums.add(x, y)
                done(i + 1)
        if tail == len(pairs):  # too few: the largest ridge, to climatology
            errors[len(RIDGES) - 1] = -1
        weights = sums.solved([TRIED[i] for i in errors.argmin(axis=0)])
        return cls(states, climatology, weights / _growth(weights, kinds), kinds)

    def forecast(self, start: int, steps: int) -> Array:
        """(1, C, X1..Xn), as `System`."""
        done, anomaly = self._begun(start, steps)
        for _ in range(done, steps):
            anomaly = (self.weights * neighbourhood(anomaly, self._kinds)).sum(axis=0)
        self._held = (start, steps, anomaly)
        mean = self._climatology.of(_target(self._states, start, steps))
        return (mean + _beside(self._climatology.deviation, mean) * anomaly)[None]

    def _begun(self, start: int, steps: int) -> tuple[int, Array]:
        """The furthest anomaly that is at hand."""
        if self._held is not None and self._held[0] == start and self._held[1] <= steps:
            return self._held[1:]
        return 0, _anomaly(self._states, self._climatology, start)


class _Normal:
    """Sums of the normal equations of every cell, (neighbours, neighbours, C, X1..Xn)."""

    def __init__(self) -> None:
        self.count = 0
        self.normal: Array | None = None
        self.moment: Array | None = None

    def add(self, x: Array, y: Array) -> None:
        """A pair: predictors (neighbours, C, X1..Xn), what came (C, X1..Xn), NaN missing."""
        if self.normal is None or self.moment is None:
            self.normal, self.moment = np.zeros((len(x), *x.shape)), np.zeros(x.shape)
        known = np.isfinite(y)
        for c in range(len(y)):  # a channel at a time, so that no second array of sums is needed
            seen = np.where(known[c], x[:, c], 0)
            self.normal[:, :, c] += seen[:, None] * x[None, :, c]
            self.moment[:, c] += seen * np.nan_to_num(y[c])
        self.count += 1

    def solved(self, pulls: Sequence[tuple[float, float]]) -> Array:
        """Weights (neighbours, C, X1..Xn), for each channel with a ridge to some weight of a cell's
        own anomaly, (weight, ridge)."""
        assert self.normal is not None and self.moment is not None
        size, found = len(self.normal), np.empty_like(self.moment)
        for c, (rest, ridge) in enumerate(pulls):
            each = np.moveaxis(self.normal[:, :, c].reshape(size, size, -1), -1, 0)
            each = each + ridge * self.count * np.eye(size)  # (cells, neighbours, neighbours)
            moment = self.moment[:, c].reshape(size, -1).T[..., None].copy()
            moment[:, size // 2] += rest * ridge * self.count
            found[:, c] = np.linalg.solve(each, moment)[..., 0].T.reshape(found[:, c].shape)
        return found


def _square_errors(weights: Sequence[Array], x: Array, y: Array) -> Array:
    """Of each channel, summed over known cells, for some sets of weights, (sets, C)."""
    apart = np.stack([(each * x).sum(axis=0) - y for each in weights])
    return np.square(np.nan_to_num(apart)).reshape(*apart.shape[:2], -1).sum(axis=-1)


def _growth(weights: Array, kinds: Sequence[str]) -> Array:
    """By how much the anomalies of a channel grow at each step in the end, 1 where they do not.

    The spectral radius of one step, (C, 1..1), by power iteration from noise.
    """
    x = np.random.default_rng(0).standard_normal(weights.shape[1:])
    cells = tuple(range(1, x.ndim))
    logs = []
    for _ in range(ROUNDS):
        x = (weights * neighbourhood(x, kinds)).sum(axis=0)
        size = np.sqrt(np.square(x).sum(axis=cells, keepdims=True))
        x = x / np.where(size > 0, size, 1)
        logs.append(np.log(np.maximum(size, np.finfo(float).tiny)))
    settled = np.mean(logs[ROUNDS // 2 :], axis=0)  # a mean, since complex pairs make it swing
    return np.asarray(np.maximum(np.exp(settled), 1))


def neighbourhood(anomaly: Array, kinds: Sequence[str]) -> Array:
    """Anomalies of each cell and those beside it, (neighbours, C, X1..Xn), zero where missing.

    Args:
        anomaly: (C, X1..Xn).
        kinds: of X1..Xn; a circle closes, past the end of a line there is nothing.
    """
    values = np.nan_to_num(anomaly)
    for axis, kind in enumerate(kinds, 1):
        widths = [(0, 0)] * values.ndim
        widths[axis] = (REACH, REACH)
        values = np.pad(values, widths, mode="wrap" if kind == "circle" else "constant")
    grid = anomaly.shape[1:]
    shifts = product(range(2 * REACH + 1), repeat=len(grid))
    cuts = [tuple(slice(s, s + n) for s, n in zip(shift, grid, strict=True)) for shift in shifts]
    return np.stack([values[:, *cut] for cut in cuts])


def _anomaly(states: StateSeries, climatology: Climatology, position: int) -> Array:
    """In standard deviations of the channel's anomalies, (C, X1..Xn)."""
    mean = climatology.of(position)
    return (states.read(position) - mean) / _beside(climatology.deviation, mean)


def _beside(numbers: Array, values: Array) -> Array:
    """Numbers of channels (C,) so that they fit (C, X1..Xn); 1 for one without variance."""
    return np.where(numbers > 0, numbers, 1).reshape(-1, *[1] * (values.ndim - 1))


def _target(states: StateSeries, start: int, steps: int) -> int:
    position = states.after(start, steps)
    assert position is not None, "a lead without truth is not scored"
    return position


def baselines(
    states: StateSeries,
    *,
    kinds: Sequence[str],
    members: int,
    longest: int,
    most: int,
    seed: int,
) -> tuple[list[System], list[str]]:
    """All four, fitted to training, and notes on those that training is too short for.

    Args:
        states: the sequence.
        kinds: of X1..Xn, ``"line"`` or ``"circle"``.
        members: of the climatological ensemble.
        longest: steps of a forecast.
        most: training states that are read, and as many pairs.
        seed: of what is drawn.
    """
    learned = chosen(states.train, most, seed)
    climatology = Climatology.fit(states, learned)
    systems: list[System] = [Persistence(states), MeanOfSeason(states, climatology)]
    notes = []
    try:
        systems.append(OtherYears(states, members, longest, seed))
    except DataError as error:
        notes.append(f"no climatological ensemble: {error}")
    systems.append(LinearRegression.fit(states, climatology, learned, kinds))
    return systems, notes
