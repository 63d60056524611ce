"""The sampler: integrate dz/dt = v_hat from noise to data, with CFG or autoguidance.

A sample is a function of the weights, the seed and its index: its noise has a separate random
generator, so neither the batch nor the device changes it (except for rounding). Source: Li & He
2025, arXiv:2511.13720.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from jitkit.diffusion.denoiser import Denoiser
from jitkit.diffusion.guidance import Autoguided, Guided, check_guide
from jitkit.diffusion.solvers import Velocity, integrate
from jitkit.errors import JitkitError
from jitkit.fields import Conditioning
from jitkit.nn.conditioning import prepare
from jitkit.nn.memory import free_bytes, sampling_bytes
from jitkit.recipe.load import with_keys
from jitkit.sections import SampleSection
from jitkit.utils.console import bar
from jitkit.utils.seeding import mix


def draw_noise(
    denoiser: Denoiser, indices: Sequence[int], seed: int, grid: tuple[int, ...] | None = None
) -> Tensor:
    """Scaled noise with one generator per sample: (n, C, X1..Xn) on the CPU.

    It is drawn on the larger of the layout's grid and ``grid`` and cropped to ``grid``, so padding
    does not change a sample.
    """
    grid = grid or denoiser.layout.grid
    full = [max(sizes) for sizes in zip(denoiser.layout.grid, grid, strict=True)]
    shape = (len(denoiser.layout.channels), *full)
    draws = [
        torch.randn(shape, generator=torch.Generator().manual_seed(mix(seed, "noise", index)))
        for index in indices
    ]
    cropped = torch.stack(draws)[(slice(None), slice(None), *(slice(size) for size in grid))]
    return cropped * denoiser.diffusion.noise_scale


def fitting_batch(denoiser: Denoiser) -> int:
    """Batch size that fits into half of the free memory, at most 1,024."""
    per_sample = sampling_bytes(denoiser.network)
    return max(1, min(1024, free_bytes(denoiser.device) // 2 // per_sample))


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    n: int | None = None,
    cond: Mapping[str, Any] | None = None,
    settings: SampleSection | None = None,
    *,
    noise: Tensor | None = None,
    mask: Tensor | None = None,
    coords: Tensor | None = None,
    guide: Denoiser | None = None,
    first: int = 0,
    progress: bool = False,
    **overrides: Any,
) -> Tensor:
    """Draw samples, (n, C, X1..Xn) float32 on the model's device; zero outside ``mask``.

    This takes no settings of a run; `jitkit.generate` does, and returns items in physical units.

    Args:
        denoiser: the model, from `load` or `load_official`.
        n: number of samples; default: that of ``noise``.
        cond: by name, (n, ...) or one value for all; conditions left out are null.
        settings: section ``sample`` of a recipe; default: its default values.
        noise: initial noise, (n, C, X1..Xn), already scaled; default: drawn from the seed. It is
            projected onto the layout's linear constraint.
        mask: (n, C or 1, X1..Xn) bool, True where data are to be generated.
        coords: coordinates of the cells, (n, X1..Xn, axes), in cells.
        guide: a weaker model of the same data, for autoguidance
            (`jitkit.diffusion.guidance`); not together with ``guidance``.
        first: index of the first sample; sample i is a function of the weights, the seed and i.
        progress: show a progress bar on a terminal.
        overrides: keys of `SampleSection` in place of those of ``settings``: ``steps=20``,
            ``method="ab3"``, ``time_grid``, ``guidance``, ``guidance_interval``, ``guide_scale``,
            ``t_eps``, ``batch_size`` (default: by free memory), ``seed``.

    Raises:
        JitkitError: an unknown or invalid setting; noise, mask or coords of the wrong shape; a
            guide that is not a model of the same data.
        ConditionError: as in `Denoiser.forward`.
    """
    settings = with_keys(settings or SampleSection(), overrides)
    _check_guidance(denoiser, settings, guide)
    n, grid = _size(denoiser, n, noise, mask)
    _check_shapes(denoiser, n, grid, mask, coords)
    ready = prepare(denoiser.conditions, cond, n=n, grid=grid, device=denoiser.device)
    conditioning = Conditioning(ready, mask, coords)
    size = settings.batch_size or fitting_batch(denoiser)

    done, num_done = list[Tensor](), 0
    with bar("sampling", n * settings.steps, unit="steps", shown=progress) as show:
        while num_done < n:
            rows = slice(num_done, min(num_done + size, n))
            indices = range(first + rows.start, first + rows.stop)
            given = None if noise is None else noise[rows].float()
            z = draw_noise(denoiser, indices, settings.seed, grid) if given is None else given

            def after_step(i: int, rows: slice = rows) -> None:
                show(rows.start * settings.steps + i * (rows.stop - rows.start))

            try:
                x = _denoise(denoiser, z, conditioning.part(rows), settings, guide, after_step)
            except torch.cuda.OutOfMemoryError:
                if size == 1:
                    raise
                size = max(1, size // 2)  # retry the same samples in smaller batches
                continue
            done.append(x)
            num_done += len(x)
    return torch.cat(done)


def _denoise(
    denoiser: Denoiser,
    z: Tensor,
    conditioning: Conditioning,
    settings: SampleSection,
    guide: Denoiser | None,
    after_step: Callable[[int], None],
) -> Tensor:
    """One batch from noise to data."""
    device = denoiser.device
    conditioning, z = conditioning.map(lambda value: value.to(device)), z.to(device)
    if conditioning.mask is not None:
        z = torch.where(conditioning.mask, z, 0.0)
    z = denoiser.centred(z, conditioning.mask)
    velocity: Velocity = Guided(denoiser, conditioning, settings)
    if guide is not None:
        velocity = Autoguided(denoiser, guide, conditioning, settings)
    return integrate(
        velocity,
        z,
        steps=settings.steps,
        method=settings.method,
        time_grid=settings.time_grid,
        after_step=after_step,
    )


def _check_guidance(denoiser: Denoiser, settings: SampleSection, guide: Denoiser | None) -> None:
    if guide is None:
        if settings.autoguidance is not None:
            raise JitkitError(
                f"autoguidance={settings.autoguidance!r} names a model that is not loaded; give "
                "it: guide=jitkit.load(...)"
            )
        return
    if settings.guidance != 1:
        raise JitkitError(
            f"guide (autoguidance) and guidance={settings.guidance:g} (classifier-free guidance) "
            "together are not defined; give one of them"
        )
    check_guide(denoiser, guide)


def _size(
    denoiser: Denoiser, n: int | None, noise: Tensor | None, mask: Tensor | None
) -> tuple[int, tuple[int, ...]]:
    """Number and grid of the samples."""
    if noise is None:
        if n is None or n < 1:
            raise JitkitError(f"n is {n}; request at least 1 sample, or give the noise")
        return n, denoiser.layout.grid if mask is None else tuple(mask.shape[2:])
    channels, axes = len(denoiser.layout.channels), len(denoiser.layout.axes)
    if noise.ndim != 2 + axes or noise.shape[1] != channels or n not in (None, len(noise)):
        raise JitkitError(
            f"noise {tuple(noise.shape)} does not fit: expected ({n or 'n'}, {channels}, "
            f"{axes} sizes)"
        )
    return len(noise), tuple(noise.shape[2:])


def _check_shapes(
    denoiser: Denoiser, n: int, grid: tuple[int, ...], mask: Tensor | None, coords: Tensor | None
) -> None:
    channels, axes = len(denoiser.layout.channels), len(denoiser.layout.axes)
    if mask is not None and (mask.dtype is not torch.bool or mask.ndim != 2 + axes):
        raise JitkitError(
            f"mask {tuple(mask.shape)} of {mask.dtype} does not fit: expected bool, ({n}, 1 or "
            f"{channels}, {axes} sizes)"
        )
    shapes = [(n, 1, *grid), (n, channels, *grid)]
    if mask is not None and tuple(mask.shape) not in shapes:
        raise JitkitError(f"mask {tuple(mask.shape)} does not fit: expected {shapes[0]} or "
                          f"{shapes[1]}")  # fmt: skip
    expected = (n, *grid, len(grid))
    if coords is not None and tuple(coords.shape) != expected:
        raise JitkitError(f"coords {tuple(coords.shape)} does not fit: expected {expected}")
