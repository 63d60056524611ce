"""A network and how it was trained: noisy data in, clean data out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import inf
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from jitkit.diffusion.flow import Space, convert, interpolate, mean_over_data, squared_errors
from jitkit.diffusion.zero_mean import centre, membership
from jitkit.errors import JitkitError
from jitkit.fields import Condition, Layout, describe, described
from jitkit.nn.conditioning import prepare
from jitkit.nn.transformer import Sizes, Transformer

if TYPE_CHECKING:
    from jitkit.domain import Domain


@dataclass(frozen=True)
class Diffusion:
    """What the network says, how its error was measured, and on which noise.

    Attributes:
        prediction: what the network says: clean data, noise or velocity.
        loss: the space in which its error is measured.
        noise_scale: standard deviation of the noise, s.
        t_eps: the least value of 1 - t and of t in a division.
    """

    prediction: Space = "x"
    loss: Space = "v"
    noise_scale: float = 1.0
    t_eps: float = 0.05

    def __post_init__(self) -> None:
        spaces = {"x", "eps", "v"}
        if not {self.prediction, self.loss} <= spaces:
            raise JitkitError(f"prediction and loss are x, eps or v, not {self}")
        if not (0 < self.noise_scale < inf and 0 < self.t_eps < 1):
            raise JitkitError(f"noise_scale is above 0 and t_eps between 0 and 1, not {self}")


class Denoiser(nn.Module):
    """``denoiser(z, t, cond)`` is the guess of the clean data, float32, in the shape of z.

    Attributes:
        network: the transformer.
        layout: axes and channels of the data.
        conditions: what the model may be told, by name.
        diffusion: prediction, loss, noise.
        autocast: the type of arithmetic inside the network; None for float32.
        weights: how much each cell counts in the loss, (X1..Xn), of mean 1; None: all alike.
        open_domain: opens the adapter when `domain` is first asked for; None where there is none.
    """

    groups: Tensor | None
    weights: Tensor | None

    def __init__(
        self,
        layout: Layout,
        conditions: Mapping[str, Condition],
        sizes: Sizes,
        diffusion: Diffusion | None = None,
    ) -> None:
        super().__init__()
        self.network = Transformer(layout, conditions, sizes)
        self.register_buffer("groups", membership(layout), persistent=False)
        self.register_buffer("weights", None, persistent=False)
        self.diffusion = diffusion or Diffusion()
        self.autocast: torch.dtype | None = None
        self.open_domain: Callable[[], Domain] | None = None
        self._domain: Domain | None = None

    @property
    def layout(self) -> Layout:
        """Axes and channels of the data."""
        return self.network.layout

    @property
    def conditions(self) -> dict[str, Condition]:
        """What the model may be told, by name."""
        return self.network.conditions

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def domain(self) -> Domain:
        """The adapter of the data it was trained on, which decodes and writes samples.

        Raises:
            JitkitError: the model was made without one.
        """
        if self._domain is None:
            if self.open_domain is None:
                raise JitkitError(
                    "this model has no domain; give the one that it was trained with: "
                    "jitkit.load(run, domain=...), or set denoiser.domain"
                )
            self._domain = self.open_domain()
        return self._domain

    @domain.setter
    def domain(self, domain: Domain) -> None:
        self._domain = domain

    def predict(
        self,
        z: Tensor,
        t: Tensor,
        cond: Mapping[str, Tensor],
        mask: Tensor | None = None,
        coords: Tensor | None = None,
    ) -> Tensor:
        """What the network says, in its own space; conditions complete and checked.

        It obeys the layout's linear constraint, and with a ``z`` that does, so do all its
        conversions.
        """
        kind, dtype = z.device.type, self.autocast
        with torch.autocast(kind, dtype or torch.bfloat16, enabled=dtype is not None):
            prediction = self.network(z.float(), t.float(), cond, mask, coords)
        return self.centred(prediction, mask)

    def centred(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """The nearest values that obey `Layout.centred`; the same ones where it asks nothing."""
        return centre(values, self.groups, mask)

    def forward(
        self,
        z: Tensor,
        t: Tensor,
        cond: Mapping[str, Any] | None = None,
        mask: Tensor | None = None,
        coords: Tensor | None = None,
    ) -> Tensor:
        """The guess of the clean data.

        Args:
            z: noisy data, (B, C, X1..Xn).
            t: times in [0, 1]; 0 is noise, 1 is data. (B,).
            cond: by name, (B, ...) or one value for all; what is left out is "not told".
            mask: (B, C or 1, X1..Xn) bool, True where there are data; where not given, where z is
                finite if the layout knows missing data, else everywhere.
            coords: positions of the cells, (B, X1..Xn, n), counted in cells.

        Raises:
            ConditionError: an unknown condition, or a value of the wrong shape or out of range.
            JitkitError: ``z`` or ``t`` of the wrong shape.
        """
        axes, channels = len(self.layout.axes), len(self.layout.channels)
        if z.ndim != 2 + axes or z.shape[1] != channels or t.shape != z.shape[:1]:
            raise JitkitError(
                f"z {tuple(z.shape)} and t {tuple(t.shape)} do not fit a model of {channels} "
                f"channels on {axes} axes: expected (B, {channels}, {axes} sizes) and (B,)"
            )
        if mask is None and not bool(z.isfinite().all()):
            if not self.layout.missing:
                raise JitkitError("z has cells that are no finite numbers; give a mask of the data")
            mask = z.isfinite()
        z = self.centred(z, mask)
        ready = prepare(self.conditions, cond, n=len(z), grid=tuple(z.shape[2:]), device=z.device)
        guess = self.predict(z, t, ready, mask, coords)
        return self._convert(guess, z, t, "x")

    def velocity(
        self,
        z: Tensor,
        t: Tensor,
        cond: Mapping[str, Tensor],
        mask: Tensor | None = None,
        coords: Tensor | None = None,
        *,
        t_eps: float | None = None,
    ) -> Tensor:
        """v_hat = dz/dt, from what the network says; conditions complete and checked."""
        return self._convert(self.predict(z, t, cond, mask, coords), z, t, "v", t_eps)

    def losses(
        self,
        x: Tensor,
        eps: Tensor,
        t: Tensor,
        cond: Mapping[str, Tensor],
        mask: Tensor | None = None,
        coords: Tensor | None = None,
        *,
        loss: Space | None = None,
    ) -> Tensor:
        """Mean squared error over each sample's observed cells, by their weights, (B,).

        Args:
            x: clean data, (B, C, X1..Xn).
            eps: noise, already scaled by ``diffusion.noise_scale``, same shape; it is projected
                onto the layout's linear constraint here.
            t: times, (B,).
            cond: every condition, complete and checked.
            mask, coords: as in `forward`.
            loss: the space of the error; the one the model is trained in where not given.
        """
        eps = self.centred(eps, mask)
        prediction = self.predict(interpolate(x, eps, t), t, cond, mask, coords)
        numbers = self.diffusion
        squares = squared_errors(
            prediction,
            x,
            eps,
            t,
            prediction=numbers.prediction,
            loss=loss or numbers.loss,
            t_eps=numbers.t_eps,
        )
        return mean_over_data(squares, mask, self.weights)

    def describe(self) -> dict[str, Any]:
        """All that `build` needs to make this model again, as plain data for JSON."""
        return describe(self.layout, self.conditions) | {
            "sizes": asdict(self.network.sizes),
            "diffusion": asdict(self.diffusion),
        }

    def _convert(
        self, prediction: Tensor, z: Tensor, t: Tensor, target: Space, t_eps: float | None = None
    ) -> Tensor:
        floor = self.diffusion.t_eps if t_eps is None else t_eps
        source = self.diffusion.prediction
        return convert(prediction, z, t, source=source, target=target, t_eps=floor)


def build(description: Mapping[str, Any]) -> Denoiser:
    """A model with fresh weights from what `Denoiser.describe` gave."""
    layout, conditions = described(description)
    sizes, diffusion = Sizes(**description["sizes"]), Diffusion(**description["diffusion"])
    return Denoiser(layout, conditions, sizes, diffusion)
