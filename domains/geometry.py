"""Rotations of points in space, shared by the kinds of data that mean the same however they lie."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def random_rotation(rng: np.random.Generator) -> Array:
    """A rotation drawn evenly from all of them (the Haar measure of SO(3)), (3, 3) float64.

    A quaternion of four normal numbers has no favourite direction (Shoemake 1992, Graphics Gems
    III, "Uniform random rotations").
    """
    w, x, y, z = _unit(rng.standard_normal(4))
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def _unit(vector: Array) -> Array:
    return vector / np.sqrt(vector @ vector)
