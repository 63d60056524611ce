"""Map projection of global fields: Equal Earth, without a mapping library."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jitkit.utils.types import Array

POLYNOMIAL = (1.340264, -0.081106, 0.000893, 0.003796)  # of θ, θ³, θ⁷, θ⁹
GLOBE = 355.0  # degrees of longitude from which a grid is global


def equal_earth(latitude: Array, longitude: Array) -> tuple[Array, Array]:
    """Positions on an equal-area map, in radii of the globe.

    The projection of Šavrič, Patterson & Jenny 2018, doi:10.1080/13658816.2018.1504949.

    Args:
        latitude: degrees north.
        longitude: degrees east of the centre of the map, of the same shape.
    """
    a1, a2, a3, a4 = POLYNOMIAL
    theta = np.arcsin(np.sqrt(3) / 2 * np.sin(np.radians(latitude)))
    square = theta**2
    stretch = a1 + 3 * a2 * square + square**3 * (7 * a3 + 9 * a4 * square)
    x = 2 * np.radians(longitude) * np.cos(theta) / (np.sqrt(3) * stretch)
    y = theta * (a1 + a2 * square + square**3 * (a3 + a4 * square))
    return x, y


def cell_edges(at: Array) -> Array:
    """Edges of cells: half-way between their centres, (n + 1,)."""
    if len(at) == 1:
        return np.array([at[0] - 0.5, at[0] + 0.5])
    between = (at[1:] + at[:-1]) / 2
    return np.concatenate([[1.5 * at[0] - 0.5 * at[1]], between, [1.5 * at[-1] - 0.5 * at[-2]]])


@dataclass(frozen=True, eq=False)
class MapProjection:
    """Layout of fields (latitude, longitude) on a map.

    Attributes:
        x, y: coordinates of the corners of cells, (rows + 1, columns + 1).
        centre_x, centre_y: coordinates of their centres, (rows, columns).
        order: columns of the field from left to right.
        outline: outline of the globe, (2, points); None for a region, which is drawn in degrees.
        aspect: height over width.
    """

    x: Array
    y: Array
    centre_x: Array
    centre_y: Array
    order: Array
    outline: Array | None
    aspect: float

    @classmethod
    def of(cls, latitude: Array, longitude: Array) -> MapProjection:
        """Equal Earth centred on Greenwich for a global grid; plain degrees for a region.

        Args:
            latitude: degrees north of the rows, ascending or descending.
            longitude: degrees east of the columns, ascending.
        """
        step = abs(float(longitude[1] - longitude[0])) if len(longitude) > 1 else 360.0
        is_global = np.ptp(longitude) + step > GLOBE
        at = (longitude + 180) % 360 - 180 if is_global else longitude
        order = np.argsort(at, kind="stable")
        sides, ends = cell_edges(at[order]), np.clip(cell_edges(latitude), -90, 90)
        up, across = np.meshgrid(ends, sides, indexing="ij")
        centre_up, centre_across = np.meshgrid(latitude, at[order], indexing="ij")
        if not is_global:
            aspect = abs(float(np.ptp(ends) / np.ptp(sides)))
            return cls(across, up, centre_across, centre_up, order, None, aspect)
        center = (sides[0] + sides[-1]) / 2
        x, y = equal_earth(up, across - center)
        centre_x, centre_y = equal_earth(centre_up, centre_across - center)
        rim = np.linspace(-90, 90, 181)
        right = np.stack(equal_earth(rim, np.full(181, 180.0)))
        left = np.stack(equal_earth(rim[::-1], np.full(181, -180.0)))
        outline = np.concatenate([right, left, right[:, :1]], axis=1)
        aspect = float(np.ptp(outline[1]) / np.ptp(outline[0]))
        return cls(x, y, centre_x, centre_y, order, outline, aspect)
