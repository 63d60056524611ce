"""Streaming mean and variance, numerically stable; all statistics of one channel in one pass.

Chan, Golub & LeVeque 1983 (The American Statistician 37: 242-247). All sums are of deviations from
the current mean, so a large offset loses no digits and a constant has a variance of 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from jitkit.domains.arrays.normalize.quantiles import Reservoir
from jitkit.domains.arrays.normalize.transforms import Transform
from jitkit.errors import DataError
from jitkit.utils.types import Array

Normalize = Literal["standard", "minmax", "robust", "none"]
"""Normalization of a channel, see `jitkit.domains.arrays.normalize.statistics.Statistics`."""

PIECE = 2**18  # values processed together: 2 MB in float64, which fit in a core's cache
IQR_OF_GAUSSIAN = 1.3489795003921634  # interquartile range of the standard normal distribution


class Moments:
    """Count, mean and variance along the first axis of all added arrays.

    The mean is stored with its rounding error (compensated summation), so that later deviations are
    from the exact mean.

    Attributes:
        count: values that are not NaN, int64, (cells...).
        mean: their mean, 0 where there are none.
        compensation: rounding error of the mean: the exact mean is mean + compensation.
        squares: sum of squared deviations from the mean.
    """

    def __init__(self, cells: tuple[int, ...] = ()) -> None:
        self.count = np.zeros(cells, np.int64)
        self.mean = np.zeros(cells)
        self.compensation = np.zeros(cells)
        self.squares = np.zeros(cells)

    def add(self, values: Array, cells: slice | tuple[()] = ()) -> None:
        """Add values, float64, (n, cells...), NaN where missing, to all or a slice of the cells."""
        if not len(values):
            return
        missing = np.isnan(values)
        any_missing = bool(missing.any())
        count = (~missing).sum(axis=0) if any_missing else np.full(values.shape[1:], len(values))
        first = np.take_along_axis(values, missing.argmin(axis=0)[None], axis=0)[0]
        origin = np.where(self.count[cells] > 0, self.mean[cells], np.where(count > 0, first, 0))
        deviation = values - origin
        if any_missing:
            deviation[missing] = 0
        shift = deviation.sum(axis=0) / np.maximum(count, 1)
        deviation -= shift
        if any_missing:
            deviation[missing] = 0
        error = deviation.sum(axis=0)  # zero up to rounding: the corrected two-pass formula
        squares = np.square(deviation, out=deviation).sum(axis=0)
        squares -= error**2 / np.maximum(count, 1)
        self._join(cells, count, origin, shift, np.maximum(squares, 0))

    @property
    def std(self) -> Array:
        """Population standard deviation; NaN where no value was added."""
        variance = self.squares / np.maximum(self.count, 1)
        return np.where(self.count > 0, np.sqrt(variance), np.nan)

    def _join(
        self, cells: slice | tuple[()], count: Array, origin: Array, shift: Array, squares: Array
    ) -> None:
        """Add values of mean ``origin + shift``; origin is the current mean where there is one."""
        before, compensation = self.count[cells], self.compensation[cells]
        share = count / np.maximum(before + count, 1)
        delta = shift - compensation
        self.squares[cells] += squares + delta**2 * before * share
        moved = compensation + delta * share
        self.mean[cells] = origin + moved
        self.compensation[cells] = moved - (self.mean[cells] - origin)
        self.count[cells] = before + count


class ChannelMoments:
    """All statistics of one channel, in one pass.

    Attributes:
        total: number of added values, including missing ones.
        low, high: minimum and maximum, in units of the data.
        physical, transformed: moments of the values; the same object if there is no transform.
        reservoir: quantiles of the transformed values, if requested.
        cells: moments of the transformed values in each cell, if requested.
        observed: True for cells that were ever observed, (cells,).
    """

    def __init__(self, name: str, transform: Transform, *, robust: bool, per_cell: bool) -> None:
        self.name, self.transform = name, transform
        self.total, self.low, self.high = 0, np.inf, -np.inf
        self.physical = Moments()
        self.transformed = self.physical if transform.name == "none" else Moments()
        self.reservoir = Reservoir() if robust else None
        self.cells: Moments | None = None
        self.grid: tuple[int, ...] | None = None
        self.observed = np.zeros(0, np.bool_)
        self._per_cell = per_cell

    def add(self, values: Array) -> None:
        """Add steps, (n, X1..Xn) in physical units.

        Raises:
            DataError: another grid than before, infinite values, values outside the transform.
        """
        self._fit(values.shape[1:])
        rows = values.reshape(len(values), len(self.observed))  # (n, cells)
        self.total += rows.size
        for steps, cells in _pieces(*rows.shape):
            piece = rows[steps, cells].astype(np.float64)
            missing = np.isnan(piece)
            self.observed[cells] |= ~missing.all(axis=0)
            observed = piece[~missing] if missing.any() else piece.ravel()
            if observed.size:
                self._add_observed(observed)
            if self.cells is not None:
                self.cells.add(self.transform.forward(piece), cells)

    def problem(self, normalize: Normalize) -> str:
        """Why the channel cannot be normalized; empty if it can."""
        count, remedy = int(self.physical.count), "leave it out of the variables"
        if not count:
            return f"{self.name!r} has no value: all {self.total:,} are missing; {remedy}"
        if normalize == "none":
            return ""
        if self.low == self.high or not self.transformed.std > 0:
            return f"{self.name!r} has no variance: all {count:,} values are {self.low:g}; {remedy}"
        if not self.center_and_spread(normalize)[1] > 0:
            return (
                f"{self.name!r} has no interquartile range: at least half of its {count:,} values "
                "are equal; use normalize standard or minmax"
            )
        return ""

    def center_and_spread(self, normalize: Normalize) -> tuple[float, float]:
        """Offset and scale of normalized values, (y - center) / spread with y transformed."""
        if normalize == "standard":
            return float(self.transformed.mean), float(self.transformed.std)
        if normalize == "minmax":
            low, high = self.transform.forward(np.array([self.low, self.high]))
            return float(low / 2 + high / 2), float(high / 2 - low / 2)
        if normalize == "robust":
            assert self.reservoir is not None
            first, median, third = self.reservoir.quantiles([0.25, 0.5, 0.75])
            return float(median), float(third - first) / IQR_OF_GAUSSIAN
        return 0.0, 1.0

    def cell_scaling(self, center: float, spread: float) -> tuple[Array, Array]:
        """Mean and standard deviation of each cell after channel normalization, float32, (cells,).

        A cell without variance has 1, the channel's; a cell that was never observed has NaN.
        """
        assert self.cells is not None
        never = self.cells.count == 0
        shift = np.where(never, np.nan, (self.cells.mean - center) / spread).astype(np.float32)
        ratio = (self.cells.std / spread).astype(np.float32)
        return shift, np.where(ratio == 0, np.float32(1), ratio)

    def _fit(self, grid: tuple[int, ...]) -> None:
        if self.grid is None:
            num = int(np.prod(grid))
            self.grid, self.observed = grid, np.zeros(num, np.bool_)
            self.cells = Moments((num,)) if self._per_cell else None
        if grid != self.grid:
            raise DataError(
                f"channel {self.name!r}: a block on a grid of {grid} after one on a grid of "
                f"{self.grid}; all items must have the same grid"
            )

    def _add_observed(self, values: Array) -> None:
        """Check observed values, (n,), and add them to the moments."""
        low, high = float(values.min()), float(values.max())
        if not np.isfinite([low, high]).all():
            raise DataError(
                f"channel {self.name!r} has {int(np.isinf(values).sum())} infinite values; mark "
                "them as missing (NaN or the file's fill value) or correct them"
            )
        check_allowed(self.name, self.transform, low)
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.physical.add(values)
        y = self.transform.forward(values)
        if self.transformed is not self.physical:
            self.transformed.add(y)
        if self.reservoir is not None:
            self.reservoir.add(y)


def check_allowed(name: str, transform: Transform, least: float) -> None:
    """Check that the minimum of a channel is in the domain of its transform.

    Raises:
        DataError: it is not.
    """
    if not transform.allows(least):
        raise DataError(
            f"channel {name!r} has a value of {least:g}, but its transform {transform.name} needs "
            f"values {transform.needs}; choose another transform, or correct the data"
        )


def _pieces(num_steps: int, num_cells: int) -> Iterator[tuple[slice, slice]]:
    """Slices of (steps, cells) with at most `PIECE` values, steps in order."""
    if not num_steps * num_cells:
        return
    steps = min(num_steps, max(8, PIECE // num_cells))  # moments of cells need several steps
    cells = min(num_cells, max(1, PIECE // steps))
    for step in range(0, num_steps, steps):
        for cell in range(0, num_cells, cells):
            yield slice(step, step + steps), slice(cell, cell + cells)
