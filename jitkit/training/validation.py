"""Validation loss per time bin, on fixed noise, and the training loss per time bin."""

from __future__ import annotations

from math import erf, log, sqrt

import torch
from torch import Tensor

from jitkit.data import validation_batches
from jitkit.diffusion.denoiser import Denoiser
from jitkit.domain import Domain
from jitkit.utils.distributed import ALONE, Team
from jitkit.utils.seeding import mix

BINS = 10  # of t


@torch.no_grad()
def validation_loss(
    denoiser: Denoiser, domain: Domain, most: int, batch_size: int, *, team: Team = ALONE
) -> list[float] | None:
    """Validation loss in each bin of t on fixed noise, (BINS,); None without validation items.

    Comparable between runs of any noise scale s and any training loss: bins are of the t' with the
    same signal-to-noise ratio at unit noise, t' = t / (t + s (1 - t)), and the squared error of the
    clean data is weighted by 1 / (1 - t')², which gives the v-loss at unit noise.

    The batches are split over the ranks; every rank calls this and gets the result.
    """
    totals = torch.zeros(BINS + 1, dtype=torch.float64)  # sum of each bin, and number of items
    scale = denoiser.diffusion.noise_scale
    full = (len(denoiser.layout.channels), *denoiser.layout.grid)
    batches = validation_batches(
        domain, max_items=most, batch_size=batch_size, rank=team.rank, world=team.world
    )
    for indices, batch, mine in batches:
        batch = batch.to(denoiser.device)
        crop = (slice(None), slice(None), *(slice(size) for size in batch.x.shape[2:]))
        totals[BINS] += len(indices) * mine
        for k in range(BINS):
            unit = (k + 0.5) / BINS
            draws = [  # on the full grid, so that padding does not change the noise
                torch.randn(full, generator=torch.Generator().manual_seed(mix("held out", i, k)))
                for i in indices
            ]
            eps = torch.stack(draws)[crop].to(denoiser.device) * scale
            t = torch.full((len(indices),), scale * unit / (1 - unit + scale * unit))
            t = t.to(eps.device)
            losses = denoiser.losses(batch.x, eps, t, batch.conditioning, loss="x")
            totals[k] += float(losses.sum()) / (1 - unit) ** 2 * mine
    totals = team.all_reduce(totals)
    return (totals[:BINS] / totals[BINS]).tolist() if totals[BINS] else None


def bin_weights() -> list[float]:
    """Probability of each bin of t under the paper's logit-normal(-0.8, 0.8), (BINS,)."""

    def cdf(t: float) -> float:
        if t in (0.0, 1.0):
            return t
        return (1 + erf((log(t / (1 - t)) + 0.8) / 0.8 / sqrt(2))) / 2

    return [cdf((k + 1) / BINS) - cdf(k / BINS) for k in range(BINS)]


def loss_by_bin(losses: Tensor, t: Tensor) -> list[float | None]:
    """Mean loss of the samples in each bin of t, (BINS,); None for an empty bin."""
    bins = (t * BINS).long().clamp(0, BINS - 1)
    sums = torch.zeros(BINS, device=t.device).index_add_(0, bins, losses).tolist()
    counts = torch.bincount(bins, minlength=BINS).tolist()
    return [s / n if n else None for s, n in zip(sums, counts, strict=True)]
