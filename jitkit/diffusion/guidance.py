"""Classifier-free guidance (CFG) and autoguidance: the guided velocity for the sampler.

CFG (Ho & Salimans 2022, arXiv:2207.12598) extrapolates from the unconditional prediction beyond
the conditional one. Autoguidance (Karras et al. 2024, arXiv:2406.02507) extrapolates from the
prediction of a weaker model beyond that of the model: both make similar errors, the weaker model
larger ones, so the extrapolation reduces them. It needs no condition and works for any data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from jitkit.diffusion.denoiser import Denoiser
from jitkit.errors import JitkitError, listed
from jitkit.nn.conditioning import null_condition


def in_interval(t: Tensor, interval: tuple[float, float]) -> bool:
    """Whether a time (a float32 scalar, compared as float32) is inside the open interval; an
    interval that starts at 0 includes t = 0."""
    low, high = interval
    return bool(t < high) and (low == 0 or bool(t > low))


def masked_velocity(
    denoiser: Denoiser,
    z: Tensor,
    t: Tensor,
    cond: Mapping[str, Tensor],
    mask: Tensor | None,
    coords: Tensor | None,
    t_eps: float | None,
) -> Tensor:
    """A model's dz/dt, zero outside the mask; t (B,), the rest as in `Denoiser.forward`."""
    v = denoiser.velocity(z, t, cond, mask, coords, t_eps=t_eps)
    return v if mask is None else torch.where(mask, v, 0.0)


@dataclass(frozen=True)
class Guided:
    """Classifier-free guidance (CFG): v = v_null + w (v_cond - v_null).

    Inside the guidance interval (open; 0 is included if it starts there) the conditional and the
    unconditional pass are one batch of twice the size. Outside, and with w = 1, only the
    conditional pass is evaluated.

    Attributes:
        denoiser: the model.
        cond: all conditions, already checked.
        guidance: guidance scale w; 1 is the conditional model without guidance.
        interval: guidance interval (t_low, t_high).
        t_eps: lower bound of the divisor 1 - t.
        mask, coords: as in `Denoiser.forward`.
    """

    denoiser: Denoiser
    cond: Mapping[str, Tensor]
    guidance: float = 1.0
    interval: tuple[float, float] = (0.1, 1.0)
    t_eps: float | None = None
    mask: Tensor | None = None
    coords: Tensor | None = None

    def acts(self, t: Tensor) -> bool:
        """Whether guidance is applied at a time (a float32 scalar, compared as float32)."""
        return self.guidance != 1 and in_interval(t, self.interval) and self._is_conditional

    @cached_property
    def _null_cond(self) -> dict[str, Tensor]:
        """Null conditions of the unconditional pass; those never dropped in training are kept."""
        return {
            name: null_condition(condition, self.cond[name])
            if condition.drop > 0
            else self.cond[name]
            for name, condition in self.denoiser.conditions.items()
        }

    @cached_property
    def _is_conditional(self) -> bool:
        """Whether the conditions differ from the null conditions."""
        return any(
            not torch.equal(self.cond[name].nan_to_num(nan=torch.inf), value.nan_to_num(torch.inf))
            for name, value in self._null_cond.items()
        )

    @cached_property
    def _doubled(self) -> tuple[dict[str, Tensor], Tensor | None, Tensor | None]:
        """Conditions, mask and coords of both passes as one batch."""
        both = {
            name: torch.cat((self.cond[name], value)) for name, value in self._null_cond.items()
        }
        mask, coords = (
            None if x is None else x.repeat(2, *[1] * (x.ndim - 1))
            for x in (self.mask, self.coords)
        )
        return both, mask, coords

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        """dz/dt at (z, t), float32, in the shape of ``z``."""
        times = t.to(z.device).expand(len(z))
        if not self.acts(t):
            rest = (self.mask, self.coords, self.t_eps)
            return masked_velocity(self.denoiser, z, times, self.cond, *rest)
        both, mask, coords = self._doubled
        twice, rest = z.repeat(2, *[1] * (z.ndim - 1)), (mask, coords, self.t_eps)
        v = masked_velocity(self.denoiser, twice, times.repeat(2), both, *rest)
        conditional, unconditional = v.chunk(2)
        return unconditional + self.guidance * (conditional - unconditional)


@dataclass(frozen=True)
class Autoguided:
    """Autoguidance by a weaker model: v = v_guide + w (v - v_guide).

    This is the equation of Karras et al. for denoised data, D = D_0 + w (D_1 - D_0), because the
    velocity at given z and t is linear in D. Outside the guidance interval (open; 0 is included if
    it starts there) the guide is not evaluated.

    Attributes:
        denoiser: the model.
        guide: the weaker model, accepted by `check_guide`.
        cond: all conditions of the model, already checked; the guide gets those it has.
        scale: guidance scale w; 1 is the model without guidance.
        interval: guidance interval (t_low, t_high).
        t_eps: lower bound of the divisor 1 - t for both models; default: the model's.
        mask, coords: as in `Denoiser.forward`.
    """

    denoiser: Denoiser
    guide: Denoiser
    cond: Mapping[str, Tensor]
    scale: float = 2.0
    interval: tuple[float, float] = (0.1, 1.0)
    t_eps: float | None = None
    mask: Tensor | None = None
    coords: Tensor | None = None

    def acts(self, t: Tensor) -> bool:
        """Whether guidance is applied at a time (a float32 scalar)."""
        return self.scale != 1 and in_interval(t, self.interval)

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        """dz/dt at (z, t), float32, in the shape of ``z``."""
        times = t.to(z.device).expand(len(z))
        t_eps = self.denoiser.diffusion.t_eps if self.t_eps is None else self.t_eps
        rest = (self.mask, self.coords, t_eps)
        v = masked_velocity(self.denoiser, z, times, self.cond, *rest)
        if not self.acts(t):
            return v
        guide_cond = {name: self.cond[name] for name in self.guide.conditions}
        v_guide = masked_velocity(self.guide, z, times, guide_cond, *rest)
        return v_guide + self.scale * (v - v_guide)


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
