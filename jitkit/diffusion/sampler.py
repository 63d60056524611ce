"""From noise to data: dz/dt = v_hat by a rule of `solvers`, with guidance (Li & He 2025).

A sample is a function of the weights, the seed and its index: its noise is drawn from its own
generator, so neither the batch it is made in nor the device changes it (but for rounding).
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
    """Scaled noise of some samples, each from its own generator: (n, C, X1..Xn) on the CPU.

    It is drawn on the layout's grid or the one that is asked for, whichever is larger, and cut, so
    that what a sample is padded to does not change it.
    """
    grid = grid or denoiser.layout.grid
    full = [max(sizes) for sizes in zip(denoiser.layout.grid, grid, strict=True)]
    shape = (len(denoiser.layout.channels), *full)
    draws = [
        torch.randn(shape, generator=torch.Generator().manual_seed(mix(seed, "noise", index)))
        for index in indices
    ]
    cut = torch.stack(draws)[(slice(None), slice(None), *(slice(size) for size in grid))]
    return cut * denoiser.diffusion.noise_scale


def fitting_batch(denoiser: Denoiser) -> int:
    """Samples that can be made at once in half of the memory that is free, at most 1,024."""
    each = sampling_bytes(denoiser.network)
    return max(1, min(1024, free_bytes(denoiser.device) // 2 // each))


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
    """Samples of a model, (n, C, X1..Xn) float32 on its device; zero where ``mask`` has no data.

    Args:
        denoiser: the model, from `load` or `load_official`.
        n: how many; taken from ``noise`` where that is given.
        cond: by name, (n, ...) or one value for all; what is left out is "not told".
        noise: where to start, (n, C, X1..Xn), already scaled; drawn from the seed where not given.
            It is projected onto the layout's linear constraint.
        guidance: weight of the conditions; 1 is none.
        interval: times between which guidance acts, of either kind; the ends do not belong to it,
            but 0 does.
        guide: a weaker model of the same data, for autoguidance (`jitkit.guidance`); not together
            with ``guidance``.
        guide_scale: weight of autoguidance; 1 is none.
        steps: steps from noise to data.
        method: rule of a step, as in `jitkit.solvers`: ``"heun"``, ``"euler"``, or a multistep one,
            ``"ab2"``, ``"ab3"`` or ``"dpm2m"``; the last step is always Euler's.
        time_grid: where steps lie in time, ``"uniform"`` or ``"cosine"``.
        seed: sample i is a function of the weights, the seed and i.
        first: index of the first sample.
        t_eps: the least value of 1 - t in the sampler; the model's own where not given.
        batch_size: samples made at once; by the memory that is free where not given.
        mask: (n, C or 1, X1..Xn) bool, True where there are to be data.
        coords: positions of the cells, (n, X1..Xn, axes), counted in cells.
        progress: show a bar on a terminal.

    Raises:
        JitkitError: a setting out of range, noise, mask or coords of the wrong shape, or a guide
            that is no model of the same data.
        ConditionError: as in `Denoiser.forward`.
    """
    device = denoiser.device
    if batch_size is not None and batch_size < 1:
        raise JitkitError(f"batch_size {batch_size} must be at least 1")
    if t_eps is not None and not 0 < t_eps < 1:
        raise JitkitError(f"t_eps {t_eps} must lie between 0 and 1")
    if not 0 <= interval[0] < interval[1]:
        raise JitkitError(f"interval {tuple(interval)} ends before it starts")
    if guide is not None:
        if guidance != 1:
            raise JitkitError(
                f"a guide and guidance={guidance:g} are two kinds of guidance; give one of them"
            )
        check_guide(denoiser, guide)
    if noise is None:
        if n is None or n < 1:
            raise JitkitError(f"n is {n}; ask for at least 1 sample, or give their noise")
        grid = denoiser.layout.grid if mask is None else tuple(mask.shape[2:])
    else:
        channels, axes = len(denoiser.layout.channels), len(denoiser.layout.axes)
        if noise.ndim != 2 + axes or noise.shape[1] != channels or n not in (None, len(noise)):
            raise JitkitError(
                f"noise {tuple(noise.shape)} does not fit: expected ({n or 'n'}, {channels}, "
                f"{axes} sizes)"
            )
        n, grid = len(noise), tuple(noise.shape[2:])
    _check_place(denoiser, n, grid, mask, coords)
    cond = prepare(denoiser.conditions, cond, n=n, grid=grid, device=device)
    size = batch_size or fitting_batch(denoiser)

    done: list[Tensor] = []
    with bar("sampling", n * steps, unit="steps", shown=progress) as show:
        while (start := sum(len(x) for x in done)) < n:
            part = slice(start, min(start + size, n))
            indices = range(first + part.start, first + part.stop)
            z = draw_noise(denoiser, indices, seed, grid) if noise is None else noise[part].float()
            own_mask = None if mask is None else mask[part].to(device)
            z = z.to(device) if own_mask is None else torch.where(own_mask, z.to(device), 0.0)
            z = denoiser.centred(z, own_mask)
            told = {name: value[part] for name, value in cond.items()}
            own_coords = None if coords is None else coords[part].to(device)
            rest = (interval, t_eps, own_mask, own_coords)
            velocity: Velocity = Guided(denoiser, told, guidance, *rest)
            if guide is not None:
                velocity = Autoguided(denoiser, guide, told, guide_scale, *rest)
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
                size = max(
                    1, size // 2
                )  # the estimate was too high: the same samples, fewer at once
    return torch.cat(done)


def _check_place(
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
    place = (n, *grid, len(grid))
    if coords is not None and tuple(coords.shape) != place:
        raise JitkitError(f"coords {tuple(coords.shape)} does not fit: expected {place}")
