"""Measures that several kinds of data share; numbers in, a number out."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def frechet(a: Array, b: Array) -> float:
    """Fréchet distance of Gaussians fitted to two sets: |m - n|² + tr(C + D - 2 (C D)^½).

    Dowson & Landau 1982; the FID (Heusel et al. 2017, arXiv:1706.08500) is this on features of a
    network. (C D)^½ has the trace of (C^½ D C^½)^½, which is symmetric.

    Args:
        a: (N, D), the first set.
        b: (M, D), the second.
    """
    shift = a.mean(axis=0) - b.mean(axis=0)
    cov_a, cov_b = (np.cov(x, rowvar=False, bias=True) for x in (a, b))
    root = _sqrt(cov_a)
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    return max(0.0, float(shift @ shift + np.trace(cov_a) + np.trace(cov_b) - 2 * cross))


def _sqrt(cov: Array) -> Array:
    """The symmetric square root of a covariance."""
    values, vectors = np.linalg.eigh(cov)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T
