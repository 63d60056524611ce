"""Positions of tokens: rotary embedding (RoPE) in attention, sine-cosine embedding on the tokens.

Both work for any number of axes. A `line` axis rotates by position, a `circle` axis by whole
harmonics of its length, so that it has no seam, and a `set` axis not at all. With two `line` axes
both are exactly those of JiT (Li & He 2025, arXiv:2511.13720).

Channels that hold positions in space (`Layout.positions`) rotate their tokens as well.
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
)  # radians per unit of places: from the whole sample to a twelfth of a unit


def share(total: int, axes: Sequence[Axis]) -> list[int]:
    """How many of ``total`` frequencies each axis gets: equal parts, the first axes one more.

    A `set` axis gets none.

    >>> share(32, [Axis("t", 8), Axis("y", 8), Axis("x", 8), Axis("point", 9, kind="set")])
    [11, 11, 10, 0]
    """
    ordered = [i for i, axis in enumerate(axes) if axis.kind != "set"]
    shares = [0] * len(axes)
    for rank, i in enumerate(ordered):
        shares[i] = total // len(ordered) + (rank < total % len(ordered))
    return shares


def frequencies(axis: Axis, count: int) -> Tensor:
    """Radians a patch for each of ``count`` rotations along an axis, (count,) float64.

    A line turns by 10000^(-k / count). A circle of N patches turns by 2 pi h / N for whole h from
    1 to N / 2, evenly spread on a logarithmic scale, so that going round it changes nothing.
    """
    k = torch.arange(count, dtype=torch.float64)
    if axis.kind != "circle":
        return torch.exp(-log(BASE) * k / max(count, 1))
    length = axis.size / axis.patch
    top = max(length / 2, 1.0)
    share_of_log = torch.linspace(0, 1, count, dtype=torch.float64).flip(0)  # one alone is the 1st
    harmonics = torch.exp(log(top) * share_of_log).round().clamp_min(1)
    return 2 * torch.pi * harmonics / length


def cos_sin(angle: Tensor) -> Tensor:
    """Angles (..., P) -> their cosines and sines, (..., P, 2) float32, as `rotate` takes them."""
    return torch.stack((angle.cos(), angle.sin()), dim=-1).float()


def rotary_embedding(coords: Tensor, axes: Sequence[Axis], head_dim: int) -> Tensor:
    """Rotary embedding of positions: (..., L, n) -> (..., L, head_dim // 2, 2) float32.

    The pairs of a head are shared out among the axes in their order; an odd last feature of a
    head is left alone.
    """
    counts = share(head_dim // 2, axes)
    angles = [
        coords[..., i, None].double() * frequencies(axis, count).to(coords.device)
        for i, (axis, count) in enumerate(zip(axes, counts, strict=True))
    ]
    angle = torch.cat(angles, dim=-1)
    if not any(counts):  # sets alone: nothing turns
        angle = coords.new_zeros(*coords.shape[:-1], head_dim // 2)
    return cos_sin(angle)


def position_frequencies(heads: int, pairs: int, dims: int) -> Tensor:
    """Wave vectors for rotary embedding of positions in space, (heads, pairs, dims) float32.

    Directions are spread evenly over the sphere and lengths geometrically over `FREQUENCY_RANGE`,
    in every head. Sums over such waves approximate any function of relative position, as random
    Fourier features do (Rahimi & Recht 2007), with no preferred direction.
    """
    count = heads * pairs
    # Kronecker's sequence on the powers of the root of g^(dims + 1) = g + 1, as normal deviates
    root = 2.0
    for _ in range(64):
        root = (1 + root) ** (1 / (dims + 1))
    steps = root ** -torch.arange(1, dims + 1, dtype=torch.float64)
    even = (0.5 + torch.arange(1, count + 1, dtype=torch.float64)[:, None] * steps) % 1
    directions = torch.nn.functional.normalize(torch.special.ndtri(even), dim=1)
    shortest, longest = FREQUENCY_RANGE
    scale = torch.linspace(0, 1, count, dtype=torch.float64)[:, None]
    lengths = shortest * (longest / shortest) ** scale
    return (directions * lengths).float().reshape(pairs, heads, dims).transpose(0, 1).contiguous()


def rotary_of_positions(positions: Tensor, frequencies: Tensor) -> Tensor:
    """Rotary embedding by the angles w . r: positions (B, L, n), w (H, P, n) -> (B, H, L, P, 2)."""
    # not by a product of matrices, which autocast and a GPU may round to 8 or 10 bits
    along = positions.float()[:, None, :, None] * frequencies[:, None]  # (B, H, L, P, n)
    return cos_sin(along.sum(dim=-1))


def rotate(x: Tensor, rotary: Tensor, *, back: bool = False) -> Tensor:
    """Rotate neighbouring pairs of features: (..., L, head_dim) by (..., L, head_dim // 2, 2).

    As one product of complex numbers, where these are at hand: `torch.compile` does not fuse them.

    Args:
        x: features.
        rotary: from `rotary_embedding`.
        back: rotate by the negative angles.
    """
    pairs = rotary.shape[-2]
    if 2 * pairs == x.shape[-1] and x.dtype == torch.float32 and not torch.compiler.is_compiling():
        pair = torch.view_as_complex(x.reshape(*x.shape[:-1], pairs, 2))
        by = torch.view_as_complex(rotary)
        return torch.view_as_real(pair * (by.conj() if back else by)).flatten(-2)
    cos, sin = rotary.unbind(-1)
    way = -1 if back else 1
    even, odd = x[..., : 2 * pairs].reshape(*x.shape[:-1], pairs, 2).unbind(-1)
    first = torch.sub(even * cos, odd * sin, alpha=way)
    second = torch.add(odd * cos, even * sin, alpha=way)
    turned = torch.stack((first, second), dim=-1).flatten(-2)
    return turned if 2 * pairs == x.shape[-1] else torch.cat((turned, x[..., 2 * pairs :]), -1)


def sincos(coords: Tensor, axes: Sequence[Axis], width: int) -> Tensor:
    """Fixed code that is added to the tokens: (..., L, n) -> (..., L, width) float32.

    Each axis, the last one first, gets its share of the width as [sines, cosines]; what the axes
    do not use is zero.
    """
    order = list(range(len(axes)))[::-1]
    counts = share(width // 2, [axes[i] for i in order])
    parts = []
    for i, count in zip(order, counts, strict=True):
        angle = coords[..., i, None].double() * frequencies(axes[i], count).to(coords.device)
        parts += [angle.sin(), angle.cos()]
    code = torch.cat(parts, dim=-1).float()
    return torch.nn.functional.pad(code, (0, width - code.shape[-1]))
