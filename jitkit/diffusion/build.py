"""Build a model from a recipe: network, device, mixed precision, noise scale."""

from __future__ import annotations

from math import prod

import torch

from jitkit.diffusion.denoiser import Denoiser, Diffusion
from jitkit.diffusion.flow import auto_noise_scale
from jitkit.domain import Domain
from jitkit.fields import Layout
from jitkit.nn.transformer import Sizes
from jitkit.protocols import Weighted
from jitkit.recipe.load import Recipe


def assemble(recipe: Recipe, domain: Domain) -> Denoiser:
    """Build the denoiser that a recipe describes for a domain, with newly initialised weights."""
    layout = layout_for(recipe, domain)
    section = recipe.diffusion
    diffusion = Diffusion(
        prediction=section.prediction,
        loss=section.loss,
        noise_scale=choose_noise_scale(recipe, domain),
        t_eps=section.t_eps,
    )
    denoiser = Denoiser(layout, domain.conditions, Sizes(**recipe.model.resolved()), diffusion)
    denoiser.domain = domain
    if isinstance(domain, Weighted) and domain.weights is not None:
        denoiser.weights = torch.from_numpy(domain.weights).float().to(denoiser.device)
    return denoiser


def layout_for(recipe: Recipe, domain: Domain) -> Layout:
    """A domain's layout, with the recipe's patch if it gives one."""
    patch = recipe.model.patch
    return domain.layout.with_patch(tuple(patch) if isinstance(patch, list) else patch)


def choose_noise_scale(recipe: Recipe, domain: Domain) -> float:
    """The recipe's noise scale, or `auto_noise_scale` of the domain's grid without `set` axes."""
    requested = recipe.diffusion.noise_scale
    cells = prod(axis.size for axis in domain.layout.axes if axis.kind != "set")
    return auto_noise_scale(cells) if requested == "auto" else requested


def choose_precision(requested: str, device: torch.device) -> tuple[torch.dtype | None, str]:
    """The autocast dtype of mixed precision (None for float32), and the reason for the choice."""
    if requested == "float32":
        return None, "float32, as requested"
    if requested == "bfloat16":
        return torch.bfloat16, "bfloat16, as requested"
    if requested == "float16":
        return torch.float16, "float16, as requested"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "bfloat16: the GPU has it in hardware"
        return None, "float32: the GPU has no bfloat16 in hardware"
    if _cpu_has_bfloat16():
        return torch.bfloat16, "bfloat16: the CPU has it in hardware"
    return None, "float32: bfloat16 is emulated on this CPU, many times slower"


def _cpu_has_bfloat16() -> bool:
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def choose_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
