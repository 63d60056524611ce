"""Rotations of points in space, shared by the kinds of data that mean the same however they lie."""

from __future__ import annotations

import numpy as np

from jitkit.utils.types import Array


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


def along_axes(points: Array) -> Array:
    """Points (N, 3) about their mean, along their principal axes, the longest first.

    They keep their hand: a helix is not drawn as its mirror image.
    """
    about = points - points.mean(axis=0)
    _, axes = np.linalg.eigh(about.T @ about)
    axes = axes[:, ::-1].copy()
    axes[:, 2] *= np.sign(np.linalg.det(axes))
    return about @ axes


def superposed(moving: Array, fixed: Array, weights: Array | None = None) -> Array:
    """Points turned and shifted so that they lie as near to others as they can (Kabsch 1976).

    Args:
        moving: (..., N, 3).
        fixed: (N, 3), to which they belong one by one.
        weights: what each counts for, (N,); all alike where not given.

    Returns:
        (..., N, 3) float64, with the least weighted sum of squared distances that proper rotations
        and shifts can give.
    """
    moving, fixed = np.asarray(moving, np.float64), np.asarray(fixed, np.float64)
    share = np.ones(len(fixed)) if weights is None else np.asarray(weights, np.float64)
    share = (share / share.sum())[:, None]
    centre = (share * fixed).sum(axis=0)
    moving = moving - (share * moving).sum(axis=-2, keepdims=True)
    u, _, vt = np.linalg.svd(np.swapaxes(moving, -1, -2) @ (share * (fixed - centre)))
    signs = np.ones(u.shape[:-1])
    signs[..., 2] = np.sign(np.linalg.det(u) * np.linalg.det(vt))  # no mirror images
    return moving @ ((u * signs[..., None, :]) @ vt) + centre
