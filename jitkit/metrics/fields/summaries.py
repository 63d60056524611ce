"""Additive summaries of array items: marginals, spread, correlations, patches, nearest neighbours.

A set of items is scored from the sum of its summaries, and a resample from the sum over
its items, without reading them again. Every summary is first fitted to real items: that fixes the
cells, rows and patches in use (drawn once with a fixed seed, where there are data) and the
histogram bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np

from jitkit.utils.types import Array

CELLS = 8192  # values of an item for marginals and correlations, over all channels
SPREAD_CELLS = 4096  # values of an item for the variance over items
PATCHES = 32  # per item
CANDIDATE_PATCHES = 16  # candidate positions per patch
PATCH_SIDES = {1: 16, 2: 8, 3: 4, 4: 3}  # maximum cells along a side, by number of axes
DIRECTIONS = 64  # directions of projection of patches
DIRECTION_CHANNELS = 8  # channels per direction: with more, differences average out
PAIRS = 1024  # pairs of channels with correlations
CANDIDATES = 65_536  # cells checked for data when cells are drawn
CLIP = 1e6  # standard deviations
NEAREST_VALUES = 1024  # values of an item used for distances
LEAVE_ONE_OUT = 1000  # real items whose distance to the others is measured
MIN_SHARED = 1 / 4  # minimum fraction of an item's cells that are observed in both items
PROBES = 16  # real items that determine where there are data
FLOAT32_STEP = 2.0**-23


class Scale:
    """Randomly drawn cells, with mean and standard deviation of each channel.

    Attributes:
        cells: flat indices of the cells, (K,).
        mean: (C, 1) float64, physical units.
        std: (C, 1) float64, zero if a channel is constant, NaN if it has no values.
        step: (C,) float64, standard deviation of float32 rounding errors, in units of ``std``.
        real: standardised values of the real items, (N, C, K) float32, NaN missing.
    """

    def __init__(self, real: Sequence[Array], rng: np.random.Generator) -> None:
        channels, num_cells = real[0].shape[0], prod(real[0].shape[1:])
        cells = rng.permutation(num_cells)[:CANDIDATES]
        observed = np.zeros(len(cells), bool)
        for item in probe_items(real):
            observed |= np.isfinite(item.reshape(channels, -1)[:, cells]).any(axis=0)
        self.cells = (cells[observed] if observed.any() else cells)[: max(1, CELLS // channels)]
        drawn = self._drawn(real)
        values = drawn.swapaxes(0, 1).reshape(channels, -1).astype(np.float64)
        count = np.isfinite(values).sum(axis=1, keepdims=True)
        self.mean = safe_divide(np.nansum(values, axis=1, keepdims=True), count)
        squares = np.nansum((values - self.mean) ** 2, axis=1, keepdims=True)
        self.std = np.sqrt(safe_divide(squares, count))
        largest = np.abs(np.where(np.isfinite(values), values, 0)).max(axis=1, keepdims=True)
        self.std[self.std <= largest * FLOAT32_STEP] = 0  # the rest is rounding error
        self.shift = np.where(np.isfinite(self.mean), self.mean, 0)
        self.divisor = np.where(self.std > 0, self.std, 1)
        root = np.sqrt(self.shift**2 + self.divisor**2)
        self.step = (root / self.divisor)[:, 0] * FLOAT32_STEP / np.sqrt(12)
        self.real = self.standardised(drawn)

    def cell_values(self, items: Sequence[Array]) -> Array:
        """Standardised values of the drawn cells, (N, C, K) float32."""
        return self.standardised(self._drawn(items))

    def standardised(self, values: Array) -> Array:
        """Values (..., C, K) minus the mean, divided by the standard deviation (1 if constant).

        Clamped at a million standard deviations, so that squares stay finite.
        """
        scaled = (values - self.shift) / self.divisor
        return scaled.clip(-CLIP, CLIP).astype(np.float32)

    def _drawn(self, items: Sequence[Array]) -> Array:
        drawn = np.stack([item.reshape(len(item), -1)[:, self.cells] for item in items])
        return np.where(np.isfinite(drawn), drawn, np.nan)


class Marginals:
    """Distributions of D quantities, as counts in bins and distances of values to the bin edge.

    These give the exact integral of a distribution function over each bin, and so the exact
    Wasserstein distance, except in bins where two distribution functions cross; there they are
    approximated by straight lines.
    """

    def __init__(self, real: Array, bins: int) -> None:
        """Set bins with equal counts of ``real`` (N, D, K), NaN missing."""
        self.bins = bins
        levels = np.linspace(0, 1, bins + 1)
        columns = real.swapaxes(0, 1).reshape(real.shape[1], -1)
        kept = [column[np.isfinite(column)] for column in columns]
        empty = np.zeros(bins + 1, np.float32)
        self.edges = np.stack(
            [
                np.quantile(column, levels).astype(np.float32) if column.size else empty
                for column in kept
            ]
        )  # (D, bins + 1)

    def summarise(self, values: Array) -> Array:
        """Summaries of values (N, D, K): (N, D 2 (bins + 2)) float32; NaN is ignored."""
        n, size = len(values), self.bins + 2
        summaries = np.empty((n, values.shape[1], 2, size), np.float32)
        row = np.arange(n)[:, None] * size
        for d, edges in enumerate(self.edges):
            x = values[:, d]
            bin_of = np.searchsorted(edges, x, side="right")  # NaN is put in the last
            known = np.isfinite(x)
            gap = np.where(bin_of > self.bins, x - edges[-1], edges[bin_of.clip(0, self.bins)] - x)
            where = (row + bin_of)[known]
            summaries[:, d, 0] = np.bincount(where, minlength=n * size).reshape(n, size)
            summaries[:, d, 1] = np.bincount(where, gap[known], n * size).reshape(n, size)
        return summaries.reshape(n, -1)

    def distances(self, total: Array, other: Array) -> Array:
        """Wasserstein-1 distances of two sums of summaries, (D,); NaN if one is empty."""
        at_edges, inside = zip(self._integrals(total), self._integrals(other), strict=True)
        ends = at_edges[0] - at_edges[1]  # (D, bins + 1), differences of the functions
        area = np.abs(inside[0] - inside[1])  # (D, bins + 2)
        left, right = np.abs(ends[:, :-1]), np.abs(ends[:, 1:])
        crossed = ends[:, :-1] * ends[:, 1:] < 0
        width = np.diff(self.edges.astype(np.float64), axis=1)
        lines = width * safe_divide(left**2 + right**2, 2 * (left + right))
        area[:, 1:-1] = np.where(crossed, np.fmax(area[:, 1:-1], lines), area[:, 1:-1])
        return area.sum(axis=1)

    def _integrals(self, total: Array) -> tuple[Array, Array]:
        """Distribution function at the edges, (D, bins + 1), and its integrals over the bins."""
        counts, gaps = total.reshape(len(self.edges), 2, self.bins + 2).swapaxes(0, 1)
        n = counts.sum(axis=1, keepdims=True)
        below = safe_divide(counts[:, :-1].cumsum(axis=1), n)
        width = np.diff(self.edges.astype(np.float64), axis=1)
        inside = safe_divide(gaps, n)  # in the last bin: of 1 - F
        inside[:, 1:-1] += width * below[:, :-1]
        return below, inside


class Spread:
    """Sums of values and squares in each cell, for the variance over items."""

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.num_cells = max(1, SPREAD_CELLS // channels)

    def summarise(self, values: Array) -> Array:
        """Summaries of standardised values (N, C, K)."""
        x = values[..., : self.num_cells]
        known = np.isfinite(x)
        x = np.where(known, x, 0)
        return np.stack([known, x, x**2], axis=1).reshape(len(values), -1).astype(np.float32)

    def ratios(self, total: Array, other: Array) -> Array:
        """Ratio of the standard deviations over items of two sets, averaged over cells, (C,).

        Cells observed in fewer than two items of either set are left out.
        """
        a, b = self._variances(total), self._variances(other)
        both = np.isfinite(a) & np.isfinite(b)
        a, b = (np.where(both, v, 0).sum(axis=1) for v in (a, b))
        return np.sqrt(safe_divide(a, b))

    def missing(self, total: Array, n: int) -> Array:
        """Fraction of items in which a cell is missing, (C, K)."""
        return 1 - total.reshape(3, self.channels, -1)[0] / n

    def _variances(self, total: Array) -> Array:
        n, x, squares = total.reshape(3, self.channels, -1)
        variance = safe_divide(squares - safe_divide(x**2, n), np.where(n > 1, n - 1, 0))
        return variance.clip(0)


class Correlations:
    """Sums of products of channels in the same cell, over cells observed in both."""

    def __init__(self, channels: int, rng: np.random.Generator) -> None:
        first, second = np.triu_indices(channels, 1)
        kept = np.sort(rng.permutation(len(first))[:PAIRS])
        self.first, self.second = first[kept], second[kept]

    def summarise(self, values: Array) -> Array:
        """Summaries of standardised values (N, C, K)."""
        known = np.isfinite(values).astype(np.float32)
        x = np.where(known > 0, values, 0)
        i, j = self.first, self.second

        def sums(a: Array, b: Array) -> tuple[Array, Array]:
            products = a @ b.swapaxes(1, 2)  # (N, C, C)
            return products[:, i, j], products[:, j, i]

        parts = [sums(known, known)[0], sums(x, x)[0], *sums(x, known), *sums(x**2, known)]
        return np.stack(parts, axis=1).reshape(len(values), -1)

    def correlations(self, total: Array) -> Array:
        """Correlations of the pairs; NaN if a channel is constant or no cells are shared."""
        n, products, a, b, aa, bb = total.reshape(6, -1)
        a, b, aa, bb, products = (safe_divide(sums, n) for sums in (a, b, aa, bb, products))
        variances = (aa - a**2).clip(0) * (bb - b**2).clip(0)
        return safe_divide(products - a * b, np.sqrt(variances))


class Patches:
    """Patches projected on random directions, for the sliced Wasserstein distance."""

    def __init__(
        self,
        real: Sequence[Array],
        kinds: Sequence[str],
        scale: Scale,
        rng: np.random.Generator,
        bins: int,
    ) -> None:
        self.scale = scale
        side = PATCH_SIDES[real[0].ndim - 1]
        while not self._place(probe_items(real), kinds, side, rng) and side > 1:
            side //= 2  # missing cells leave no room for larger patches
        channels, _, cells = self._cut(real[0]).shape
        self.uses, self.directions = _directions(channels, cells, rng)
        self.marginals = Marginals(self._project(real), bins)

    def _place(
        self, probes: Sequence[Array], kinds: Sequence[str], side: int, rng: np.random.Generator
    ) -> bool:
        """Place patches where there are data.

        Returns whether most of them are complete in most channels with data.
        """
        grid = probes[0].shape[1:]
        sides = [min(size, side) for size in grid]
        steps = np.array(list(product(*(range(cells) for cells in sides))))  # (D, n)
        ends = [0 if k == "circle" else cells - 1 for k, cells in zip(kinds, sides, strict=True)]
        starts = rng.integers(
            0, np.subtract(grid, ends), size=(CANDIDATE_PATCHES * PATCHES, len(grid))
        )
        self._where = _indices(starts, steps, grid)
        complete = np.mean([~self._gaps(self._cut(item)) for item in probes], axis=0)  # (P, C)
        complete = complete[:, np.isfinite(self.scale.std[:, 0])].sum(axis=1)
        best = np.argsort(-complete, kind="stable")[:PATCHES]
        self._where = _indices(starts[best], steps, grid)
        return bool(complete[best].mean() > np.isfinite(self.scale.std).sum() / 2)

    def summarise(self, items: Sequence[Array]) -> Array:
        """Summaries of the projections of items."""
        return self.marginals.summarise(self._project(items))

    def _project(self, items: Sequence[Array]) -> Array:
        """(N, directions, patches); NaN if a cell used by a direction is missing."""
        return np.stack([self._project_item(item) for item in items])

    def _project_item(self, item: Array) -> Array:
        cut = self._cut(item)  # (C, P, D)
        scaled = self.scale.standardised(np.moveaxis(cut, 0, 1))  # (P, C, D)
        rows = np.where(np.isfinite(scaled), scaled, 0).reshape(len(scaled), -1)
        hidden = self._gaps(cut).astype(np.float32) @ self.uses > 0
        return np.where(hidden, np.nan, rows @ self.directions).T

    def _cut(self, item: Array) -> Array:
        index: tuple[Any, ...] = (slice(None), *self._where)
        return item[index]

    @staticmethod
    def _gaps(cut: Array) -> Array:
        """Whether a channel of a patch has missing cells, (P, C)."""
        return np.logical_not(np.isfinite(cut).all(axis=-1)).T


def _indices(starts: Array, steps: Array, grid: Sequence[int]) -> tuple[Array, ...]:
    """Index arrays (P, D), one for each axis, of the cells of patches."""
    cells = (starts[:, None] + steps) % np.array(grid)  # (P, D, n)
    return tuple(np.moveaxis(cells, -1, 0))


def _directions(channels: int, cells: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Channels used by each direction, (C, directions), and unit vectors (C D, directions)."""
    order = np.argsort(rng.random((channels, DIRECTIONS)), axis=0)
    uses = (order < DIRECTION_CHANNELS).astype(np.float32)
    vectors = rng.standard_normal((channels, cells, DIRECTIONS)) * uses[:, None]
    vectors = vectors.reshape(-1, DIRECTIONS)
    return uses, (vectors / np.linalg.norm(vectors, axis=0)).astype(np.float32)


