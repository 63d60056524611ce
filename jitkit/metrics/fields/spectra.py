"""Power spectra along one axis, as additive summaries of items (see `summaries`)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from jitkit.metrics.fields.summaries import Scale, probe_items, safe_divide
from jitkit.utils.types import Array

VALUES_IN_ROWS = 32_768  # values of an item used for the spectra along one axis
BANDS = 16  # logarithmically spaced bands of wavenumbers


class Spectra:
    """Power along one axis in bands of wavenumbers, over rows without missing cells."""

    def __init__(
        self, real: Sequence[Array], axis: int, kind: str, scale: Scale, rng: np.random.Generator
    ) -> None:
        shape = real[0].shape
        self.axis, self.kind, self.scale = axis, kind, scale
        self.size = shape[axis + 1]
        others = (*shape[1 : axis + 1], *shape[axis + 2 :])
        num_rows = prod(others)
        complete = np.zeros((shape[0], num_rows), bool)
        for item in probe_items(real):
            rows = np.isfinite(item).all(axis=axis + 1)
            complete |= rows.reshape(shape[0], num_rows)
        most = max(1, min(num_rows, VALUES_IN_ROWS // (shape[0] * self.size)))
        order = rng.permutation(num_rows)
        first = [order[np.argsort(~c[order], kind="stable")[:most]] for c in complete]
        self.rows = np.unravel_index(np.stack(first), others) if others else ()  # each (C, R)
        self.starts, self.widths = bands(self.size)

    def summarise(self, items: Sequence[Array]) -> Array:
        """Power in each band, summed over rows, and the number of rows: (N, C (bands + 1))."""
        sums = [self._band_sums(item) for item in items]
        return np.stack(sums).reshape(len(items), -1).astype(np.float32)

    def log_ratios(self, total: Array, other: Array) -> Array:
        """Log of the power ratio, (C, bands); NaN where ``other`` is below the rounding error.

        The rounding error of float32 is added to both, so that zero power is finite too.
        """
        floor = self.scale.step[:, None] ** 2
        a, b = (self._power(sums) for sums in (total, other))
        known = np.where(b > floor, b, np.nan)
        return np.log((a + floor) / (known + floor))

    def num_rows(self, total: Array) -> Array:
        """Number of rows in a sum, (C,)."""
        return total.reshape(len(self.scale.mean), -1)[:, -1]

    def _band_sums(self, item: Array) -> Array:
        moved = np.moveaxis(item, self.axis + 1, -1)
        channel = np.arange(len(item))[:, None]
        rows = moved[(channel, *self.rows)]  # (C, R, size)
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
        return safe_divide(sums[:, :-1], sums[:, -1:] * self.widths)


def bands(size: int) -> tuple[Array, Array]:
    """Bands of wavenumbers 1 to N / 2 of an axis of N cells: first wavenumber and width of each.

    >>> bands(8)
    (array([1, 2, 3, 4]), array([1, 1, 1, 1]))
    """
    ends = np.unique(np.geomspace(1, size // 2 + 1, BANDS + 1).round().astype(int))
    return ends[:-1], np.diff(ends)


def power_spectrum(rows: Array, kind: str) -> Array:
    """Power of rows (..., N) at wavenumbers 0 to N / 2, (..., N // 2 + 1).

    White noise of variance σ² has power σ² at every wavenumber except 0; a sine of amplitude a and
    integer wavenumber has a² N / 4 at that wavenumber. A ``"circle"`` is not tapered. A ``"line"``
    is linearly detrended and tapered with a Hann window; with fewer than four cells only its mean
    is removed.
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
