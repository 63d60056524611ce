"""Power spectra along one axis: summaries of items, as in `fieldsummaries`."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from jitkit.metrics.fields.summaries import Scale, divided, scouts
from jitkit.utils.types import Array

ROW_NUMBERS = 32_768  # numbers of an item that go into the spectra along one axis
BANDS = 16  # bands of wavenumbers, each wider than the last by the same factor


class Spectra:
    """Power along one axis in bands of wavenumbers, over rows in which no cell is missing."""

    def __init__(
        self, real: Sequence[Array], axis: int, kind: str, scale: Scale, rng: np.random.Generator
    ) -> None:
        shape = real[0].shape
        self.axis, self.kind, self.scale = axis, kind, scale
        self.size = shape[axis + 1]
        others = (*shape[1 : axis + 1], *shape[axis + 2 :])
        num_rows = prod(others)
        complete = np.zeros((shape[0], num_rows), bool)
        for item in scouts(real):
            rows = np.isfinite(item).all(axis=axis + 1)
            complete |= rows.reshape(shape[0], num_rows)
        most = max(1, min(num_rows, ROW_NUMBERS // (shape[0] * self.size)))
        order = rng.permutation(num_rows)
        first = [order[np.argsort(~c[order], kind="stable")[:most]] for c in complete]
        self.rows = np.unravel_index(np.stack(first), others) if others else ()  # each (C, R)
        self.starts, self.widths = bands(self.size)

    def of(self, items: Sequence[Array]) -> Array:
        """Power in each band, summed over rows, and the number of rows: (N, C (bands + 1))."""
        found = [self._of_item(item) for item in items]
        return np.stack(found).reshape(len(items), -1).astype(np.float32)

    def log_ratios(self, total: Array, other: Array) -> Array:
        """Log of power over another's, (C, bands); NaN where that is no more than rounding.

        The rounding of float32 is added to both, so that no power at all is finite as well.
        """
        floor = self.scale.step[:, None] ** 2
        a, b = (self._power(sums) for sums in (total, other))
        known = np.where(b > floor, b, np.nan)
        return np.log((a + floor) / (known + floor))

    def num_rows(self, total: Array) -> Array:
        """Rows that went into a sum, (C,)."""
        return total.reshape(len(self.scale.mean), -1)[:, -1]

    def _of_item(self, item: Array) -> Array:
        turned = np.moveaxis(item, self.axis + 1, -1)
        channel = np.arange(len(item))[:, None]
        rows = turned[(channel, *self.rows)]  # (C, R, size)
        complete = np.isfinite(rows).all(axis=-1)
        rows = np.where(complete[..., None], rows, np.nan).swapaxes(0, 1)  # (R, C, size)
        scaled = np.nan_to_num(self.scale.standardised(rows)).astype(np.float64)
        used = complete.T[..., None]
        power = np.where(used, power_spectrum(scaled, self.kind), 0).sum(axis=0)
        bands = np.add.reduceat(power, self.starts, axis=1) if len(self.starts) else power[:, :0]
        return np.concatenate([bands, complete.sum(axis=1)[:, None]], axis=1)

    def _power(self, total: Array) -> Array:
        """Mean power in each band, (C, bands)."""
        sums = total.reshape(len(self.scale.mean), -1)
        return divided(sums[:, :-1], sums[:, -1:] * self.widths)


def bands(size: int) -> tuple[Array, Array]:
    """Bands of the wavenumbers 1 to N / 2 of an axis of N cells: the first of each, and how many.

    >>> bands(8)
    (array([1, 2, 3, 4]), array([1, 1, 1, 1]))
    """
    ends = np.unique(np.geomspace(1, size // 2 + 1, BANDS + 1).round().astype(int))
    return ends[:-1], np.diff(ends)


def power_spectrum(rows: Array, kind: str) -> Array:
    """Power of rows (..., N) at wavenumbers 0 to N / 2, (..., N // 2 + 1).

    White noise of variance σ² has σ² at every wavenumber but 0; a sine of amplitude a and whole
    wavenumber has a² N / 4 at its own. A ``"circle"`` is transformed as it is; a ``"line"``, whose
    ends do not meet, loses its straight trend and is tapered with Hann's window. Lines of fewer
    than four cells only lose their mean.
    """
    size = rows.shape[-1]
    rows = rows - rows.mean(axis=-1, keepdims=True)
    window = np.ones(size)
    if kind == "line" and size >= 4:
        steps = np.arange(size) - (size - 1) / 2
        slope = (rows @ steps) / (steps @ steps)
        window = np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2
        rows = (rows - slope[..., None] * steps) * window
    return np.abs(np.fft.rfft(rows, axis=-1)) ** 2 / (window @ window)
