"""The linear constraint of `Layout.centred`: groups of channels whose mean over a sample is zero.

It stands for data that mean the same wherever they lie: without the mean, there is nothing left to
learn of the place. All that a sampler adds up must obey it then, noise included, or samples drift
into a space that the network has never seen (Hoogeboom et al. 2022, arXiv:2203.17003, section 3).
"""

from __future__ import annotations

import torch
from torch import Tensor

from jitkit.fields import Layout


def membership(layout: Layout) -> Tensor | None:
    """Which channels are centred together, (groups, C) of 0 and 1; None without a constraint."""
    if not layout.centred:
        return None
    rows = [[float(name in group) for name in layout.channels] for group in layout.centred]
    return torch.tensor(rows)


def centre(values: Tensor, groups: Tensor | None, mask: Tensor | None = None) -> Tensor:
    """The nearest values that obey the constraint: each group without its mean over a sample.

    It is an orthogonal projection of the observed cells; others are left as they are.

    Args:
        values: (B, C, X1..Xn).
        groups: from `membership`; None leaves values alone.
        mask: (B, C or 1, X1..Xn) bool, True where there are data; None means everywhere.
    """
    if groups is None:
        return values
    cells = values.flatten(2)  # (B, C, X)
    seen = torch.ones_like(cells) if mask is None else mask.expand_as(values).flatten(2).to(cells)
    kept = cells if mask is None else torch.where(seen > 0, cells, 0.0)
    # not by products of matrices, which a GPU may round to 10 bits
    sums, counts = ((x.sum(dim=2).unsqueeze(1) * groups).sum(dim=2) for x in (kept, seen))
    means = sums / counts.clamp_min(1)  # (B, groups)
    shift = (means.unsqueeze(2) * groups).sum(dim=1)  # (B, C), zero for channels of no group
    return values - (shift.unsqueeze(2) * seen).reshape(values.shape)
