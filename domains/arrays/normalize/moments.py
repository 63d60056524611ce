"""Means and variances of a stream, merged piece by piece without loss of digits.

Chan, Golub & LeVeque 1983 (The American Statistician 37: 242-247). All sums are of deviations from
the mean so far, which is why a large offset costs nothing, and a constant gives a variance of 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from jitkit.domains.arrays.normalize.quantiles import QuantileSketch
from jitkit.domains.arrays.normalize.transforms import Transform
from jitkit.errors import DataError
from jitkit.utils.types import Array

Normalize = Literal["standard", "minmax", "robust", "none"]
"""How a channel is brought to unit variance, see `jitkit.domains.arrays.statistics.Statistics`."""

PIECE = 2**18  # values looked at together: 2 MB in float64, which a core's cache holds
IQR_OF_GAUSSIAN = 1.3489795003921634  # interquartile range of the standard normal distribution


class Moments:
    """Count, mean and variance along the first axis of all arrays that were added.

    The mean is kept as a number and the rest that it was rounded by, so that the next deviations
    are from the mean itself.

    Attributes:
        count: numbers that were no NaN, int64, (cells...).
        mean: their mean, 0 where there were none.
        rest: what is to be added to the mean, too small for its last digit.
        squares: the sum of their squared deviations from it.
    """

    def __init__(self, cells: tuple[int, ...] = ()) -> None:
        self.count = np.zeros(cells, np.int64)
        self.mean = np.zeros(cells)
        self.rest = np.zeros(cells)
        self.squares = np.zeros(cells)

    def add(self, values: Array, cells: slice | tuple[()] = ()) -> None:
        """Take in numbers, float64, (n, cells...), NaN where missing; ``cells`` says which."""
        if not len(values):
            return
        gaps = np.isnan(values)
        some = bool(gaps.any())
        count = (~gaps).sum(axis=0) if some else np.full(values.shape[1:], len(values))
        first = np.take_along_axis(values, gaps.argmin(axis=0)[None], axis=0)[0]
        origin = np.where(self.count[cells] > 0, self.mean[cells], np.where(count > 0, first, 0))
        off = values - origin
        if some:
            off[gaps] = 0
        shift = off.sum(axis=0) / np.maximum(count, 1)
        off -= shift
        if some:
            off[gaps] = 0
        lost = off.sum(axis=0)  # zero but for rounding: the corrected two-pass formula
        squares = np.square(off, out=off).sum(axis=0) - lost**2 / np.maximum(count, 1)
        self._join(cells, count, origin, shift, np.maximum(squares, 0))

    def merge(self, other: Moments) -> None:
        """Take in all that another has seen."""
        origin = np.where(self.count > 0, self.mean, other.mean)
        shift = np.where(other.count > 0, other.mean - origin + other.rest, 0)
        self._join((), other.count, origin, shift, other.squares)

    @property
    def std(self) -> Array:
        """Standard deviation of the population; NaN where nothing was seen."""
        variance = self.squares / np.maximum(self.count, 1)
        return np.where(self.count > 0, np.sqrt(variance), np.nan)

    def _join(
        self, cells: slice | tuple[()], count: Array, origin: Array, shift: Array, squares: Array
    ) -> None:
        """Join numbers of mean ``origin + shift``; origin is the own mean where there is one."""
        before, rest = self.count[cells], self.rest[cells]
        share = count / np.maximum(before + count, 1)
        delta = shift - rest
        self.squares[cells] += squares + delta**2 * before * share
        moved = rest + delta * share
        self.mean[cells] = origin + moved
        self.rest[cells] = moved - (self.mean[cells] - origin)
        self.count[cells] = before + count


class ChannelMoments:
    """Everything that is measured of one channel, in one pass.

    Attributes:
        total: values that were looked at, missing ones too.
        low, high: least and greatest value, in units of the data.
        physical, transformed: their moments; one object where there is no transform.
        sketch: of transformed values, where quantiles are asked.
        cells: moments of transformed values in each cell, where asked.
        steps: moments of differences between consecutive steps, where asked.
        observed: True for cells that were ever observed, (cells,).
    """

    def __init__(
        self, name: str, transform: Transform, *, robust: bool, per_cell: bool, differences: bool
    ) -> None:
        self.name, self.transform = name, transform
        self.total, self.low, self.high = 0, np.inf, -np.inf
        self.physical = Moments()
        self.transformed = self.physical if transform.name == "none" else Moments()
        self.sketch = QuantileSketch() if robust else None
        self.cells: Moments | None = None
        self.steps = Moments() if differences else None
        self.grid: tuple[int, ...] | None = None
        self.observed = np.zeros(0, np.bool_)
        self._per_cell = per_cell
        self._last = np.zeros(0)  # the last step, transformed, NaN where missing, (cells,)

    def add(self, values: Array, follows: bool = True) -> None:
        """Take in steps, (n, X1..Xn) physical; ``follows``: the first is next to the last seen.

        Raises:
            DataError: another grid than before, infinite values, values outside the transform.
        """
        self._fit(values.shape[1:])
        if self.steps is not None and not follows:
            self._last[:] = np.nan
        rows = values.reshape(len(values), len(self.observed))  # (n, cells)
        self.total += rows.size
        for steps, cells in _pieces(*rows.shape):
            piece = rows[steps, cells].astype(np.float64)
            gaps = np.isnan(piece)
            self.observed[cells] |= ~gaps.all(axis=0)
            seen = piece[~gaps] if gaps.any() else piece.ravel()
            if seen.size:
                self._look(seen)
            y = self.transform.forward(piece)
            if self.cells is not None:
                self.cells.add(y, cells)
            if self.steps is not None:
                self._step(y, cells)

    def merge(self, other: ChannelMoments) -> None:
        """Take in all that another of the same channel has seen; its steps follow on nothing."""
        if other.grid is None:
            return
        self._fit(other.grid)
        self.total += other.total
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.observed |= other.observed
        self.physical.merge(other.physical)
        if self.transformed is not self.physical:
            self.transformed.merge(other.transformed)
        for mine, its in ((self.cells, other.cells), (self.steps, other.steps)):
            if mine is not None and its is not None:
                mine.merge(its)
        if self.sketch is not None and other.sketch is not None:
            self.sketch.merge(other.sketch)
        self._last = other._last.copy()

    def unusable(self, normalize: Normalize) -> str:
        """Why the channel cannot be normalized; empty if it can."""
        count, out = int(self.physical.count), "leave it out of the variables"
        if not count:
            return f"{self.name!r} has no value: all {self.total:,} are missing; {out}"
        if normalize == "none":
            return ""
        if self.low == self.high or not self.transformed.std > 0:
            return f"{self.name!r} has no variance: all {count:,} values are {self.low:g}; {out}"
        if not self.center_and_spread(normalize)[1] > 0:
            return (
                f"{self.name!r} has no interquartile range: half of its {count:,} values or more "
                "are equal; use normalize standard or minmax"
            )
        return ""

    def center_and_spread(self, normalize: Normalize) -> tuple[float, float]:
        """What is subtracted from transformed values and what they are divided by."""
        if normalize == "standard":
            return float(self.transformed.mean), float(self.transformed.std)
        if normalize == "minmax":
            low, high = self.transform.forward(np.array([self.low, self.high]))
            return float(low / 2 + high / 2), float(high / 2 - low / 2)
        if normalize == "robust":
            assert self.sketch is not None
            first, median, third = self.sketch.quantiles([0.25, 0.5, 0.75])
            return float(median), float(third - first) / IQR_OF_GAUSSIAN
        return 0.0, 1.0

    def cell_units(self, center: float, spread: float) -> tuple[Array, Array]:
        """Mean and standard deviation of each cell in units of the channel's, float32, (cells,).

        A cell without variance has the channel's own, 1; one that was never observed has NaN.
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
            self._last = np.full(num if self.steps is not None else 0, np.nan)
        if grid != self.grid:
            raise DataError(
                f"channel {self.name!r}: a block on a grid of {grid}, and one of {self.grid} came "
                "before; all items must share one grid"
            )

    def _look(self, seen: Array) -> None:
        """Moments of observed values, (n,), after a look at whether they can be meant."""
        low, high = float(seen.min()), float(seen.max())
        if not np.isfinite([low, high]).all():
            raise DataError(
                f"channel {self.name!r} has {int(np.isinf(seen).sum())} infinite values; mark them "
                "as missing (NaN or the file's fill value) or mend them"
            )
        check_allowed(self.name, self.transform, low)
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.physical.add(seen)
        y = self.transform.forward(seen)
        if self.transformed is not self.physical:
            self.transformed.add(y)
        if self.sketch is not None:
            self.sketch.add(y)

    def _step(self, y: Array, cells: slice) -> None:
        assert self.steps is not None
        change = np.diff(np.concatenate([self._last[None, cells], y]), axis=0)
        self.steps.add(change[~np.isnan(change)])
        self._last[cells] = y[-1]


def check_allowed(name: str, transform: Transform, least: float) -> None:
    """Stop where the least value of a channel is one that its transform does not take."""
    if not transform.allows(least):
        raise DataError(
            f"channel {name!r} has a value of {least:g}, and its transform {transform.name} takes "
            f"values {transform.needs}; choose another transform, or mend the data"
        )


def _pieces(num_steps: int, num_cells: int) -> Iterator[tuple[slice, slice]]:
    """Cuts of (steps, cells) into pieces of at most `PIECE` values, steps in order."""
    if not num_steps * num_cells:
        return
    long = min(num_steps, max(8, PIECE // num_cells))  # moments of cells want several steps
    wide = min(num_cells, max(1, PIECE // long))
    for step in range(0, num_steps, long):
        for cell in range(0, num_cells, wide):
            yield slice(step, step + long), slice(cell, cell + wide)
