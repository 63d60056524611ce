"""Durations in a recipe: ``6h``, ``10d``, or ``3 steps`` of the data."""

from __future__ import annotations

import re
from dataclasses import dataclass

from jitkit.errors import RecipeError

SECONDS = {"min": 60, "h": 3_600, "d": 86_400, "w": 604_800}


@dataclass(frozen=True)
class Duration:
    """A duration.

    Attributes:
        amount: number of units.
        unit: ``min``, ``h``, ``d``, ``w``, or ``steps`` of the data.
    """

    amount: int
    unit: str

    def __str__(self) -> str:
        return f"{self.amount}{' ' * (self.unit == 'steps')}{self.unit}"

    @property
    def seconds(self) -> int:
        """Its length in seconds; not defined for steps."""
        return self.amount * SECONDS[self.unit]

    def in_steps(self, step: float, key: str) -> int:
        """Its number of steps of ``step`` seconds.

        Raises:
            RecipeError: it is not a whole number of steps.
        """
        if self.unit == "steps":
            return self.amount
        steps = round(self.seconds / step)
        if steps < 1 or abs(steps * step - self.seconds) > 1:
            raise RecipeError(
                f"{key}: {self} is not a multiple of the {format_duration(step)} between steps; "
                f"use {format_duration(max(1, steps) * step)}, or a number of steps such as "
                "'2 steps'"
            )
        return steps


def duration(text: str, key: str = "duration") -> Duration:
    """Parse a duration.

    Raises:
        RecipeError: the text is no duration.

    >>> duration("10d"), duration("1 step")
    (Duration(amount=10, unit='d'), Duration(amount=1, unit='steps'))
    """
    match = re.fullmatch(r"\s*([1-9]\d{0,6})\s*(min|h|d|w|steps?)\s*", str(text))
    if match is None:
        raise RecipeError(
            f"{key}: {text!r} is no duration; write 6h, 10d, 30min, or 3 steps of the data"
        )
    return Duration(int(match[1]), "steps" if match[2].startswith("step") else match[2])


def format_duration(seconds: float) -> str:
    """A duration in the largest unit that divides it.

    >>> format_duration(21_600), format_duration(172_800), format_duration(90)
    ('6h', '2d', '90s')
    """
    for unit in ("d", "h", "min"):
        if seconds >= SECONDS[unit] and seconds % SECONDS[unit] == 0:
            return f"{seconds / SECONDS[unit]:g}{unit}"
    return f"{seconds:g}s"
