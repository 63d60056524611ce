"""Transforms of a channel before normalization: none, log1p, sqrt.

All are monotone, so the minimum of a channel becomes the minimum of its transformed values. Rain,
counts and concentrations have long tails and many zeros; a logarithm or a root shortens the tail.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Literal, get_args

import numpy as np

from jitkit.errors import RecipeError, nearest
from jitkit.utils.types import Array

Name = Literal["none", "log1p", "sqrt"]
GREATEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Transform:
    """One of: none (x), log1p (log(1 + x / scale)), sqrt (x to the power 1/2).

    Attributes:
        name: ``"none"``, ``"log1p"`` or ``"sqrt"``.
        scale: where log1p changes from linear to logarithmic, in units of the data: 1e-3 resolves
            rain in metres down to millimetres. Only log1p has a scale.
    """

    name: Name = "none"
    scale: float = 1.0

    def __post_init__(self) -> None:
        names = get_args(Name)
        if self.name not in names:
            near = nearest(str(self.name), names)
            raise RecipeError(f"transform {self.name!r} is not none, log1p or sqrt{near}")
        if not (isfinite(self.scale) and self.scale > 0):
            raise RecipeError(f"transform {self.name}: scale {self.scale} is not a number above 0")
        if self.scale != 1 and self.name != "log1p":
            raise RecipeError(
                f"transform {self.name} has no scale; give the name alone, or log1p: {self.scale:g}"
            )

    @classmethod
    def of(cls, setting: Transform | str | Mapping[str, float]) -> Transform:
        """Transform of a recipe's setting: ``"sqrt"``, or ``{"log1p": 0.001}`` with a scale.

        Raises:
            RecipeError: an invalid setting.

        >>> Transform.of({"log1p": 0.001})
        Transform(name='log1p', scale=0.001)
        """
        if isinstance(setting, Transform):
            return setting
        if isinstance(setting, str):
            return cls(setting)  # type: ignore[arg-type]  # checked by __post_init__
        if isinstance(setting, Mapping) and len(setting) == 1:
            [(name, scale)] = setting.items()
            if isinstance(scale, int | float) and not isinstance(scale, bool):
                return cls(name, float(scale))  # type: ignore[arg-type]
        raise RecipeError(
            f"transform {setting!r} is invalid; give none, sqrt, log1p or {{log1p: scale}}"
        )

    def allows(self, least: float) -> bool:
        """Whether the minimum can be transformed: above -scale for log1p, at least 0 for sqrt."""
        if self.name == "log1p":
            return least > -self.scale
        return self.name == "none" or least >= 0

    @property
    def needs(self) -> str:
        """The condition of `allows`, as text."""
        return {"none": "", "log1p": f"above {-self.scale:g}", "sqrt": "0 or above"}[self.name]

    def forward(self, x: Array) -> Array:
        """Transformed values, in the precision of ``x``; NaN stays NaN."""
        if self.name == "log1p":
            return np.log1p(x / self.scale)
        return np.sqrt(x) if self.name == "sqrt" else x

    def backward(self, y: Array, least: float = 0.0) -> Array:
        """Undo `forward` after clipping ``y`` to the invertible range; NaN stays NaN.

        For sqrt and log1p, results below ``least`` or too large for float32 are clipped; none clips
        nothing.

        Args:
            y: transformed values of any size and sign, such as predictions of a network.
            least: lower bound of x; if it is above 0, 0 is used.
        """
        if self.name == "none":
            return y
        edges = self.forward(np.array([min(least, 0.0), GREATEST]))
        y = np.clip(y, *edges)
        return np.square(y) if self.name == "sqrt" else np.expm1(y) * self.scale
