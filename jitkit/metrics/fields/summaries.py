"""What of an item the scores of `fieldscores` need: numbers that add up over items.

A set of items is then scored from the sum of its summaries, and a bootstrap resample from a
weighted sum, without a second look at the items. Every summary is fitted to real items first: it
fixes which cells, rows and patches are looked at (drawn once, with a fixed seed, where there are
data) and where histograms have their bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import Any, Protocol

import numpy as np

from jitkit.utils.types import Array

CELLS = 8192  # numbers of an item that marginals and correlations look at, all channels together
SPREAD_CELLS = 4096  # numbers of an item whose variance over items is taken
PATCHES = 32  # patches of an item
CHOICE = 16  # places that are looked at for each patch
PATCH_SIDES = {1: 16, 2: 8, 3: 4, 4: 3}  # cells along a side at most, by the number of axes
DIRECTIONS = 64  # directions that patches are projected on
DIRECTION_CHANNELS = 8  # channels that one direction sees: of more, differences average out
PAIRS = 1024  # pairs of channels that are correlated
CANDIDATES = 65_536  # cells that are looked at for data when cells are drawn
FAR = 1e6  # standard deviations
NEAREST_NUMBERS = 1024  # numbers of an item that distances are taken of
LEFT_OUT = 1000  # real items whose distance to the others is taken
SHARED = 1 / 4  # least share of an item's cells that another must know to have a distance
SCOUTS = 16  # real items that say where there are data
FLOAT32_STEP = 2.0**-23


class Summary(Protocol):
    """Numbers of items that add up."""

    def of(self, items: Sequence[Array]) -> Array:
        """The numbers of each item (C, X1..Xn), (len(items), F) float32."""


class Scale:
    """Cells drawn once, mean and standard deviation of each channel there.

    Attributes:
        cells: which cells, of the grid in one row, (K,).
        mean: (C, 1) float64, physical units.
        std: (C, 1) float64, zero where a channel is constant, NaN where it has no values.
        step: (C,) float64, standard deviation of the rounding of float32, in units of ``std``.
        sample: what was drawn from the real items, (N, C, K) float32, standardised, NaN missing.
    """

    def __init__(self, real: Sequence[Array], rng: np.random.Generator) -> None:
        channels, num_cells = real[0].shape[0], prod(real[0].shape[1:])
        cells = rng.permutation(num_cells)[:CANDIDATES]
        found = np.zeros(len(cells), bool)
        for item in scouts(real):
            found |= np.isfinite(item.reshape(channels, -1)[:, cells]).any(axis=0)
        self.cells = (cells[found] if found.any() else cells)[: max(1, CELLS // channels)]
        drawn = self._drawn(real)
        values = drawn.swapaxes(0, 1).reshape(channels, -1).astype(np.float64)
        count = np.isfinite(values).sum(axis=1, keepdims=True)
        self.mean = divided(np.nansum(values, axis=1, keepdims=True), count)
        squares = np.nansum((values - self.mean) ** 2, axis=1, keepdims=True)
        self.std = np.sqrt(divided(squares, count))
        largest = np.abs(np.where(np.isfinite(values), values, 0)).max(axis=1, keepdims=True)
        self.std[self.std <= largest * FLOAT32_STEP] = 0  # what is left is rounding
        self.shift = np.where(np.isfinite(self.mean), self.mean, 0)
        self.divisor = np.where(self.std > 0, self.std, 1)
        root = np.sqrt(self.shift**2 + self.divisor**2)
        self.step = (root / self.divisor)[:, 0] * FLOAT32_STEP / np.sqrt(12)
        self.sample = self.standardised(drawn)

    def of(self, items: Sequence[Array]) -> Array:
        """The drawn cells of items, standardised, (N, C, K) float32."""
        return self.standardised(self._drawn(items))

    def standardised(self, values: Array) -> Array:
        """Values (..., C, K) less the mean, over the standard deviation (over 1 where constant).

        Held within a million of them, so that squares of the worst samples are finite.
        """
        scaled = (values - self.shift) / self.divisor
        return scaled.clip(-FAR, FAR).astype(np.float32)

    def _drawn(self, items: Sequence[Array]) -> Array:
        drawn = np.stack([item.reshape(len(item), -1)[:, self.cells] for item in items])
        return np.where(np.isfinite(drawn), drawn, np.nan)


class Marginals:
    """Distributions of D quantities, as counts in bins and how far values lie from a bin's end.

    With both the integral of a distribution function over each bin is exact, and so is the
    Wasserstein distance but for bins inside which two distribution functions cross; there they are
    taken for straight lines.
    """

    def __init__(self, real: Array, bins: int) -> None:
        """Bins that hold equally many of ``real`` (N, D, K), NaN missing."""
        self.bins = bins
        at = np.linspace(0, 1, bins + 1)
        columns = real.swapaxes(0, 1).reshape(real.shape[1], -1)
        kept = [column[np.isfinite(column)] for column in columns]
        empty = np.zeros(bins + 1, np.float32)
        self.edges = np.stack(
            [
                np.quantile(column, at).astype(np.float32) if column.size else empty
                for column in kept
            ]
        )  # (D, bins + 1)

    def of_values(self, values: Array) -> Array:
        """Summaries of values (N, D, K), (N, D 2 (bins + 2)) float32; NaN is left out."""
        n, size = len(values), self.bins + 2
        found = np.empty((n, values.shape[1], 2, size), np.float32)
        row = np.arange(n)[:, None] * size
        for d, edges in enumerate(self.edges):
            x = values[:, d]
            bin_of = np.searchsorted(edges, x, side="right")  # NaN goes to the last
            seen = np.isfinite(x)
            gap = np.where(bin_of > self.bins, x - edges[-1], edges[bin_of.clip(0, self.bins)] - x)
            where = (row + bin_of)[seen]
            found[:, d, 0] = np.bincount(where, minlength=n * size).reshape(n, size)
            found[:, d, 1] = np.bincount(where, gap[seen], n * size).reshape(n, size)
        return found.reshape(n, -1)

    def distances(self, total: Array, other: Array) -> Array:
        """Wasserstein-1 distances of two sums of summaries, (D,); NaN where one is empty."""
        at_ends, inside = zip(self._integrals(total), self._integrals(other), strict=True)
        ends = at_ends[0] - at_ends[1]  # (D, bins + 1), differences of the functions at the edges
        area = np.abs(inside[0] - inside[1])  # (D, bins + 2)
        left, right = np.abs(ends[:, :-1]), np.abs(ends[:, 1:])
        crossed = ends[:, :-1] * ends[:, 1:] < 0
        width = np.diff(self.edges.astype(np.float64), axis=1)
        lines = width * divided(left**2 + right**2, 2 * (left + right))
        area[:, 1:-1] = np.where(crossed, np.fmax(area[:, 1:-1], lines), area[:, 1:-1])
        return area.sum(axis=1)

    def _integrals(self, total: Array) -> tuple[Array, Array]:
        """Distribution function at the edges, (D, bins + 1), and its integrals over the bins."""
        counts, gaps = total.reshape(len(self.edges), 2, self.bins + 2).swapaxes(0, 1)
        n = counts.sum(axis=1, keepdims=True)
        below = divided(counts[:, :-1].cumsum(axis=1), n)
        width = np.diff(self.edges.astype(np.float64), axis=1)
        inside = divided(gaps, n)  # (the last bin's: of 1 - F)
        inside[:, 1:-1] += width * below[:, :-1]
        return below, inside


class Spread:
    """Sums over items of values and their squares in each cell, for the variance over items."""

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self.num_cells = max(1, SPREAD_CELLS // channels)

    def of_values(self, values: Array) -> Array:
        """Of standardised values (N, C, K)."""
        x = values[..., : self.num_cells]
        seen = np.isfinite(x)
        x = np.where(seen, x, 0)
        return np.stack([seen, x, x**2], axis=1).reshape(len(values), -1).astype(np.float32)

    def ratios(self, total: Array, other: Array) -> Array:
        """Standard deviation over items, in the mean over cells, of one set over another's, (C,).

        Cells that one of them knows from fewer than two items are left out.
        """
        a, b = self._variances(total), self._variances(other)
        both = np.isfinite(a) & np.isfinite(b)
        a, b = (np.where(both, v, 0).sum(axis=1) for v in (a, b))
        return np.sqrt(divided(a, b))

    def missing(self, total: Array, n: int) -> Array:
        """Share of items in which a cell is missing, (C, K)."""
        return 1 - total.reshape(3, self.channels, -1)[0] / n

    def _variances(self, total: Array) -> Array:
        n, x, squares = total.reshape(3, self.channels, -1)
        variance = divided(squares - divided(x**2, n), np.where(n > 1, n - 1, 0))
        return variance.clip(0)


class Correlations:
    """Products of channels in the same cell, over cells that both know."""

    def __init__(self, channels: int, rng: np.random.Generator) -> None:
        first, second = np.triu_indices(channels, 1)
        kept = np.sort(rng.permutation(len(first))[:PAIRS])
        self.first, self.second = first[kept], second[kept]

    def of_values(self, values: Array) -> Array:
        """Of standardised values (N, C, K)."""
        seen = np.isfinite(values).astype(np.float32)
        x = np.where(seen > 0, values, 0)
        i, j = self.first, self.second

        def sums(a: Array, b: Array) -> tuple[Array, Array]:
            every = a @ b.swapaxes(1, 2)  # (N, C, C)
            return every[:, i, j], every[:, j, i]

        parts = [sums(seen, seen)[0], sums(x, x)[0], *sums(x, seen), *sums(x**2, seen)]
        return np.stack(parts, axis=1).reshape(len(values), -1)

    def of_total(self, total: Array) -> Array:
        """Correlations of the pairs; NaN where a channel is constant or cells are never shared."""
        n, products, a, b, aa, bb = total.reshape(6, -1)
        a, b, aa, bb, products = (divided(sums, n) for sums in (a, b, aa, bb, products))
        variances = (aa - a**2).clip(0) * (bb - b**2).clip(0)
        return divided(products - a * b, np.sqrt(variances))


class Patches:
    """Patches projected on random directions: distributions whose distances are the sliced ones."""

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
        while not self._found(scouts(real), kinds, side, rng) and side > 1:
            side //= 2  # where missing cells leave no room for larger ones
        channels, _, cells = self._cut(real[0]).shape
        self.uses, self.directions = _directions(channels, cells, rng)
        self.marginals = Marginals(self._projected(real), bins)

    def _found(
        self, few: Sequence[Array], kinds: Sequence[str], side: int, rng: np.random.Generator
    ) -> bool:
        """Draw patches where there are data; whether most are whole in most channels with data."""
        grid = few[0].shape[1:]
        sides = [min(size, side) for size in grid]
        steps = np.array(list(product(*(range(cells) for cells in sides))))  # (D, n)
        ends = [0 if k == "circle" else cells - 1 for k, cells in zip(kinds, sides, strict=True)]
        starts = rng.integers(0, np.subtract(grid, ends), size=(CHOICE * PATCHES, len(grid)))
        self._where = _indices(starts, steps, grid)
        whole = np.mean([~self._gaps(self._cut(item)) for item in few], axis=0)  # (P, C)
        whole = whole[:, np.isfinite(self.scale.std[:, 0])].sum(axis=1)
        best = np.argsort(-whole, kind="stable")[:PATCHES]
        self._where = _indices(starts[best], steps, grid)
        return bool(whole[best].mean() > np.isfinite(self.scale.std).sum() / 2)

    def of(self, items: Sequence[Array]) -> Array:
        """Summaries of the projections of items."""
        return self.marginals.of_values(self._projected(items))

    def _projected(self, items: Sequence[Array]) -> Array:
        """(N, directions, patches); NaN where a cell that a direction sees is missing."""
        return np.stack([self._of_item(item) for item in items])

    def _of_item(self, item: Array) -> Array:
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
    """Which channels a direction sees, (C, directions), and unit vectors (C D, directions)."""
    order = np.argsort(rng.random((channels, DIRECTIONS)), axis=0)
    uses = (order < DIRECTION_CHANNELS).astype(np.float32)
    vectors = rng.standard_normal((channels, cells, DIRECTIONS)) * uses[:, None]
    vectors = vectors.reshape(-1, DIRECTIONS)
    return uses, (vectors / np.linalg.norm(vectors, axis=0)).astype(np.float32)


class Nearest:
    """Distance of an item to the nearest real one, over cells that both know.

    A distance is the root of the mean square difference in standard deviations.

    Attributes:
        typical: median distance of real items to the nearest of the others; NaN for a single one.
    """

    def __init__(self, real: Sequence[Array], scale: Scale) -> None:
        self.num_cells = max(1, NEAREST_NUMBERS // real[0].shape[0])
        blocks = [real[i : i + 64] for i in range(0, len(real), 64)]
        self.real = np.concatenate([self._vectors(scale.of(block)) for block in blocks])
        self.known = np.isfinite(self.real).astype(np.float32)
        self.filled = np.where(self.known > 0, self.real, 0)
        chosen = np.array(spaced(len(real), LEFT_OUT))
        parts = np.array_split(chosen, -(-len(chosen) // 64))
        own = np.concatenate([self._distances(self.real[part], part) for part in parts])
        own = own[np.isfinite(own)]
        self.typical = float(np.median(own)) if own.size else float("nan")

    def of_values(self, values: Array) -> Array:
        """Distances of items to the nearest, of standardised values (N, C, K): (N,) float32."""
        return self._distances(self._vectors(values)).astype(np.float32)

    def _vectors(self, values: Array) -> Array:
        near = values[..., : self.num_cells]
        return near.reshape(len(near), -1)[:, :NEAREST_NUMBERS]

    def _distances(self, vectors: Array, own: Array | None = None) -> Array:
        """(N,); ``own`` says which real item each is itself, and is not compared with."""
        known = np.isfinite(vectors).astype(np.float32)
        filled = np.where(known > 0, vectors, 0)
        squares = filled**2 @ self.known.T + known @ self.filled.T**2 - 2 * filled @ self.filled.T
        shared = known @ self.known.T
        enough = shared >= np.maximum(1, SHARED * known.sum(axis=1, keepdims=True))
        means = np.where(enough, squares / np.maximum(shared, 1), np.inf)
        if own is not None:
            means[np.arange(len(own)), own] = np.inf
        nearest = means.argmin(axis=1)
        gaps = vectors - self.real[nearest]  # anew: products round, and copies are at zero
        both = np.isfinite(gaps)
        exact = np.sqrt(divided((np.where(both, gaps, 0) ** 2).sum(axis=1), both.sum(axis=1)))
        return np.where(np.isfinite(means.min(axis=1)), exact, np.nan)


def scouts(items: Sequence[Array]) -> list[Array]:
    """A few items from the whole length of a sequence."""
    return [items[i] for i in spaced(len(items), SCOUTS)]


def spaced(n: int, most: int) -> list[int]:
    """At most ``most`` of the numbers below n, evenly spaced, the first and last among them."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int)).tolist()


def divided(a: Array | float, b: Array | float) -> Array:
    """a / b in float64, NaN where b is zero."""
    above, below = np.asarray(a, np.float64), np.asarray(b, np.float64)
    out = np.full(np.broadcast_shapes(above.shape, below.shape), np.nan)
    return np.divide(above, below, out=out, where=below != 0)
