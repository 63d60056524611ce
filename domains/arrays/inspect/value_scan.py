"""Scan some values of every variable: missing values, range, smoothness along each dimension.

A few evenly spaced chunks are read, so the cost does not depend on the size of the store.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, prod
from typing import TYPE_CHECKING

import numpy as np

from jitkit.utils.console import bar
from jitkit.utils.types import Array

if TYPE_CHECKING:
    from jitkit.stores.store import Store, VariableInfo

MAX_BYTES = {False: 2**26, True: 2**24}  # decoded, of all variables; remote or not
MIN_BYTES = 2**20  # of each variable
MAX_CHUNK_BYTES = {False: 2**28, True: 2**25}  # larger chunks are not decoded
MAX_CHUNKS = {False: 2048, True: 64}
MAX_BOXES = 8
MAX_LINE_ENTRIES, MAX_LINE_VALUES = 2**12, 2**20  # values that measure roughness
MAX_PLAUSIBLE = 1e30  # NetCDF's default fill values are larger, data are not
COMMON_FILLS = (-9999.0, -999.0, -99999.0, -99.0, 9999.0, 99999.0, 1e20, -1e20, -32768.0, 32767.0)


@dataclass(frozen=True, eq=False)
class ValueScan:
    """Some values of a variable.

    Attributes:
        dims, shape: of the variable.
        boxes: values in physical units, NaN where missing, each with all dimensions.
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    boxes: tuple[Array, ...]

    @property
    def complete(self) -> bool:
        """Whether all values of the variable were read."""
        return sum(box.size for box in self.boxes) == prod(self.shape)

    @cached_property
    def missing(self) -> float | None:
        """Fraction of missing cells; None if nothing was read."""
        total = sum(box.size for box in self.boxes)
        return sum(int(np.isnan(box).sum()) for box in self.boxes) / total if total else None

    @cached_property
    def infinite(self) -> bool:
        """Whether there are infinite values."""
        return any(bool(np.isinf(box).any()) for box in self.boxes)

    def without(self, value: float) -> ValueScan:
        """The same scan with this value as missing."""
        boxes = tuple(np.where(box == np.float32(value), np.nan, box) for box in self.boxes)
        return ValueScan(self.dims, self.shape, boxes)

    @cached_property
    def finite(self) -> Array:
        """The finite values, float64."""
        parts = [box[np.isfinite(box)] for box in self.boxes]
        return np.concatenate([np.empty(0), *parts]).astype(np.float64)

    @cached_property
    def range(self) -> tuple[float, float] | None:
        """Minimum and maximum; None if all are missing."""
        return (float(self.finite.min()), float(self.finite.max())) if len(self.finite) else None

    @property
    def constant(self) -> bool:
        """Whether the values read are all equal, or all missing; False if nothing was read."""
        return bool(self.boxes) and (self.range is None or self.range[0] == self.range[1])

    @cached_property
    def skewed(self) -> bool:
        """Never negative with a long tail (20 median < 0.99 quantile): rain, concentrations."""
        if self.range is None or self.range[0] < 0 or self.range[1] <= 0:
            return False
        sample = self.finite[:: max(1, len(self.finite) // 2**20)]
        median, high = np.quantile(sample, [0.5, 0.99])
        return bool(median * 20 < high)

    @cached_property
    def suspected_fill(self) -> tuple[float, float] | None:
        """An undeclared value that probably means "missing", and its fraction of the values."""
        if self.range is None:
            return None
        if max(map(abs, self.range)) > MAX_PLAUSIBLE:
            large = np.abs(self.finite) > MAX_PLAUSIBLE
            return float(self.finite[large][0]), float(large.mean())
        for end in self.range:
            if end in COMMON_FILLS and 0 < (share := float((self.finite == end).mean())) < 1:
                rest = self.finite[self.finite != end]
                gap = min(abs(float(rest.min()) - end), abs(float(rest.max()) - end))
                if share > 1e-3 and gap > 2 * (float(np.ptp(rest)) or 1.0):
                    return end, share
        return None

    def roughness(self, dim: str) -> float | None:
        """Mean square difference of neighbours along a dimension over twice the variance along it.

        About 1 if the order of the entries has no meaning, near 0 if values vary smoothly; None if
        too few values were read.
        """
        differences, variances = 0.0, 0.0
        for box in self.boxes:
            x = _lines(box, self.dims.index(dim))
            if len(x) < 3:
                continue
            square, (mean, count) = _nanmean(np.diff(x, axis=0) ** 2)[0], _nanmean(x)
            variance = (_nanmean(x**2)[0] - mean**2) * count / np.maximum(count - 1, 1)
            finite = np.isfinite(square) & np.isfinite(variance)
            differences += float(square[finite].sum())
            variances += float(variance[finite].sum())
        return differences / (2 * variances) if variances > 0 else None

    def seam_ratio(self, dim: str) -> float | None:
        """Mean square difference of the two ends of a dimension over that of neighbours.

        About 1 if the dimension is periodic; None if too few values were read, or if neighbours are
        not similar.
        """
        rough = self.roughness(dim)
        if rough is None or rough > 0.25:
            return None
        axis = self.dims.index(dim)
        ends, steps = [], []
        for box in self.boxes:
            x = _lines(box, axis)
            if len(x) < self.shape[axis]:
                return None
            ends.append(((x[0] - x[-1]) ** 2).ravel())
            steps.append((np.diff(x, axis=0) ** 2).ravel())
        end, step = (np.concatenate(parts) for parts in (ends, steps))
        end, step = end[np.isfinite(end)], step[np.isfinite(step)]
        if len(end) < 16 or not len(step) or not step.mean():
            return None
        return float(end.mean() / step.mean())

    def constant_entries(self, dims: Sequence[str]) -> Array:
        """Entries of some dimensions with at most one distinct value; (their sizes...) bool."""
        others = tuple(i for i, dim in enumerate(self.dims) if dim not in dims)
        lows, highs = [], []
        for box in self.boxes:
            finite = np.isfinite(box)
            lows.append(np.where(finite, box, np.inf).min(axis=others, initial=np.inf))
            highs.append(np.where(finite, box, -np.inf).max(axis=others, initial=-np.inf))
        return np.asarray(np.min(lows, axis=0) >= np.max(highs, axis=0))


def _lines(box: Array, axis: int) -> Array:
    """Values along an axis, (entries, lines), float64: the first entries of evenly spaced lines."""
    x = np.moveaxis(box, axis, 0)[:MAX_LINE_ENTRIES]
    x = x.reshape(len(x), -1)
    return x[:, :: max(1, x.size // MAX_LINE_VALUES)].astype(np.float64)


def _nanmean(x: Array) -> tuple[Array, Array]:
    """Mean and number of the finite values along the first axis; NaN where there are none."""
    finite = np.isfinite(x)
    count = finite.sum(axis=0)
    total = np.where(finite, x, 0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan), count


def scan_values(store: Store, names: Iterable[str]) -> dict[str, ValueScan]:
    """Scan numeric variables of a store, with a progress bar."""
    remote = "://" in store.path
    names = list(names)
    budget = max(MIN_BYTES, MAX_BYTES[remote] // max(1, len(names)))
    plans = {name: list(_boxes(store.variables[name], budget, remote)) for name in names}
    scans, done = {}, 0
    with bar("scanning values", sum(map(len, plans.values())), unit="boxes") as progress:
        for name, boxes in plans.items():
            v, values = store.variables[name], []
            for box in boxes:
                values.append(store.read(name, box))
                progress(done := done + 1, name)
            scans[name] = ValueScan(v.dims, tuple(v.shape), tuple(values))
    return scans


def _boxes(variable: VariableInfo, budget: int, remote: bool) -> Iterator[Mapping[str, slice]]:
    """Evenly spaced boxes of whole chunks; none if a single chunk is too large."""
    chunks = [max(1, n) for n in variable.chunks]
    counts = [ceil(n / chunk) for n, chunk in zip(variable.shape, chunks, strict=True)]
    chunk_bytes = variable.dtype.itemsize * prod(chunks)
    if not prod(variable.shape) or chunk_bytes > MAX_CHUNK_BYTES[remote]:
        return
    limit = min(MAX_CHUNKS[remote], max(1, budget // chunk_bytes))
    per_box = _chunks_per_axis(
        counts, limit if prod(counts) <= limit else max(1, limit // MAX_BOXES)
    )
    num_boxes = max(1, min(MAX_BOXES, limit // prod(per_box))) if per_box != counts else 1
    for i in range(num_boxes):
        pairs = zip(counts, per_box, strict=True)
        first = [(n - m) * (2 * i + 1) // (2 * num_boxes) for n, m in pairs]
        yield {
            dim: slice(start * chunk, min((start + m) * chunk, size))
            for dim, start, m, chunk, size in zip(
                variable.dims, first, per_box, chunks, variable.shape, strict=True
            )
        }


def _chunks_per_axis(counts: Sequence[int], limit: int) -> list[int]:
    """Chunks of a box along each dimension: all along the last ones, a few along the first."""
    per_axis = list(counts)
    for axis in range(len(per_axis)):
        others = prod(per_axis[:axis]) * prod(per_axis[axis + 1 :])
        per_axis[axis] = max(1, min(per_axis[axis], limit // others))
    return per_axis
