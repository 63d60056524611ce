"""Maps of the whole globe without a mapping library: the Equal Earth projection."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from jitkit.utils.types import Array

POLYNOMIAL = (1.340264, -0.081106, 0.000893, 0.003796)  # of θ, θ³, θ⁷, θ⁹
GLOBE = 355.0  # degrees of longitude from which a grid goes round


def equal_earth(latitude: Array, longitude: Array) -> tuple[Array, Array]:
    """Places on a map on which areas are true, in radii of the globe.

    The projection of Šavrič, Patterson & Jenny 2018, doi:10.1080/13658816.2018.1504949.

    Args:
        latitude: degrees north.
        longitude: degrees east of the middle of the map, of the same shape.
    """
    a1, a2, a3, a4 = POLYNOMIAL
    theta = np.arcsin(np.sqrt(3) / 2 * np.sin(np.radians(latitude)))
    square = theta**2
    stretch = a1 + 3 * a2 * square + square**3 * (7 * a3 + 9 * a4 * square)
    x = 2 * np.radians(longitude) * np.cos(theta) / (np.sqrt(3) * stretch)
    y = theta * (a1 + a2 * square + square**3 * (a3 + a4 * square))
    return x, y


def edges(at: Array) -> Array:
    """Where cells begin and end: half-way between their middles, (n + 1,)."""
    if len(at) == 1:
        return np.array([at[0] - 0.5, at[0] + 0.5])
    between = (at[1:] + at[:-1]) / 2
    return np.concatenate([[1.5 * at[0] - 0.5 * at[1]], between, [1.5 * at[-1] - 0.5 * at[-2]]])


@dataclass(frozen=True, eq=False)
class Map:
    """How fields (latitude, longitude) are laid out on paper.

    Attributes:
        x, y: of the corners of cells, (rows + 1, columns + 1).
        middle_x, middle_y: of their middles, (rows, columns).
        order: columns of the field from left to right.
        outline: of the globe, (2, points); None for a part of it, which is drawn on degrees.
        aspect: height over width.
    """

    x: Array
    y: Array
    middle_x: Array
    middle_y: Array
    order: Array
    outline: Array | None
    aspect: float

    @classmethod
    def of(cls, latitude: Array, longitude: Array) -> Map:
        """Equal Earth for a whole globe, about Greenwich; degrees, as they are, for a part.

        Args:
            latitude: degrees north of the rows, rising or falling.
            longitude: degrees east of the columns, rising.
        """
        step = abs(float(longitude[1] - longitude[0])) if len(longitude) > 1 else 360.0
        whole = np.ptp(longitude) + step > GLOBE
        at = (longitude + 180) % 360 - 180 if whole else longitude
        order = np.argsort(at, kind="stable")
        sides, ends = edges(at[order]), np.clip(edges(latitude), -90, 90)
        up, across = np.meshgrid(ends, sides, indexing="ij")
        middle_up, middle_across = np.meshgrid(latitude, at[order], indexing="ij")
        if not whole:
            aspect = abs(float(np.ptp(ends) / np.ptp(sides)))
            return cls(across, up, middle_across, middle_up, order, None, aspect)
        center = (sides[0] + sides[-1]) / 2
        x, y = equal_earth(up, across - center)
        middle_x, middle_y = equal_earth(middle_up, middle_across - center)
        rim = np.linspace(-90, 90, 181)
        right = np.stack(equal_earth(rim, np.full(181, 180.0)))
        left = np.stack(equal_earth(rim[::-1], np.full(181, -180.0)))
        outline = np.concatenate([right, left, right[:, :1]], axis=1)
        aspect = float(np.ptp(outline[1]) / np.ptp(outline[0]))
        return cls(x, y, middle_x, middle_y, order, outline, aspect)
