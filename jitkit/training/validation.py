"""The held-out loss, on noise that never changes, and the loss for each bin of t."""

from __future__ import annotations

from math import erf, log, sqrt

import torch
from torch import Tensor

from jitkit.data import held_out
from jitkit.diffusion.denoiser import Denoiser
from jitkit.domain import Domain
from jitkit.utils.distributed import ALONE, Team
from jitkit.utils.seeding import mix

BINS = 10  # of t


@torch.no_grad()
def held_out_loss(
    denoiser: Denoiser, domain: Domain, most: int, batch_size: int, *, team: Team = ALONE
) -> list[float] | None:
    """Loss on validation items for each bin of t, on noise that never changes; None without items.

    It can be compared between runs: bins are of the t that the same signal-to-noise ratio has
    under unit noise, t' = t / (t + s (1 - t)), and the error is that of the clean data times
    1 / (1 - t')², which is the v-loss of a run with unit noise, whatever the recipe's own.

    Processes of a team take the batches in turn; all of them ask, and all of them know.
    """
    totals = torch.zeros(BINS + 1, dtype=torch.float64)  # the sum for each bin, and the items
    scale = denoiser.diffusion.noise_scale
    full = (len(denoiser.layout.channels), *denoiser.layout.grid)
    batches = held_out(domain, most=most, batch_size=batch_size, rank=team.rank, world=team.world)
    for indices, batch, mine in batches:
        batch = batch.to(denoiser.device)
        own = (slice(None), slice(None), *(slice(size) for size in batch.x.shape[2:]))
        totals[BINS] += len(indices) * mine
        for k in range(BINS):
            unit = (k + 0.5) / BINS
            draws = [  # on the full grid, so that what an item is padded with changes nothing
                torch.randn(full, generator=torch.Generator().manual_seed(mix("held out", i, k)))
                for i in indices
            ]
            eps = torch.stack(draws)[own].to(denoiser.device) * scale
            t = torch.full((len(indices),), scale * unit / (1 - unit + scale * unit))
            losses = denoiser.losses(
                batch.x, eps, t.to(eps.device), batch.cond, batch.mask, batch.coords, loss="x"
            )
            totals[k] += float(losses.sum()) / (1 - unit) ** 2 * mine
    totals = team.all_reduce(totals)
    return (totals[:BINS] / totals[BINS]).tolist() if totals[BINS] else None


def bin_weights() -> list[float]:
    """Share of the paper's times (logit-normal, -0.8, 0.8) in each bin of t."""

    def below(t: float) -> float:
        if t in (0.0, 1.0):
            return t
        return (1 + erf((log(t / (1 - t)) + 0.8) / 0.8 / sqrt(2))) / 2

    return [below((k + 1) / BINS) - below(k / BINS) for k in range(BINS)]


def by_bin(losses: Tensor, t: Tensor) -> list[float | None]:
    """Mean loss of the samples in each bin of t; None where there are none."""
    bins = (t * BINS).long().clamp(0, BINS - 1)
    sums = torch.zeros(BINS, device=t.device).index_add_(0, bins, losses).tolist()
    counts = torch.bincount(bins, minlength=BINS).tolist()
    return [s / n if n else None for s, n in zip(sums, counts, strict=True)]
