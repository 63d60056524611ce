"""The two kinds of guidance, each a velocity made of two: by conditions, and by a weaker model.

Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598) goes from what the model says
without the condition past what it says with it. Autoguidance (Karras et al. 2024, arXiv:2406.02507)
goes from what a weaker model says past what the model says: both err in the same places, the
weaker one more, so that the way leads out of the error. It needs no condition, and so any data can
have it.
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


def inside(t: Tensor, interval: tuple[float, float]) -> bool:
    """Whether a time (a float32 scalar, compared as float32) lies between the ends, or is 0 where
    the interval starts there."""
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
    """A model's dz/dt, zero where there are no data; t (B,), the rest as in `Denoiser.forward`."""
    v = denoiser.velocity(z, t, cond, mask, coords, t_eps=t_eps)
    return v if mask is None else torch.where(mask, v, 0.0)


@dataclass(frozen=True)
class Guided:
    """Velocity of a model under classifier-free guidance: v = v_null + w (v_cond - v_null).

    Guidance acts at times strictly inside the interval (and from 0 where it starts there). There
    the two passes are one batch of twice the size; elsewhere, and with w = 1, no null pass is made.

    Attributes:
        denoiser: the model.
        cond: every condition, complete and checked.
        guidance: w; 1 is the conditional model alone.
        interval: times between which guidance acts.
        t_eps: the least value of 1 - t in the division.
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
        """Whether guidance acts at a time (a float32 scalar, compared as float32)."""
        return self.guidance != 1 and inside(t, self.interval) and self._told_something

    @cached_property
    def _untold(self) -> dict[str, Tensor]:
        """The conditions of the null pass; what was never dropped in training is told to both."""
        return {
            name: null_condition(condition, self.cond[name])
            if condition.drop > 0
            else self.cond[name]
            for name, condition in self.denoiser.conditions.items()
        }

    @cached_property
    def _told_something(self) -> bool:
        """Whether the two passes differ at all."""
        return any(
            not torch.equal(self.cond[name].nan_to_num(nan=torch.inf), value.nan_to_num(torch.inf))
            for name, value in self._untold.items()
        )

    @cached_property
    def _doubled(self) -> tuple[dict[str, Tensor], Tensor | None, Tensor | None]:
        """Conditions, mask and coords of both passes in one batch."""
        both = {name: torch.cat((self.cond[name], value)) for name, value in self._untold.items()}
        mask, coords = (
            None if x is None else x.repeat(2, *[1] * (x.ndim - 1))
            for x in (self.mask, self.coords)
        )
        return both, mask, coords

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        """dz/dt at (z, t), float32, in the shape of ``z``."""
        times = t.to(z.device).expand(len(z))
        if not self.acts(t):
            place = (self.mask, self.coords, self.t_eps)
            return masked_velocity(self.denoiser, z, times, self.cond, *place)
        both, mask, coords = self._doubled
        twice, place = z.repeat(2, *[1] * (z.ndim - 1)), (mask, coords, self.t_eps)
        v = masked_velocity(self.denoiser, twice, times.repeat(2), both, *place)
        told, untold = v.chunk(2)
        return untold + self.guidance * (told - untold)


@dataclass(frozen=True)
class Autoguided:
    """Velocity of a model guided by a weaker one: v = v_guide + w (v - v_guide).

    The equation is that of Karras et al. for denoised data, D = D_0 + w (D_1 - D_0): at one z and t
    velocity is linear in them. It acts at times strictly inside the interval (and from 0 where it
    starts there); elsewhere the guide is not asked.

    Attributes:
        denoiser: the model.
        guide: the weaker one, which `check_guide` let pass.
        cond: every condition of the model, complete and checked; the guide is told those it knows.
        scale: w; 1 is the model alone.
        interval: times between which the guide acts.
        t_eps: the least value of 1 - t in the division, for both; the model's own where not given.
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
        """Whether the guide acts at a time (a float32 scalar)."""
        return self.scale != 1 and inside(t, self.interval)

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        """dz/dt at (z, t), float32, in the shape of ``z``."""
        times = t.to(z.device).expand(len(z))
        t_eps = self.denoiser.diffusion.t_eps if self.t_eps is None else self.t_eps
        place = (self.mask, self.coords, t_eps)
        v = masked_velocity(self.denoiser, z, times, self.cond, *place)
        if not self.acts(t):
            return v
        known = {name: self.cond[name] for name in self.guide.conditions}
        weak = masked_velocity(self.guide, z, times, known, *place)
        return weak + self.scale * (v - weak)


def check_guide(denoiser: Denoiser, guide: Denoiser) -> None:
    """Whether a model can guide another: of the same data, on the same path from noise.

    Patch, places, size, prediction and the shares of dropped conditions may differ, and it may know
    fewer conditions.

    Raises:
        JitkitError: it cannot; the text says what differs.
    """
    differ = []
    if denoiser.layout.of_samples != guide.layout.of_samples:
        differ.append(f"its samples are {_shape(guide)}, the model's {_shape(denoiser)}")
    scales = [model.diffusion.noise_scale for model in (denoiser, guide)]
    if scales[0] != scales[1]:
        differ.append(f"its noise scale is {scales[1]:g}, the model's {scales[0]:g}")
    known = {name: replace(c, drop=0.0) for name, c in denoiser.conditions.items()}
    strange = [
        name for name, c in guide.conditions.items() if replace(c, drop=0.0) != known.get(name)
    ]
    if strange:
        differ.append(f"it is told {listed(strange)}, which the model is not, or not so")
    if differ:
        raise JitkitError(
            f"this guide is no weaker model of the same data: {'; '.join(differ)}. Train one on "
            "the same data with a smaller network or fewer steps, or take an early checkpoint"
        )


def _shape(model: Denoiser) -> str:
    sizes = " x ".join(f"{axis.name} {axis.size}" for axis in model.layout.axes)
    return f"{sizes} of {listed(model.layout.channels, 4)}"
