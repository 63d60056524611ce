"""Rotations of points in 3D: random (Haar), to principal axes, and superposition (Kabsch)."""

from __future__ import annotations

import numpy as np

from jitkit.utils.types import Array


def random_rotation(rng: np.random.Generator) -> Array:
    """A uniformly random rotation (Haar measure of SO(3)), (3, 3) float64.

    A normalized quaternion of four normal variates is uniformly distributed (Shoemake 1992,
    Graphics Gems III, "Uniform random rotations").
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


def align_to_principal_axes(points: Array) -> Array:
    """Points (N, 3) relative to their mean, along their principal axes, the longest first.

    Handedness is preserved: a helix is never drawn as its mirror image.
    """
    centred = points - points.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, ::-1].copy()
    axes[:, 2] *= np.sign(np.linalg.det(axes))
    return centred @ axes


def superpose(moving: Array, fixed: Array, weights: Array | None = None) -> Array:
    """Points rotated and shifted to match others in the least-squares sense (Kabsch 1976).

    Args:
        moving: (..., N, 3).
        fixed: (N, 3), the matching points in the same order.
        weights: weights of the points, (N,); equal by default.

    Returns:
        (..., N, 3) float64, with the least weighted sum of squared distances over all proper
        rotations and shifts.
    """
    moving, fixed = np.asarray(moving, np.float64), np.asarray(fixed, np.float64)
    weight = np.ones(len(fixed)) if weights is None else np.asarray(weights, np.float64)
    weight = (weight / weight.sum())[:, None]
    centre = (weight * fixed).sum(axis=0)
    moving = moving - (weight * moving).sum(axis=-2, keepdims=True)
    u, _, vt = np.linalg.svd(np.swapaxes(moving, -1, -2) @ (weight * (fixed - centre)))
    signs = np.ones(u.shape[:-1])
    signs[..., 2] = np.sign(np.linalg.det(u) * np.linalg.det(vt))  # excludes reflections
    return moving @ ((u * signs[..., None, :]) @ vt) + centre
