"""Small models for tests, awake: all their weights are random, where fresh ones say only zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from jitkit.diffusion.denoiser import Denoiser, Diffusion
from jitkit.fields import Axis, Condition, Kind, Layout
from jitkit.nn.transformer import Sizes


def sizes(**given: Any) -> Sizes:
    """A network of about ten thousand weights; what is given takes precedence."""
    least = {"width": 16, "depth": 3, "heads": 2, "bottleneck": 8, "mlp_hidden": 24}
    return Sizes(**least | {"in_context_tokens": 2, "in_context_start": 1} | given)


def layout(*axes: tuple[int, int] | tuple[int, int, Kind], channels: int = 2) -> Layout:
    """Axes of (size, patch) or (size, patch, kind), and channels."""
    made = (Axis(f"axis {i}", *axis) for i, axis in enumerate(axes))
    return Layout(tuple(made), tuple(f"channel {i}" for i in range(channels)))


@torch.no_grad()
def awaken(module: nn.Module, seed: int = 0) -> None:
    """Give every parameter a random value of a size that keeps signals alive."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        is_norm = "norm" in name
        std = p.shape[-1] ** -0.5 if p.ndim > 1 else 0.2
        p.copy_(torch.randn(p.shape, generator=generator) * std + is_norm)


def awake(
    layout: Layout,
    conditions: Mapping[str, Condition] | None = None,
    diffusion: Diffusion | None = None,
    *,
    seed: int = 0,
    **given: Any,
) -> Denoiser:
    """A tiny model whose weights are all random, in eval mode."""
    denoiser = Denoiser(layout, conditions or {}, sizes(**given), diffusion)
    awaken(denoiser.network, seed)
    return denoiser.eval()


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference between two tensors, relative to the largest number of the second."""
    assert a.shape == b.shape, f"{tuple(a.shape)} is not {tuple(b.shape)}"
    return ((a - b).abs().max() / b.abs().max()).item()
