"""What is done to a channel's values before they are normalized: nothing, a logarithm, a root.

All are monotone, so the least value of a channel becomes the least transformed one. Rain, counts
and concentrations have long tails and pile up at zero; a logarithm or a root draws the tail in.
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
    """One of: none (x), log1p (log(1 + x / scale)), sqrt (x to the power of a half).

    Attributes:
        name: ``"none"``, ``"log1p"`` or ``"sqrt"``.
        scale: where log1p turns from a line into a logarithm, in units of the data: 1e-3 for rain
            in metres that is to be told apart down to millimetres. The others have none.
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
                f"transform {self.name} takes no scale; give it alone, or log1p: {self.scale:g}"
            )

    @classmethod
    def of(cls, given: Transform | str | Mapping[str, float]) -> Transform:
        """What a recipe says: ``"sqrt"``, or ``{"log1p": 0.001}`` with a scale.

        Raises:
            RecipeError: it cannot be meant.

        >>> Transform.of({"log1p": 0.001})
        Transform(name='log1p', scale=0.001)
        """
        if isinstance(given, Transform):
            return given
        if isinstance(given, str):
            return cls(given)  # type: ignore[arg-type]  # the class looks at it
        if isinstance(given, Mapping) and len(given) == 1:
            [(name, scale)] = given.items()
            if isinstance(scale, int | float) and not isinstance(scale, bool):
                return cls(name, float(scale))  # type: ignore[arg-type]
        raise RecipeError(
            f"transform {given!r} cannot be meant; give none, sqrt, log1p or {{log1p: scale}}"
        )

    def allows(self, least: float) -> bool:
        """Whether a value so small can be transformed: above -scale for log1p, 0 on for sqrt."""
        if self.name == "log1p":
            return least > -self.scale
        return self.name == "none" or least >= 0

    @property
    def needs(self) -> str:
        """In words, what `allows` asks."""
        return {"none": "", "log1p": f"above {-self.scale:g}", "sqrt": "0 or above"}[self.name]

    def forward(self, x: Array) -> Array:
        """Transformed values, in the precision of ``x``; NaN stays NaN."""
        if self.name == "log1p":
            return np.log1p(x / self.scale)
        return np.sqrt(x) if self.name == "sqrt" else x

    def backward(self, y: Array, least: float = 0.0) -> Array:
        """Undo `forward`, after ``y`` was moved to where that can be done; NaN stays NaN.

        What is clipped: nothing for none; for sqrt and log1p what would be below ``least``, or
        too large for float32.

        Args:
            y: transformed values, of any size and sign, such as a network makes.
            least: the least value of x that may come out; where it is above 0, 0 is taken.
        """
        if self.name == "none":
            return y
        edges = self.forward(np.array([min(least, 0.0), GREATEST]))
        y = np.clip(y, *edges)
        return np.square(y) if self.name == "sqrt" else np.expm1(y) * self.scale
