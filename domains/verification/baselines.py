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

from jitkit.domains.verification.seasons import Climatology, States, chosen, year_and_hour
from jitkit.errors import DataError
from jitkit.progress import bar

Array = np.ndarray[Any, np.dtype[Any]]

WINDOW = 15 / 365  # of the year: how far from the season the states of other years may lie
RIDGE = 1e-3  # of the number of pairs, on standardised anomalies
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

    def __init__(self, states: States) -> None:
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

    def __init__(self, states: States, climatology: Climatology) -> None:
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

    def __init__(self, states: States, members: int, longest: int, seed: int) -> None:
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
    """

    name, members = "linear_regression", 1

    def __init__(
        self, states: States, climatology: Climatology, weights: Array, kinds: Sequence[str]
    ) -> None:
        self._states, self._climatology, self._kinds = states, climatology, kinds
        self.weights = weights  # (neighbours, C, X1..Xn)
        self._held: tuple[int, int, Array] | None = None

    @classmethod
    def fit(
        cls, states: States, climatology: Climatology, positions: Array, kinds: Sequence[str]
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
        normal: Any = 0.0
        moment: Any = 0.0
        with bar("linear regression", len(pairs), unit="pairs") as done:
            for i, (first, second) in enumerate(pairs, 1):
                assert second is not None
                x = neighbourhood(_anomaly(states, climatology, first), kinds)
                y = _anomaly(states, climatology, second)
                known = np.isfinite(y)
                seen = np.where(known, x, 0)
                normal = normal + seen[:, None] * x[None]
                moment = moment + seen * np.nan_to_num(y)
                done(i)
        size = len(normal)
        each = np.moveaxis(normal.reshape(size, size, -1), -1, 0)  # (cells, F, F)
        each = each + RIDGE * len(pairs) * np.eye(size)
        weights = np.linalg.solve(each, moment.reshape(size, -1).T[..., None])[..., 0].T
        return cls(states, climatology, weights.reshape(moment.shape), kinds)

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


def _anomaly(states: States, climatology: Climatology, position: int) -> Array:
    """In standard deviations of the channel's anomalies, (C, X1..Xn)."""
    mean = climatology.of(position)
    return (states.read(position) - mean) / _beside(climatology.deviation, mean)


def _beside(numbers: Array, values: Array) -> Array:
    """Numbers of channels (C,) so that they fit (C, X1..Xn); 1 for one without variance."""
    return np.where(numbers > 0, numbers, 1).reshape(-1, *[1] * (values.ndim - 1))


def _target(states: States, start: int, steps: int) -> int:
    position = states.after(start, steps)
    assert position is not None, "a lead without truth is not scored"
    return position


def baselines(
    states: States,
    *,
    kinds: Sequence[str],
    members: int,
    longest: int,
    most: int,
    seed: int,
) -> list[System]:
    """All four, fitted to training.

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
    return [
        Persistence(states),
        MeanOfSeason(states, climatology),
        OtherYears(states, members, longest, seed),
        LinearRegression.fit(states, climatology, learned, kinds),
    ]
