"""Small models for tests with random parameters; newly initialized ones predict zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from jitkit.diffusion.denoiser import Denoiser, Diffusion
from jitkit.fields import Axis, Condition, Kind, Layout
from jitkit.nn.transformer import Sizes


def sizes(**given: Any) -> Sizes:
    """Sizes of a network of about ten thousand parameters; arguments take precedence."""
    default = {"width": 16, "depth": 3, "heads": 2, "bottleneck": 8, "mlp_hidden": 24}
    return Sizes(**default | {"in_context_tokens": 2, "in_context_start": 1} | given)


def layout(*axes: tuple[int, int] | tuple[int, int, Kind], channels: int = 2) -> Layout:
    """Axes of (size, patch) or (size, patch, kind), and channels."""
    named = (Axis(f"axis {i}", *axis) for i, axis in enumerate(axes))
    return Layout(tuple(named), tuple(f"channel {i}" for i in range(channels)))


@torch.no_grad()
def randomize(module: nn.Module, seed: int = 0) -> None:
    """Set every parameter to random values that preserve the scale of activations."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        is_norm = "norm" in name
        std = p.shape[-1] ** -0.5 if p.ndim > 1 else 0.2
        p.copy_(torch.randn(p.shape, generator=generator) * std + is_norm)


def random_model(
    layout: Layout,
    conditions: Mapping[str, Condition] | None = None,
    diffusion: Diffusion | None = None,
    *,
    seed: int = 0,
    **given: Any,
) -> Denoiser:
    """A tiny model with random parameters, in eval mode."""
    denoiser = Denoiser(layout, conditions or {}, sizes(**given), diffusion)
    randomize(denoiser.network, seed)
    return denoiser.eval()


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference of two tensors, relative to the largest value of the second."""
    assert a.shape == b.shape, f"{tuple(a.shape)} is not {tuple(b.shape)}"
    return ((a - b).abs().max() / b.abs().max()).item()
