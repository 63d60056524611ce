"""Classifier-free guidance (CFG) and autoguidance: the guided velocity for the sampler.

CFG (Ho & Salimans 2022, arXiv:2207.12598) extrapolates from the unconditional prediction beyond
the conditional one. Autoguidance (Karras et al. 2024, arXiv:2406.02507) extrapolates from the
prediction of a weaker model beyond that of the model: both make similar errors, the weaker model
larger ones, so the extrapolation reduces them. It needs no condition and works for any data.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from jitkit.diffusion.denoiser import Denoiser
from jitkit.errors import JitkitError, listed
from jitkit.fields import Conditioning
from jitkit.nn.conditioning import null_condition
from jitkit.sections import SampleSection


def in_interval(t: Tensor, interval: tuple[float, float]) -> bool:
    """Whether a time (a float32 scalar, compared as float32) is inside the open interval; an
    interval that starts at 0 includes t = 0."""
    low, high = interval
    return bool(t < high) and (low == 0 or bool(t > low))


def masked_velocity(
    denoiser: Denoiser, z: Tensor, t: Tensor, conditioning: Conditioning, t_eps: float | None
) -> Tensor:
    """A model's dz/dt, zero outside the mask; t (B,)."""
    v = denoiser.velocity(z, t, conditioning, t_eps=t_eps)
    return v if conditioning.mask is None else torch.where(conditioning.mask, v, 0.0)


@dataclass(frozen=True)
class Guided:
    """Classifier-free guidance (CFG): v = v_null + w (v_cond - v_null).

    Inside the guidance interval (open; 0 is included if it starts there) the conditional and the
    unconditional pass are one batch of twice the size. Outside, and with w = 1, only the
    conditional pass is evaluated.

    Attributes:
        denoiser: the model.
        conditioning: of the samples, conditions already checked.
        settings: ``guidance`` (w), ``guidance_interval`` and ``t_eps`` are used.
    """

    denoiser: Denoiser
    conditioning: Conditioning
    settings: SampleSection

    def is_active(self, t: Tensor) -> bool:
        """Whether guidance is applied at a time (a float32 scalar, compared as float32)."""
        inside = in_interval(t, self.settings.guidance_interval)
        return self.settings.guidance != 1 and inside and self._is_conditional

    @cached_property
    def _null_cond(self) -> dict[str, Tensor]:
        """Null conditions of the unconditional pass; those never dropped in training are kept."""
        return {
            name: null_condition(condition, self.conditioning.cond[name])
            if condition.drop > 0
            else self.conditioning.cond[name]
            for name, condition in self.denoiser.conditions.items()
        }

    @cached_property
    def _is_conditional(self) -> bool:
        """Whether the conditions differ from the null conditions."""
        return any(
            not torch.equal(
                self.conditioning.cond[name].nan_to_num(nan=torch.inf), value.nan_to_num(torch.inf)
            )
            for name, value in self._null_cond.items()
        )

    @cached_property
    def _doubled(self) -> Conditioning:
        """Conditioning of both passes as one batch."""
        own = self.conditioning
        both = own.map(lambda value: value.repeat(2, *[1] * (value.ndim - 1)))
        cond = {name: torch.cat((own.cond[name], null)) for name, null in self._null_cond.items()}
        return replace(both, cond=cond)

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        """dz/dt at (z, t), float32, in the shape of ``z``."""
        times, t_eps = t.to(z.device).expand(len(z)), self.settings.t_eps
        if not self.is_active(t):
            return masked_velocity(self.denoiser, z, times, self.conditioning, t_eps)
        twice = z.repeat(2, *[1] * (z.ndim - 1))
        v = masked_velocity(self.denoiser, twice, times.repeat(2), self._doubled, t_eps)
        conditional, unconditional = v.chunk(2)
        return unconditional + self.settings.guidance * (conditional - unconditional)


@dataclass(frozen=True)
class Autoguided:
    """Autoguidance by a weaker model: v = v_guide + w (v - v_guide).

    This is the equation of Karras et al. for denoised data, D = D_0 + w (D_1 - D_0), because the
    velocity at given z and t is linear in D. Outside the guidance interval (open; 0 is included if
    it starts there) the guide is not evaluated.

    Attributes:
        denoiser: the model.
        guide: the weaker model, accepted by `check_guide`; it gets the conditions that it has.
        conditioning: of the samples, conditions already checked.
        settings: ``guide_scale`` (w), ``guidance_interval`` and ``t_eps`` (for both models; by
            default the model's) are used.
    """

    denoiser: Denoiser
    guide: Denoiser
    conditioning: Conditioning
    settings: SampleSection

    def is_active(self, t: Tensor) -> bool:
        """Whether guidance is applied at a time (a float32 scalar)."""
        inside = in_interval(t, self.settings.guidance_interval)
        return self.settings.guide_scale != 1 and inside

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        """dz/dt at (z, t), float32, in the shape of ``z``."""
        times, own, t_eps = t.to(z.device).expand(len(z)), self.conditioning, self.settings.t_eps
        t_eps = self.denoiser.diffusion.t_eps if t_eps is None else t_eps
        v = masked_velocity(self.denoiser, z, times, own, t_eps)
        if not self.is_active(t):
            return v
        known = replace(own, cond={name: own.cond[name] for name in self.guide.conditions})
        v_guide = masked_velocity(self.guide, z, times, known, t_eps)
        return v_guide + self.settings.guide_scale * (v - v_guide)


def check_guide(denoiser: Denoiser, guide: Denoiser) -> None:
    """Check that a model can guide another: same data, conditions and noise scale.

    Patch, `Layout.positions`, size, prediction and condition dropout may differ, and the guide may
    have fewer conditions.

    Raises:
        JitkitError: it cannot; the text lists the differences.
    """
    differences = []
    if denoiser.layout.of_samples != guide.layout.of_samples:
        differences.append(f"its samples are {_shape(guide)}, the model's {_shape(denoiser)}")
    scales = [model.diffusion.noise_scale for model in (denoiser, guide)]
    if scales[0] != scales[1]:
        differences.append(f"its noise scale is {scales[1]:g}, the model's {scales[0]:g}")
    own = {name: replace(c, drop=0.0) for name, c in denoiser.conditions.items()}
    extra = [name for name, c in guide.conditions.items() if replace(c, drop=0.0) != own.get(name)]
    if extra:
        differences.append(
            f"it is conditioned on {listed(extra)}, which the model lacks or has in another form"
        )
    if differences:
        raise JitkitError(
            f"this guide is not a weaker model of the same data: {'; '.join(differences)}. Train "
            "one on the same data with a smaller network or fewer steps, or use an early checkpoint"
        )


def _shape(model: Denoiser) -> str:
    sizes = " x ".join(f"{axis.name} {axis.size}" for axis in model.layout.axes)
    return f"{sizes} of {listed(model.layout.channels, 4)}"
