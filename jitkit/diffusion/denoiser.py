"""The denoiser: network, x/eps/v-prediction and loss, noise scale."""

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
from jitkit.fields import Condition, Conditioning, Layout, describe, described
from jitkit.nn.conditioning import prepare
from jitkit.nn.transformer import Sizes, Transformer

if TYPE_CHECKING:
    from jitkit.domain import Domain

NONE = Conditioning()
"""No conditions, data everywhere."""


@dataclass(frozen=True)
class Diffusion:
    """Prediction and loss of a model, and the noise it was trained on.

    Attributes:
        prediction: what the network predicts: clean data (x), noise (eps) or velocity (v).
        loss: the space of the loss.
        noise_scale: standard deviation of the noise, s.
        t_eps: lower bound of the divisors 1 - t and t.
    """

    prediction: Space = "x"
    loss: Space = "v"
    noise_scale: float = 1.0
    t_eps: float = 0.05

    def __post_init__(self) -> None:
        spaces = {"x", "eps", "v"}
        if not {self.prediction, self.loss} <= spaces:
            raise JitkitError(f"prediction and loss must be x, eps or v, not {self}")
        if not (0 < self.noise_scale < inf and 0 < self.t_eps < 1):
            raise JitkitError(f"noise_scale must be above 0 and t_eps between 0 and 1, not {self}")


class Denoiser(nn.Module):
    """``denoiser(z, t, cond)`` is the prediction of the clean data, float32, in the shape of z.

    Attributes:
        network: the transformer.
        layout: axes and channels of the data.
        conditions: what the model can be conditioned on, by name.
        diffusion: prediction, loss, noise.
        weights: loss weight of each cell, (X1..Xn), of mean 1; None: uniform.
        open_domain: opens the adapter when `domain` is first accessed; None if there is none.
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
        self.open_domain: Callable[[], Domain] | None = None
        self._domain: Domain | None = None

    @property
    def layout(self) -> Layout:
        """Axes and channels of the data."""
        return self.network.layout

    @property
    def conditions(self) -> dict[str, Condition]:
        """What the model can be conditioned on, by name."""
        return self.network.conditions

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device

    @property
    def domain(self) -> Domain:
        """The adapter of the training data, which decodes and writes samples.

        Raises:
            JitkitError: the model has none.
        """
        if self._domain is None:
            if self.open_domain is None:
                raise JitkitError(
                    "this model has no domain; give the one it was trained with: "
                    "jitkit.load(run, domain=...), or set denoiser.domain"
                )
            self._domain = self.open_domain()
        return self._domain

    @domain.setter
    def domain(self, domain: Domain) -> None:
        self._domain = domain

    def predict(self, z: Tensor, t: Tensor, conditioning: Conditioning = NONE) -> Tensor:
        """The network's prediction in its own space (x, eps or v); conditions already checked.

        It obeys the layout's linear constraint; if ``z`` does too, so do all conversions of it.
        """
        given = conditioning
        prediction = self.network(z.float(), t.float(), given.cond, given.mask, given.coords)
        return self.centred(prediction, given.mask)

    def centred(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Project values onto the constraint of `Layout.centred`; unchanged if there is none."""
        return centre(values, self.groups, mask)

    def forward(
        self,
        z: Tensor,
        t: Tensor,
        cond: Mapping[str, Any] | None = None,
        mask: Tensor | None = None,
        coords: Tensor | None = None,
    ) -> Tensor:
        """Predict the clean data.

        Args:
            z: noisy data, (B, C, X1..Xn). Cells that are not finite are missing if the layout has
                missing data, and must not occur otherwise (the result is then NaN as well).
            t: times in [0, 1]; 0 is noise, 1 is data. (B,).
            cond: by name, (B, ...) or one value for all; conditions left out are null.
            mask: (B, C or 1, X1..Xn) bool, True where there are data; default: where z is finite
                if the layout has missing data, else everywhere.
            coords: coordinates of the cells, (B, X1..Xn, n), in cells.

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
        if mask is None and self.layout.missing:  # a test of z would synchronize a device
            mask = z.isfinite()
        z = self.centred(z, mask)
        ready = prepare(self.conditions, cond, n=len(z), grid=tuple(z.shape[2:]), device=z.device)
        return self._convert(self.predict(z, t, Conditioning(ready, mask, coords)), z, t, "x")

    def velocity(
        self,
        z: Tensor,
        t: Tensor,
        conditioning: Conditioning = NONE,
        *,
        t_eps: float | None = None,
    ) -> Tensor:
        """v_hat = dz/dt, from the network's prediction; conditions already checked."""
        return self._convert(self.predict(z, t, conditioning), z, t, "v", t_eps)

    def losses(
        self,
        x: Tensor,
        eps: Tensor,
        t: Tensor,
        conditioning: Conditioning = NONE,
        *,
        loss: Space | None = None,
    ) -> Tensor:
        """Weighted mean squared error over each sample's observed cells, (B,).

        Args:
            x: clean data, (B, C, X1..Xn).
            eps: noise, already scaled by ``diffusion.noise_scale``, same shape; it is projected
                onto the layout's linear constraint here.
            t: times, (B,).
            conditioning: conditions, already checked; mask and coordinates.
            loss: the space of the error; default: the one of training.
        """
        eps = self.centred(eps, conditioning.mask)
        prediction = self.predict(interpolate(x, eps, t), t, conditioning)
        squares = squared_errors(
            prediction,
            x,
            eps,
            t,
            prediction=self.diffusion.prediction,
            loss=loss or self.diffusion.loss,
            t_eps=self.diffusion.t_eps,
        )
        return mean_over_data(squares, conditioning.mask, self.weights)

    def describe(self) -> dict[str, Any]:
        """Description of the model for `build`, as plain data for JSON."""
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
    """Build a model with newly initialised weights from the output of `Denoiser.describe`."""
    layout, conditions = described(description)
    sizes, diffusion = Sizes(**description["sizes"]), Diffusion(**description["diffusion"])
    return Denoiser(layout, conditions, sizes, diffusion)
