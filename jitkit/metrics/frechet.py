"""Fréchet distance of Gaussians and Jensen-Shannon divergence of histograms, on NumPy arrays."""

from __future__ import annotations

import numpy as np

from jitkit.utils.types import Array


def frechet_distance(a: Array, b: Array) -> float:
    """Fréchet distance of Gaussians fitted to two sets of points.

    Args:
        a: (N, D), the first set.
        b: (M, D), the second.
    """
    cov_a, cov_b = (np.atleast_2d(np.cov(x, rowvar=False, bias=True)) for x in (a, b))
    return frechet_from_statistics(a.mean(axis=0), cov_a, b.mean(axis=0), cov_b)


def frechet_from_statistics(
    mean_a: Array, cov_a: Array, mean_b: Array, cov_b: Array, root_b: Array | None = None
) -> float:
    """Fréchet distance of two Gaussians: |m - n|² + tr(C + D - 2 (C D)^½).

    Dowson & Landau 1982. On network features this is the FID (Heusel et al. 2017,
    arXiv:1706.08500). (C D)^½ has the same trace as the symmetric (D^½ C D^½)^½.

    Args:
        mean_a, mean_b: (D,).
        cov_a, cov_b: (D, D).
        root_b: the symmetric square root of ``cov_b``, if already known.
    """
    shift = mean_a - mean_b
    root = symmetric_sqrt(cov_b) if root_b is None else root_b
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_a @ root).clip(0)).sum()
    return max(0.0, float(shift @ shift + np.trace(cov_a) + np.trace(cov_b) - 2 * cross))


def symmetric_sqrt(cov: Array) -> Array:
    """The symmetric square root of a covariance."""
    values, vectors = np.linalg.eigh(cov)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def jensen_shannon(p: Array, q: Array) -> float:
    """Jensen-Shannon divergence of two histograms of counts, in bits; NaN if one is empty.

    >>> jensen_shannon(np.array([2, 2, 0]), np.array([0, 0, 3])), jensen_shannon(*[np.ones(3)] * 2)
    (1.0, 0.0)
    """
    if not p.sum() or not q.sum():
        return float("nan")
    p, q = p / p.sum(), q / q.sum()
    middle = (p + q) / 2
    parts = [np.where(x > 0, x * np.log2(np.where(x > 0, x, 1) / middle.clip(1e-300)), 0.0)
             for x in (p, q)]  # fmt: skip
    return max(0.0, float(sum(part.sum() for part in parts)) / 2)
