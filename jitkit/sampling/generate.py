"""From a trained model to items in the files that their field uses."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from jitkit.diffusion.denoiser import Denoiser
from jitkit.diffusion.guidance import check_guide
from jitkit.diffusion.sampler import fitting_batch, sample
from jitkit.fields import Field
from jitkit.runs.checkpoint import load
from jitkit.sampling.requests import Conditioning
from jitkit.sections import SampleSection
from jitkit.utils.distributed import ALONE, Team
from jitkit.utils.types import Array


def generate(
    denoiser: Denoiser,
    n: int,
    told: Conditioning,
    section: SampleSection,
    *,
    guide: Denoiser | None = None,
    first: int = 0,
    progress: bool = False,
    team: Team = ALONE,
) -> Iterator[Any]:
    """Items in native form, made batch by batch as they are asked for.

    Processes of a team make the batches in turn; all must ask, and rank 0 alone gets items.

    Args:
        denoiser: a model with its domain.
        n: how many.
        told: their conditions and masks, from `conditions_for`.
        section: section ``sample`` of a recipe.
        guide: the weaker model of autoguidance; the one that the section names where not given.
        first: index of the first sample.
        progress: show a bar for each batch on a terminal.
        team: the processes that share the work.

    Raises:
        CheckpointError, JitkitError: at once, as `guide_of`.
    """
    guide = guide or guide_of(denoiser, section)  # at once: before anybody makes a folder
    made = _made(denoiser, n, told, section, guide, progress, team, first)
    return (
        item
        for start, x in made
        for begin, values in filter(None, team.gather(None if x is None else (start, x)))
        for item in _decoded(denoiser, values, told.part(slice(begin, begin + len(values))))
    )


def summarised(
    denoiser: Denoiser,
    n: int,
    told: Conditioning,
    section: SampleSection,
    summary: Callable[[Sequence[Any]], Array],
    kept: Container[int] = (),
    *,
    guide: Denoiser | None = None,
    progress: bool = False,
    team: Team = ALONE,
) -> tuple[Array | None, list[Any]]:
    """What a summary says of every sample, and some of the samples themselves, in their order.

    Each process summarises what it made, so that samples need not travel or be held.

    Args:
        summary: items to (items, D) numbers.
        kept: indices of samples that are returned as items.
        denoiser, n, told, section, guide, progress, team: as in `generate`.

    Returns:
        (n, D) numbers and the kept items; None and nothing in other processes than rank 0.
    """
    rows, items = [], []
    guide = guide or guide_of(denoiser, section)
    for start, x in _made(denoiser, n, told, section, guide, progress, team):
        found = None
        if x is not None:
            made = list(_decoded(denoiser, x, told.part(slice(start, start + len(x)))))
            found = (summary(made), [item for i, item in enumerate(made, start) if i in kept])
        for numbers, some in filter(None, team.gather(found)):
            rows.append(numbers)
            items += some
    return np.concatenate(rows) if rows else None, items


def guide_of(denoiser: Denoiser, section: SampleSection) -> Denoiser | None:
    """The weaker model that ``sample.autoguidance`` names; None without one.

    Raises:
        CheckpointError: there is no such checkpoint or mean.
        JitkitError: it is no model of the same data.
    """
    if section.autoguidance is None:
        return None
    path, mean = section.autoguidance, ""
    if "@" in path and not Path(path).exists():
        path, _, mean = path.rpartition("@")
    guide = load(path, device=denoiser.device, ema=mean or None)
    check_guide(denoiser, guide)
    guide.autocast = denoiser.autocast
    return guide


def _made(
    denoiser: Denoiser,
    n: int,
    told: Conditioning,
    section: SampleSection,
    guide: Denoiser | None,
    progress: bool,
    team: Team,
    first: int = 0,
) -> Iterator[tuple[int, Tensor | None]]:
    """This process's batches, with the place of each one's first sample; None when others end."""
    size = section.batch_size or team.min(fitting_batch(denoiser))
    size = min(size, -(-n // team.world))
    for turn in range(0, n, size * team.world):
        own = turn + team.rank * size
        start = min(own, n - 1)  # who has nothing to do makes one for company: all call the network
        part = told.part(slice(start, min(start + size, n)))
        x = sample(
            denoiser,
            min(size, n - start),
            part.cond,
            guidance=section.guidance,
            interval=section.guidance_interval,
            guide=guide,
            guide_scale=section.guide_scale,
            steps=section.steps,
            method=section.method,
            time_grid=section.time_grid,
            seed=section.seed,
            first=first + start,
            t_eps=section.t_eps,
            batch_size=size,
            mask=part.mask,
            coords=part.coords,
            progress=progress,
        ).cpu()
        yield start, x if own < n else None


def _decoded(denoiser: Denoiser, x: Tensor, told: Conditioning) -> Iterator[Any]:
    """Samples as items."""
    for i, values in enumerate(x):
        cond = {name: value[i].cpu() for name, value in told.cond.items()}
        mask = None if told.mask is None else told.mask[i].expand_as(values)
        coords = None if told.coords is None else told.coords[i]
        yield denoiser.domain.decode(Field(values, mask, cond, coords))
