"""The sampler: integrate dz/dt = v_hat from noise to data, with CFG or autoguidance.

A sample is a function of the weights, the seed and its index: its noise has a separate random
generator, so neither the batch nor the device changes it (except for rounding). Source: Li & He
2025, arXiv:2511.13720.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from jitkit.diffusion.denoiser import Denoiser
from jitkit.diffusion.guidance import Autoguided, Guided, check_guide
from jitkit.diffusion.solvers import Method, TimeGrid, Velocity, integrate
from jitkit.errors import JitkitError
from jitkit.nn.conditioning import prepare
from jitkit.nn.memory import free_bytes, sampling_bytes
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
    *,
    noise: Tensor | None = None,
    guidance: float = 1.0,
    interval: tuple[float, float] = (0.1, 1.0),
    guide: Denoiser | None = None,
    guide_scale: float = 2.0,
    steps: int = 50,
    method: Method = "heun",
    time_grid: TimeGrid = "uniform",
    seed: int = 0,
    first: int = 0,
    t_eps: float | None = None,
    batch_size: int | None = None,
    mask: Tensor | None = None,
    coords: Tensor | None = None,
    progress: bool = False,
) -> Tensor:
    """Draw samples, (n, C, X1..Xn) float32 on the model's device; zero outside ``mask``.

    Args:
        denoiser: the model, from `load` or `load_official`.
        n: number of samples; default: that of ``noise``.
        cond: by name, (n, ...) or one value for all; conditions left out are null.
        noise: initial noise, (n, C, X1..Xn), already scaled; default: drawn from the seed. It is
            projected onto the layout's linear constraint.
        guidance: scale of classifier-free guidance (CFG); 1 is none.
        interval: guidance interval (t_low, t_high), open; t_low = 0 includes t = 0.
        guide: a weaker model of the same data, for autoguidance
            (`jitkit.diffusion.guidance`); not together with ``guidance``.
        guide_scale: scale of autoguidance; 1 is none.
        steps: number of solver steps.
        method: ODE solver of `jitkit.diffusion.solvers`: ``"heun"``, ``"euler"``, or multistep
            ``"ab2"``, ``"ab3"`` or ``"dpm2m"``; the last step is always Euler's.
        time_grid: spacing of the steps, ``"uniform"`` or ``"cosine"``.
        seed: sample i is a function of the weights, the seed and i.
        first: index of the first sample.
        t_eps: lower bound of the divisor 1 - t; default: the model's.
        batch_size: samples per batch; default: by free memory.
        mask: (n, C or 1, X1..Xn) bool, True where data are to be generated.
        coords: coordinates of the cells, (n, X1..Xn, axes), in cells.
        progress: show a progress bar on a terminal.

    Raises:
        JitkitError: a setting out of range, noise, mask or coords of the wrong shape, or a guide
            that is not a model of the same data.
        ConditionError: as in `Denoiser.forward`.
    """
    device = denoiser.device
    if batch_size is not None and batch_size < 1:
        raise JitkitError(f"batch_size {batch_size} must be at least 1")
    if t_eps is not None and not 0 < t_eps < 1:
        raise JitkitError(f"t_eps {t_eps} must be between 0 and 1")
    if not 0 <= interval[0] < interval[1]:
        raise JitkitError(f"interval {tuple(interval)} ends before it starts")
    if guide is not None:
        if guidance != 1:
            raise JitkitError(
                f"guide (autoguidance) and guidance={guidance:g} (classifier-free guidance) "
                "together are not defined; give one of them"
            )
        check_guide(denoiser, guide)
    if noise is None:
        if n is None or n < 1:
            raise JitkitError(f"n is {n}; request at least 1 sample, or give the noise")
        grid = denoiser.layout.grid if mask is None else tuple(mask.shape[2:])
    else:
        channels, axes = len(denoiser.layout.channels), len(denoiser.layout.axes)
        if noise.ndim != 2 + axes or noise.shape[1] != channels or n not in (None, len(noise)):
            raise JitkitError(
                f"noise {tuple(noise.shape)} does not fit: expected ({n or 'n'}, {channels}, "
                f"{axes} sizes)"
            )
        n, grid = len(noise), tuple(noise.shape[2:])
    _check_shapes(denoiser, n, grid, mask, coords)
    cond = prepare(denoiser.conditions, cond, n=n, grid=grid, device=device)
    size = batch_size or fitting_batch(denoiser)

    done: list[Tensor] = []
    with bar("sampling", n * steps, unit="steps", shown=progress) as show:
        while (start := sum(len(x) for x in done)) < n:
            part = slice(start, min(start + size, n))
            indices = range(first + part.start, first + part.stop)
            z = draw_noise(denoiser, indices, seed, grid) if noise is None else noise[part].float()
            part_mask = None if mask is None else mask[part].to(device)
            z = z.to(device) if part_mask is None else torch.where(part_mask, z.to(device), 0.0)
            z = denoiser.centred(z, part_mask)
            part_cond = {name: value[part] for name, value in cond.items()}
            part_coords = None if coords is None else coords[part].to(device)
            rest = (interval, t_eps, part_mask, part_coords)
            velocity: Velocity = Guided(denoiser, part_cond, guidance, *rest)
            if guide is not None:
                velocity = Autoguided(denoiser, guide, part_cond, guide_scale, *rest)
            count = part.stop - part.start

            def after_step(i: int, start: int = start, count: int = count) -> None:
                show(start * steps + i * count)

            try:
                done.append(
                    integrate(
                        velocity,
                        z,
                        steps=steps,
                        method=method,
                        time_grid=time_grid,
                        after_step=after_step,
                    )
                )
            except torch.cuda.OutOfMemoryError:
                if size == 1:
                    raise
                size = max(1, size // 2)  # retry the same samples in smaller batches
    return torch.cat(done)


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
