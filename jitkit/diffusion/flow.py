"""Flow matching: the linear (rectified-flow) path, its x-, eps- and v-parameterizations, losses.

The path is z = t x + (1 - t) eps with t = 0 noise and t = 1 data, eps ~ N(0, s^2); its velocity is
v = x - eps = (x - z) / (1 - t). Prediction and loss may each be in x, eps or v: nine pairs (Li & He
2025, arXiv:2511.13720, table 1) and one table of conversions. Divisors 1 - t and t are clamped at
``t_eps``. Times t are drawn from a logit-normal or a uniform distribution.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Literal

import torch
from torch import Tensor

Space = Literal["x", "eps", "v"]


def _like(t: Tensor, z: Tensor) -> Tensor:
    return t.reshape(-1, *[1] * (z.ndim - 1))


def interpolate(x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """Noisy data at time ``t`` of the path: z = t x + (1 - t) eps.

    Args:
        x: clean data, (B, C, X1..Xn).
        eps: noise, already scaled, same shape.
        t: times in [0, 1], (B,).
    """
    t = _like(t, x)
    return t * x + (1 - t) * eps


def velocity(x: Tensor, z: Tensor, t: Tensor, *, t_eps: float = 0.05) -> Tensor:
    """Velocity from ``z`` at time ``t`` to ``x`` at time 1: v = (x - z) / (1 - t)."""
    return convert(x, z, t, source="x", target="v", t_eps=t_eps)


# (source, target) -> conversion at z; divisors a = max(1 - t, t_eps) and b = max(t, t_eps)
_CONVERSIONS: dict[tuple[Space, Space], Callable[..., Tensor]] = {
    ("x", "eps"): lambda x, z, t, a, b: (z - t * x) / a,
    ("x", "v"): lambda x, z, t, a, b: (x - z) / a,
    ("eps", "x"): lambda eps, z, t, a, b: (z - (1 - t) * eps) / b,
    ("eps", "v"): lambda eps, z, t, a, b: (z - eps) / b,
    ("v", "x"): lambda v, z, t, a, b: z + (1 - t) * v,
    ("v", "eps"): lambda v, z, t, a, b: z - t * v,
}


def convert(
    value: Tensor, z: Tensor, t: Tensor, *, source: Space, target: Space, t_eps: float = 0.05
) -> Tensor:
    """Convert a prediction at ``z`` and time ``t`` between x, eps and v.

    Args:
        value: prediction in space ``source``, (B, C, X1..Xn).
        z: noisy data, same shape.
        t: times in [0, 1], (B,).
        t_eps: lower bound of the divisors 1 - t and t.
    """
    if source == target:
        return value
    t = _like(t, z)
    a, b = (1 - t).clamp_min(t_eps), t.clamp_min(t_eps)
    return _CONVERSIONS[source, target](value, z, t, a, b)


def squared_errors(
    predicted: Tensor,
    x: Tensor,
    eps: Tensor,
    t: Tensor,
    *,
    prediction: Space,
    loss: Space,
    t_eps: float = 0.05,
) -> Tensor:
    """Squared error of each cell in the space of the loss, (B, C, X1..Xn).

    The target goes through the same conversion as the prediction, so a perfect prediction has zero
    error even where the divisor is clamped: for x-prediction with v-loss the target is
    (x - z) / max(1 - t, t_eps), as in the official code.
    """
    z = interpolate(x, eps, t)
    true = {"x": x, "eps": eps, "v": x - eps}[prediction]
    output, target = (
        convert(value, z, t, source=prediction, target=loss, t_eps=t_eps)
        for value in (predicted, true)
    )
    return (output - target).square()


def mean_over_data(values: Tensor, mask: Tensor | None, weights: Tensor | None = None) -> Tensor:
    """Mean over each sample's observed cells: (B, C, X1..Xn) -> (B,).

    Args:
        values: per-cell values, such as squared errors.
        mask: (B, C or 1, X1..Xn) bool, True where there are data; None means everywhere.
        weights: weight of each cell, (X1..Xn), of mean 1; None: uniform.
    """
    if weights is not None:
        values = values * weights
    if mask is None:
        return values.flatten(1).mean(dim=1)
    mask = mask.expand_as(values)
    kept = torch.where(mask, values, 0.0).flatten(1)
    count = mask if weights is None else mask * weights
    total = count.flatten(1).sum(dim=1)
    return kept.sum(dim=1) / (total.clamp_min(1) if weights is None else total.clamp_min(1e-6))


def logit_normal_t(
    n: int, *, P_mean: float, P_std: float, generator: torch.Generator | None = None
) -> Tensor:
    """Logit-normal times: logit t ~ N(P_mean, P_std^2), (n,) float32 on the generator's device."""
    device = generator.device if generator else None
    return (torch.randn(n, generator=generator, device=device) * P_std + P_mean).sigmoid()


def uniform_t(n: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Uniform times on [0, 1), (n,) float32 on the generator's device."""
    device = generator.device if generator else None
    return torch.rand(n, generator=generator, device=device)


def auto_noise_scale(num_cells: int) -> float:
    """The paper's noise scale for a grid of ``num_cells``: side of a square / 256, at least 1.

    For a fixed number of tokens it keeps their signal-to-noise ratio constant as grids grow.

    >>> [auto_noise_scale(side * side) for side in (64, 256, 512, 1024)]
    [1.0, 1.0, 2.0, 4.0]
    """
    return max(1.0, sqrt(num_cells) / 256)
