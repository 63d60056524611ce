"""Zero-mean (translation-invariance) constraint of `Layout.centred` on groups of channels.

The mean of each group over a sample is zero. This suits data whose meaning does not depend on
absolute position: without the mean there is no position to learn. Everything a sampler adds must
obey the constraint, noise included, or samples drift out of the subspace that the network was
trained on (Hoogeboom et al. 2022, arXiv:2203.17003, section 3).
"""

from __future__ import annotations

import torch
from torch import Tensor

from jitkit.fields import Layout


def membership(layout: Layout) -> Tensor | None:
    """Membership of channels in groups, (groups, C) of 0 and 1; None without a constraint."""
    if not layout.centred:
        return None
    rows = [[float(name in group) for name in layout.channels] for group in layout.centred]
    return torch.tensor(rows)


def centre(values: Tensor, groups: Tensor | None, mask: Tensor | None = None) -> Tensor:
    """Project onto the constraint: subtract each group's mean over a sample.

    An orthogonal projection of the observed cells; others are unchanged.

    Args:
        values: (B, C, X1..Xn).
        groups: from `membership`; None returns ``values``.
        mask: (B, C or 1, X1..Xn) bool, True where there are data; None means everywhere.
    """
    if groups is None:
        return values
    cells = values.flatten(2)  # (B, C, X)
    seen = torch.ones_like(cells) if mask is None else mask.expand_as(values).flatten(2).to(cells)
    kept = cells if mask is None else torch.where(seen > 0, cells, 0.0)
    # no matrix products, which a GPU may round to 10 bits
    sums, counts = ((x.sum(dim=2).unsqueeze(1) * groups).sum(dim=2) for x in (kept, seen))
    means = sums / counts.clamp_min(1)  # (B, groups)
    shift = (means.unsqueeze(2) * groups).sum(dim=1)  # (B, C), zero for channels without a group
    return values - (shift.unsqueeze(2) * seen).reshape(values.shape)
