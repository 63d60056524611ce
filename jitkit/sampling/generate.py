"""Sample from a trained model: decoded items, or features of them, in batches over all ranks."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from jitkit.diffusion.denoiser import Denoiser
from jitkit.diffusion.guidance import check_guide
from jitkit.diffusion.sampler import fitting_batch, sample
from jitkit.domain import Domain
from jitkit.fields import Conditioning, Field
from jitkit.runs.checkpoint import load
from jitkit.sections import SampleSection
from jitkit.utils.distributed import ALONE, Team
from jitkit.utils.types import Array


def sample_items(
    denoiser: Denoiser,
    n: int,
    conditioning: Conditioning,
    section: SampleSection,
    *,
    guide: Denoiser | None = None,
    first: int = 0,
    progress: bool = False,
    team: Team = ALONE,
) -> Iterator[Any]:
    """Samples as items in native form, generated lazily, batch by batch.

    Ranks share the batches; all must iterate, and only rank 0 receives items.

    Args:
        denoiser: a model with its domain.
        n: number of samples.
        conditioning: their conditions and masks, from `conditioning_for`.
        section: section ``sample`` of a recipe.
        guide: the weaker model of autoguidance; by default ``sample.autoguidance``.
        first: index of the first sample.
        progress: show a bar for each batch on a terminal.
        team: the processes that share the work.

    Raises:
        CheckpointError, JitkitError: on the call itself, as `load_guide`.
    """
    guide = guide or load_guide(denoiser, section)  # now, before the caller makes a folder
    batches = _batches(denoiser, n, conditioning, section, guide, progress, team, first)
    return (
        item
        for start, x in batches
        for begin, values in filter(None, team.gather(None if x is None else (start, x)))
        for item in decode_samples(
            denoiser.domain, values, conditioning.part(slice(begin, begin + len(values)))
        )
    )


def sample_features(
    denoiser: Denoiser,
    n: int,
    conditioning: Conditioning,
    section: SampleSection,
    features: Callable[[Sequence[Any]], Array],
    keep: Container[int] = (),
    *,
    guide: Denoiser | None = None,
    progress: bool = False,
    team: Team = ALONE,
) -> tuple[Array | None, list[Any]]:
    """Features of all samples, and some of the samples as items, in order.

    Each rank computes the features of its own samples, so that only features are gathered.

    Args:
        features: maps items to an array (items, D).
        keep: indices of samples that are returned as items.
        denoiser, n, conditioning, section, guide, progress, team: as in `sample_items`.

    Returns:
        Features (n, D) and the kept items; None and an empty list on ranks other than 0.
    """
    parts, items = [], []
    guide = guide or load_guide(denoiser, section)
    for start, x in _batches(denoiser, n, conditioning, section, guide, progress, team):
        result = None
        if x is not None:
            part = conditioning.part(slice(start, start + len(x)))
            decoded = list(decode_samples(denoiser.domain, x, part))
            kept = [item for i, item in enumerate(decoded, start) if i in keep]
            result = (features(decoded), kept)
        for values, kept in filter(None, team.gather(result)):
            parts.append(values)
            items += kept
    return np.concatenate(parts) if parts else None, items


def load_guide(denoiser: Denoiser, section: SampleSection) -> Denoiser | None:
    """The weaker model of ``sample.autoguidance``, a path or PATH@EMA; None if that is not set.

    Raises:
        CheckpointError: there is no such checkpoint or EMA.
        JitkitError: the model is for other data.
    """
    if section.autoguidance is None:
        return None
    path, ema = section.autoguidance, ""
    if "@" in path and not Path(path).exists():
        path, _, ema = path.rpartition("@")
    guide = load(path, device=denoiser.device, ema=ema or None)
    check_guide(denoiser, guide)
    guide.network.autocast = denoiser.network.autocast
    return guide


def _batches(
    denoiser: Denoiser,
    n: int,
    conditioning: Conditioning,
    section: SampleSection,
    guide: Denoiser | None,
    progress: bool,
    team: Team,
    first: int = 0,
) -> Iterator[tuple[int, Tensor | None]]:
    """This rank's batches as (index of the first sample, x); x is None where none is left."""
    size = section.batch_size or team.min(fitting_batch(denoiser))
    size = min(size, -(-n // team.world))
    for offset in range(0, n, size * team.world):
        own = offset + team.rank * size
        start = min(own, n - 1)  # idle ranks sample as well, since all ranks must call the network
        part = conditioning.part(slice(start, min(start + size, n)))
        x = sample(
            denoiser,
            min(size, n - start),
            part.cond,
            section,
            mask=part.mask,
            coords=part.coords,
            guide=guide,
            first=first + start,
            progress=progress,
            batch_size=size,
        ).cpu()
        yield start, x if own < n else None


def decode_samples(domain: Domain, x: Tensor, conditioning: Conditioning) -> Iterator[Any]:
    """Samples on the CPU as items of a domain."""
    for i, values in enumerate(x):
        cond = {name: value[i].cpu() for name, value in conditioning.cond.items()}
        mask = None if conditioning.mask is None else conditioning.mask[i].expand_as(values)
        coords = None if conditioning.coords is None else conditioning.coords[i]
        yield domain.decode(Field(values, mask, cond, coords))
