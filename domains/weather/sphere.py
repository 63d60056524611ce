"""Grid cells on the sphere: edges, areas, conservative coarsening, bilinear interpolation.

The area of a cell between latitudes a and b and longitudes l and m is (sin b - sin a)(m - l) on the
unit sphere; this is exact, also at the poles.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jitkit.utils.types import Array

POLE = 90.0
CIRCLE = 360.0
ROUNDING = 1e-3  # degrees


def latitude_edges(latitudes: Array) -> Array:
    """Edges of rows from their centres, in degrees, (n + 1,), in the given order.

    Edges are halfway between centres. The outer edges are half a row further out, or at the pole
    if it is within another half row (Gaussian grids, rows at the pole).
    """
    rows = np.asarray(latitudes, np.float64)
    if len(rows) == 1:
        return np.array([rows[0] - 0.5, rows[0] + 0.5]).clip(-POLE, POLE)
    inner = (rows[:-1] + rows[1:]) / 2
    first, last = rows[0] - (inner[0] - rows[0]), rows[-1] + (rows[-1] - inner[-1])
    outer = [
        _to_pole(edge, abs(inside - centre))
        for edge, centre, inside in ((first, rows[0], inner[0]), (last, rows[-1], inner[-1]))
    ]
    return np.concatenate([outer[:1], inner, outer[1:]])


def _to_pole(edge: float, half: float) -> float:
    return float(np.copysign(POLE, edge)) if abs(edge) + half > POLE else edge


def longitude_widths(longitudes: Array) -> Array:
    """Widths of columns from their centres, in degrees, (n,). Each reaches halfway to its
    neighbours; columns that cover all longitudes are periodic."""
    columns = np.asarray(longitudes, np.float64)
    if len(columns) < 2:
        return np.ones(len(columns))
    steps = np.abs((np.diff(columns) + CIRCLE / 2) % CIRCLE - CIRCLE / 2)
    rest = CIRCLE - steps.sum()
    periodic = rest <= 1.5 * steps.max()
    before = np.concatenate([[rest if periodic else steps[0]], steps])
    after = np.concatenate([steps, [rest if periodic else steps[-1]]])
    return (before + after) / 2


def cell_areas(latitudes: Array, longitudes: Array) -> Array:
    """Areas of grid cells on the unit sphere, (n, m); a global grid sums to 4 pi.

    Args:
        latitudes: of the row centres, in degrees, (n,), rising or falling.
        longitudes: of the column centres, in degrees, (m,).
    """
    rows = np.abs(np.diff(np.sin(np.radians(latitude_edges(latitudes)))))
    return rows[:, None] * np.radians(longitude_widths(longitudes))[None]


def area_weights(areas: Array) -> Array:
    """Areas scaled to a mean of 1, float32."""
    return (areas / areas.mean()).astype(np.float32)


@dataclass(frozen=True, eq=False)
class BlockMeans:
    """Conservative coarsening to blocks of ``factor`` cells a side; the last may be smaller.

    Attributes:
        areas: of the cells, (n, m).
        factor: cells along each side of a block.
    """

    areas: Array
    factor: int

    def __call__(self, values: Array) -> Array:
        """Area-weighted means of blocks, on the fine grid: each cell has the mean of its block.

        The integral over each block is conserved (first-order conservative; Jones 1999, Mon.
        Weather Rev. 127: 2204-2210). Cells without data are left out; a block without any data is
        missing.

        Args:
            values: (..., n, m), NaN where missing.
        """
        known = np.isfinite(values)
        areas = np.where(known, self.areas, 0.0)
        sums = self._sums(np.where(known, values, 0.0) * areas)
        share = self._sums(areas)
        with np.errstate(invalid="ignore", divide="ignore"):
            means = np.where(share > 0, sums / share, np.nan)
        rows, columns = (np.arange(n) // self.factor for n in self.areas.shape)
        return means[..., rows[:, None], columns[None]].astype(np.float32)

    def _sums(self, values: Array) -> Array:
        for axis in (-2, -1):
            starts = np.arange(0, values.shape[axis], self.factor)
            values = np.add.reduceat(values, starts, axis=axis)
        return values


@dataclass(frozen=True, eq=False)
class Interpolation:
    """Bilinear interpolation from one latitude-longitude grid to another.

    Global longitudes are periodic; regional ones may have another origin than the target's.
    Targets beyond the first or last row or column get its value; `outside` finds those beyond the
    source cells. Only neighbours with data are used.

    Attributes:
        rows, columns: indices of the two source rows (columns) around each target, (n, 2).
        row_shares, column_shares: their weights, (n, 2).
    """

    rows: Array
    row_shares: Array
    columns: Array
    column_shares: Array

    @classmethod
    def grids(cls, source: tuple[Array, Array], target: tuple[Array, Array]) -> Interpolation:
        """From (latitudes, longitudes) to (latitudes, longitudes), in degrees."""
        rows = _neighbours(source[0], target[0], None)
        if _is_global(source[1]):
            return cls(*rows, *_neighbours(source[1], target[1], CIRCLE))
        return cls(*rows, *_neighbours(*_unwrapped(source[1], target[1]), None))

    def __call__(self, values: Array) -> Array:
        """Source (..., n, m) to target (..., N, M), float32, NaN where none of four has data."""
        total = weight = np.zeros(())
        for i in range(2):
            for j in range(2):
                part = values[..., self.rows[:, i, None], self.columns[None, :, j]]
                share = self.row_shares[:, i, None] * self.column_shares[None, :, j]
                share = np.where(np.isfinite(part), share, 0.0)
                total = total + share * np.nan_to_num(part)
                weight = weight + share
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(weight > 1e-6, total / weight, np.nan).astype(np.float32)


def outside(source: tuple[Array, Array], target: tuple[Array, Array]) -> tuple[Array, Array]:
    """Rows and columns of a target grid outside the cells of a source grid, (n,) and (m,) bool.

    Args:
        source: latitudes and longitudes of the source; cells reach half a step to each side, or to
            a near pole.
        target: latitudes (n,) and longitudes (m,).
    """
    edges, rows = latitude_edges(source[0]), np.asarray(target[0], np.float64)
    beyond = (rows < edges.min() - ROUNDING) | (rows > edges.max() + ROUNDING)
    if _is_global(source[1]):
        return beyond, np.zeros(len(target[1]), bool)
    columns, wanted = _unwrapped(source[1], target[1])
    halves = longitude_widths(columns) / 2
    low, high = (columns - halves).min(), (columns + halves).max()
    return beyond, (wanted < low - ROUNDING) | (wanted > high + ROUNDING)


def _is_global(longitudes: Array) -> bool:
    return bool(abs(longitude_widths(longitudes).sum() - CIRCLE) < 1e-3)


def _unwrapped(source: Array, target: Array) -> tuple[Array, Array]:
    """Regional longitudes unwrapped, and target longitudes within 180 degrees of their middle."""
    columns = np.unwrap(np.asarray(source, np.float64), period=CIRCLE)
    middle = (columns.min() + columns.max()) / 2
    away = (np.asarray(target, np.float64) - middle + CIRCLE / 2) % CIRCLE - CIRCLE / 2
    return columns, middle + away


def _neighbours(source: Array, target: Array, period: float | None) -> tuple[Array, Array]:
    """The two source entries around each target, and their weights."""
    centres = np.asarray(source, np.float64)
    wanted = np.asarray(target, np.float64)
    if period is not None:
        centres = centres % period
        wanted = wanted % period
    order = np.argsort(centres)
    points = centres[order]
    if period is not None:  # one more on each side
        order = np.concatenate([order[-1:], order, order[:1]])
        points = np.concatenate([[points[-1] - period], points, [points[0] + period]])
    if len(points) == 1:
        zeros = np.zeros((len(wanted), 2), np.int64)
        return zeros, np.tile([1.0, 0.0], (len(wanted), 1))
    right = np.clip(np.searchsorted(points, wanted), 1, len(points) - 1)
    share = (wanted - points[right - 1]) / (points[right] - points[right - 1])
    share = np.clip(share, 0.0, 1.0)
    return (
        np.stack([order[right - 1], order[right]], axis=1),
        np.stack([1 - share, share], axis=1),
    )
