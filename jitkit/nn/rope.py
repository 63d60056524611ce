"""Position embeddings: rotary embedding (RoPE) in attention, sine-cosine embedding of the tokens.

Both work for any number of axes. A `line` axis rotates by position, a `circle` axis by integer
harmonics of its length (no seam), and a `set` axis not at all. With two `line` axes both are
exactly those of JiT (Li & He 2025, arXiv:2511.13720).

Channels that hold positions in space (`Layout.positions`) add a rotary embedding per sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log

import torch
from torch import Tensor

from jitkit.fields import Axis

BASE = 10_000.0  # Su et al. 2021, arXiv:2104.09864
FREQUENCY_RANGE = (
    0.3,
    12.0,
)  # radians per unit of position: from the scale of the sample to a twelfth of a unit


def frequencies_per_axis(total: int, axes: Sequence[Axis]) -> list[int]:
    """Number of frequencies of each axis out of ``total``: equal, the first axes get the remainder.

    A `set` axis gets none.

    >>> axes = [Axis("t", 8), Axis("y", 8), Axis("x", 8), Axis("point", 9, kind="set")]
    >>> frequencies_per_axis(32, axes)
    [11, 11, 10, 0]
    """
    ordered = [i for i, axis in enumerate(axes) if axis.kind != "set"]
    counts = [0] * len(axes)
    for rank, i in enumerate(ordered):
        counts[i] = total // len(ordered) + (rank < total % len(ordered))
    return counts


def axis_frequencies(axis: Axis, count: int) -> Tensor:
    """Angular frequencies of an axis in radians per patch, (count,) float64.

    A line has 10000^(-k / count). A circle of N patches has 2 pi h / N with integers h from 1 to
    N / 2, evenly spaced on a logarithmic scale, so a rotation by the full circle is the identity.
    """
    k = torch.arange(count, dtype=torch.float64)
    if axis.kind != "circle":
        return torch.exp(-log(BASE) * k / max(count, 1))
    length = axis.size / axis.patch
    top = max(length / 2, 1.0)
    exponents = torch.linspace(0, 1, count, dtype=torch.float64).flip(0)  # a single one is h = 1
    harmonics = torch.exp(log(top) * exponents).round().clamp_min(1)
    return 2 * torch.pi * harmonics / length


def cos_sin(angle: Tensor) -> Tensor:
    """Angles (..., P) -> cosines and sines, (..., P, 2) float32, the input of `rotate`."""
    return torch.stack((angle.cos(), angle.sin()), dim=-1).float()


def rotary_embedding(coords: Tensor, axes: Sequence[Axis], head_dim: int) -> Tensor:
    """Rotary embedding of positions: (..., L, n) -> (..., L, head_dim // 2, 2) float32.

    The feature pairs of a head are divided among the axes in order; an odd last feature of a head
    is not rotated.
    """
    counts = frequencies_per_axis(head_dim // 2, axes)
    angles = [
        coords[..., i, None].double() * axis_frequencies(axis, count).to(coords.device)
        for i, (axis, count) in enumerate(zip(axes, counts, strict=True))
    ]
    angle = torch.cat(angles, dim=-1)
    if not any(counts):  # only sets: no rotation
        angle = coords.new_zeros(*coords.shape[:-1], head_dim // 2)
    return cos_sin(angle)


def position_frequencies(heads: int, pairs: int, dims: int) -> Tensor:
    """Frequency vectors for rotary embedding of positions in space, (heads, pairs, dims) float32.

    In every head, directions are spread evenly over the sphere and lengths geometrically over
    `FREQUENCY_RANGE`. As with random Fourier features (Rahimi & Recht 2007), sums over them
    approximate any function of relative position, with no preferred direction.
    """
    count = heads * pairs
    # Kronecker sequence from powers of the root of g^(dims + 1) = g + 1, mapped to normal deviates
    root = 2.0
    for _ in range(64):
        root = (1 + root) ** (1 / (dims + 1))
    steps = root ** -torch.arange(1, dims + 1, dtype=torch.float64)
    even = (0.5 + torch.arange(1, count + 1, dtype=torch.float64)[:, None] * steps) % 1
    directions = torch.nn.functional.normalize(torch.special.ndtri(even), dim=1)
    lowest, highest = FREQUENCY_RANGE
    scale = torch.linspace(0, 1, count, dtype=torch.float64)[:, None]
    lengths = lowest * (highest / lowest) ** scale
    return (directions * lengths).float().reshape(pairs, heads, dims).transpose(0, 1).contiguous()


def rotary_of_positions(positions: Tensor, frequencies: Tensor) -> Tensor:
    """Rotary embedding by the angles w . r: positions (B, L, n), w (H, P, n) -> (B, H, L, P, 2)."""
    # no matrix product, which autocast and a GPU may round to 8 or 10 bits
    products = positions.float()[:, None, :, None] * frequencies[:, None]  # (B, H, L, P, n)
    return cos_sin(products.sum(dim=-1))


def rotate(x: Tensor, rotary: Tensor, *, back: bool = False) -> Tensor:
    """Rotate neighbouring pairs of features: (..., L, head_dim) by (..., L, head_dim // 2, 2).

    Uses complex multiplication in eager float32; `torch.compile` does not fuse complex numbers.

    Args:
        x: features.
        rotary: from `rotary_embedding`.
        back: rotate by the negative angles.
    """
    pairs = rotary.shape[-2]
    if 2 * pairs == x.shape[-1] and x.dtype == torch.float32 and not torch.compiler.is_compiling():
        pair = torch.view_as_complex(x.reshape(*x.shape[:-1], pairs, 2))
        rotation = torch.view_as_complex(rotary)
        return torch.view_as_real(pair * (rotation.conj() if back else rotation)).flatten(-2)
    cos, sin = rotary.unbind(-1)
    sign = -1 if back else 1
    even, odd = x[..., : 2 * pairs].reshape(*x.shape[:-1], pairs, 2).unbind(-1)
    first = torch.sub(even * cos, odd * sin, alpha=sign)
    second = torch.add(odd * cos, even * sin, alpha=sign)
    rotated = torch.stack((first, second), dim=-1).flatten(-2)
    return rotated if 2 * pairs == x.shape[-1] else torch.cat((rotated, x[..., 2 * pairs :]), -1)


def sincos_embedding(coords: Tensor, axes: Sequence[Axis], width: int) -> Tensor:
    """Fixed sine-cosine embedding added to the tokens: (..., L, n) -> (..., L, width) float32.

    Each axis, the last one first, gets its part of the width as [sines, cosines]; unused features
    are zero.
    """
    order = list(range(len(axes)))[::-1]
    counts = frequencies_per_axis(width // 2, [axes[i] for i in order])
    parts = []
    for i, count in zip(order, counts, strict=True):
        angle = coords[..., i, None].double() * axis_frequencies(axes[i], count).to(coords.device)
        parts += [angle.sin(), angle.cos()]
    embedding = torch.cat(parts, dim=-1).float()
    return torch.nn.functional.pad(embedding, (0, width - embedding.shape[-1]))