class Nearest:
    """Distance of an item to the nearest real one, over cells observed in both.

    A distance is the root mean square difference in standard deviations.

    Attributes:
        typical: median distance of real items to their nearest neighbour; NaN for a single item.
    """

    def __init__(self, real: Sequence[Array], scale: Scale) -> None:
        self.num_cells = max(1, NEAREST_VALUES // real[0].shape[0])
        blocks = [real[i : i + 64] for i in range(0, len(real), 64)]
        self.real = np.concatenate([self._vectors(scale.cell_values(block)) for block in blocks])
        self.known = np.isfinite(self.real).astype(np.float32)
        self.filled = np.where(self.known > 0, self.real, 0)
        selected = np.array(linspace_indices(len(real), LEAVE_ONE_OUT))
        parts = np.array_split(selected, -(-len(selected) // 64))
        own = np.concatenate([self._distances(self.real[part], part) for part in parts])
        own = own[np.isfinite(own)]
        self.typical = float(np.median(own)) if own.size else float("nan")

    def summarise(self, values: Array) -> Array:
        """Distances to the nearest real item of standardised values (N, C, K): (N,) float32."""
        return self._distances(self._vectors(values)).astype(np.float32)

    def _vectors(self, values: Array) -> Array:
        near = values[..., : self.num_cells]
        return near.reshape(len(near), -1)[:, :NEAREST_VALUES]

    def _distances(self, vectors: Array, own: Array | None = None) -> Array:
        """Distances (N,); ``own`` are the indices of the vectors among the real items, excluded."""
        known = np.isfinite(vectors).astype(np.float32)
        filled = np.where(known > 0, vectors, 0)
        squares = filled**2 @ self.known.T + known @ self.filled.T**2 - 2 * filled @ self.filled.T
        shared = known @ self.known.T
        enough = shared >= np.maximum(1, MIN_SHARED * known.sum(axis=1, keepdims=True))
        means = np.where(enough, squares / np.maximum(shared, 1), np.inf)
        if own is not None:
            means[np.arange(len(own)), own] = np.inf
        nearest = means.argmin(axis=1)
        gaps = (
            vectors - self.real[nearest]
        )  # computed directly: the products above round, and copies must have 0
        both = np.isfinite(gaps)
        exact = np.sqrt(safe_divide((np.where(both, gaps, 0) ** 2).sum(axis=1), both.sum(axis=1)))
        return np.where(np.isfinite(means.min(axis=1)), exact, np.nan)


def probe_items(items: Sequence[Array]) -> list[Array]:
    """A few evenly spaced items of a sequence."""
    return [items[i] for i in linspace_indices(len(items), PROBES)]


def linspace_indices(n: int, most: int) -> list[int]:
    """At most ``most`` evenly spaced indices below n, including first and last."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int)).tolist()


def safe_divide(a: Array | float, b: Array | float) -> Array:
    """a / b in float64, NaN where b is zero."""
    top, bottom = np.asarray(a, np.float64), np.asarray(b, np.float64)
    out = np.full(np.broadcast_shapes(top.shape, bottom.shape), np.nan)
    return np.divide(top, bottom, out=out, where=bottom != 0)
