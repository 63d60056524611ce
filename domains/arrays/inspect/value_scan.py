"""A look at some values of every variable: how many are missing, their range, how they vary.

Whole chunks are read, evenly spread and few, so that a look costs the same whatever the store
holds.
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
    from jitkit.stores.store import Described, Store

MOST_BYTES = {False: 2**26, True: 2**24}  # of all variables, decoded, on disk and from afar
LEAST_BYTES = 2**20  # of a variable, whatever the others take
LARGEST_CHUNK = {False: 2**28, True: 2**25}  # that is decoded for a look
MOST_CHUNKS = {False: 2048, True: 64}
MOST_BOXES = 8
MOST_IN_LINE, MOST_IN_LINES = 2**12, 2**20  # numbers that tell how rough a dimension is
FAR = 1e30  # NetCDF's own fill values lie beyond, and nothing else does
FILLS = (-9999.0, -999.0, -99999.0, -99.0, 9999.0, 99999.0, 1e20, -1e20, -32768.0, 32767.0)


@dataclass(frozen=True, eq=False)
class Look:
    """Some values of a variable.

    Attributes:
        dims, shape: of the variable.
        boxes: values in physical units, NaN where missing, each with all dimensions.
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    boxes: tuple[Array, ...]

    @property
    def whole(self) -> bool:
        """Whether the values are all there are."""
        return sum(box.size for box in self.boxes) == prod(self.shape)

    @cached_property
    def missing(self) -> float | None:
        """Share of missing cells; None where nothing was looked at."""
        total = sum(box.size for box in self.boxes)
        return sum(int(np.isnan(box).sum()) for box in self.boxes) / total if total else None

    @cached_property
    def infinite(self) -> bool:
        """Whether there are infinite values."""
        return any(bool(np.isinf(box).any()) for box in self.boxes)

    def without(self, value: float) -> Look:
        """The same values, missing where they are this one."""
        boxes = tuple(np.where(box == np.float32(value), np.nan, box) for box in self.boxes)
        return Look(self.dims, self.shape, boxes)

    @cached_property
    def known(self) -> Array:
        """The finite values, float64."""
        parts = [box[np.isfinite(box)] for box in self.boxes]
        return np.concatenate([np.empty(0), *parts]).astype(np.float64)

    @cached_property
    def range(self) -> tuple[float, float] | None:
        """Least and greatest; None where all are missing."""
        return (float(self.known.min()), float(self.known.max())) if len(self.known) else None

    @property
    def flat(self) -> bool:
        """Looked at, and nothing varies: one value everywhere, or none at all."""
        return bool(self.boxes) and (self.range is None or self.range[0] == self.range[1])

    @cached_property
    def skewed(self) -> bool:
        """Never negative, and most values are small beside the largest: rain, concentrations."""
        if self.range is None or self.range[0] < 0 or self.range[1] <= 0:
            return False
        some = self.known[:: max(1, len(self.known) // 2**20)]
        middle, high = np.quantile(some, [0.5, 0.99])
        return bool(middle * 20 < high)

    @cached_property
    def filler(self) -> tuple[float, float] | None:
        """A value that probably means "missing" though nothing declares it, and its share."""
        if self.range is None:
            return None
        if max(map(abs, self.range)) > FAR:
            far = np.abs(self.known) > FAR
            return float(self.known[far][0]), float(far.mean())
        for end in self.range:
            if end in FILLS and 0 < (share := float((self.known == end).mean())) < 1:
                rest = self.known[self.known != end]
                gap = min(abs(float(rest.min()) - end), abs(float(rest.max()) - end))
                if share > 1e-3 and gap > 2 * (float(np.ptp(rest)) or 1.0):
                    return end, share
        return None

    def roughness(self, dim: str) -> float | None:
        """Mean square difference of neighbours along a dimension over twice the variance along it.

        About 1 where the order of entries means nothing, near 0 where values vary smoothly; None
        where not enough was looked at.
        """
        steps, spread = 0.0, 0.0
        for box in self.boxes:
            x = _lines(box, self.dims.index(dim))
            if len(x) < 3:
                continue
            square, (mean, count) = _mean(np.diff(x, axis=0) ** 2)[0], _mean(x)
            variance = (_mean(x**2)[0] - mean**2) * count / np.maximum(count - 1, 1)
            seen = np.isfinite(square) & np.isfinite(variance)
            steps += float(square[seen].sum())
            spread += float(variance[seen].sum())
        return steps / (2 * spread) if spread > 0 else None

    def seam(self, dim: str) -> float | None:
        """Mean square difference of the two ends of a dimension over that of neighbours.

        About 1 where it closes on itself; None where not enough was looked at, or where neighbours
        are not alike either.
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

    def flat_entries(self, dims: Sequence[str]) -> Array:
        """Which entries of some dimensions hold one value or none; (their sizes...) bool."""
        others = tuple(i for i, dim in enumerate(self.dims) if dim not in dims)
        lows, highs = [], []
        for box in self.boxes:
            known = np.isfinite(box)
            lows.append(np.where(known, box, np.inf).min(axis=others, initial=np.inf))
            highs.append(np.where(known, box, -np.inf).max(axis=others, initial=-np.inf))
        return np.asarray(np.min(lows, axis=0) >= np.max(highs, axis=0))


def _lines(box: Array, axis: int) -> Array:
    """Values along an axis, (entries, lines), float64: the first entries, and lines spread."""
    x = np.moveaxis(box, axis, 0)[:MOST_IN_LINE]
    x = x.reshape(len(x), -1)
    return x[:, :: max(1, x.size // MOST_IN_LINES)].astype(np.float64)


def _mean(x: Array) -> tuple[Array, Array]:
    """Mean of what is known along the first axis, NaN where nothing is, and how many are."""
    known = np.isfinite(x)
    count = known.sum(axis=0)
    total = np.where(known, x, 0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan), count


def look(store: Store, names: Iterable[str]) -> dict[str, Look]:
    """Look at some numeric variables of a store, with a bar where it takes long."""
    remote = "://" in store.path
    names = list(names)
    budget = max(LEAST_BYTES, MOST_BYTES[remote] // max(1, len(names)))
    plans = {name: list(_boxes(store.variables[name], budget, remote)) for name in names}
    found, done = {}, 0
    with bar("looking at values", sum(map(len, plans.values())), unit="boxes") as told:
        for name, boxes in plans.items():
            v, read = store.variables[name], []
            for box in boxes:
                read.append(store.read(name, box))
                told(done := done + 1, name)
            found[name] = Look(v.dims, tuple(v.shape), tuple(read))
    return found


def _boxes(variable: Described, budget: int, remote: bool) -> Iterator[Mapping[str, slice]]:
    """Boxes of whole chunks, evenly spread; none where a single chunk is too large."""
    chunks = [max(1, n) for n in variable.chunks]
    counts = [ceil(n / chunk) for n, chunk in zip(variable.shape, chunks, strict=True)]
    one = variable.dtype.itemsize * prod(chunks)
    if not prod(variable.shape) or one > LARGEST_CHUNK[remote]:
        return
    most = min(MOST_CHUNKS[remote], max(1, budget // one))
    taken = _taken(counts, most if prod(counts) <= most else max(1, most // MOST_BOXES))
    number = max(1, min(MOST_BOXES, most // prod(taken))) if taken != counts else 1
    for i in range(number):
        first = [(n - m) * (2 * i + 1) // (2 * number) for n, m in zip(counts, taken, strict=True)]
        yield {
            dim: slice(at * chunk, min((at + m) * chunk, size))
            for dim, at, m, chunk, size in zip(
                variable.dims, first, taken, chunks, variable.shape, strict=True
            )
        }


def _taken(counts: Sequence[int], most: int) -> list[int]:
    """Chunks of a box along each dimension: all along the last ones, a few along the first."""
    taken = list(counts)
    for axis in range(len(taken)):
        others = prod(taken[:axis]) * prod(taken[axis + 1 :])
        taken[axis] = max(1, min(taken[axis], most // others))
    return taken
