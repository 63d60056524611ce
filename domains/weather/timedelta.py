"""Lengths of time as a recipe writes them: ``6h``, ``10d``, or ``3 steps`` of the data."""

from __future__ import annotations

import re
from dataclasses import dataclass

from jitkit.errors import RecipeError

SECONDS = {"min": 60, "h": 3_600, "d": 86_400, "w": 604_800}


@dataclass(frozen=True)
class Duration:
    """A length of time.

    Attributes:
        amount: how many.
        unit: ``min``, ``h``, ``d``, ``w``, or ``steps`` of the data, however long those are.
    """

    amount: int
    unit: str

    def __str__(self) -> str:
        return f"{self.amount}{' ' * (self.unit == 'steps')}{self.unit}"

    @property
    def seconds(self) -> int:
        """Its length; of steps there is none."""
        return self.amount * SECONDS[self.unit]

    def in_steps(self, step: float, key: str) -> int:
        """How many steps of a length in seconds it is.

        Raises:
            RecipeError: not a whole number of them.
        """
        if self.unit == "steps":
            return self.amount
        asked = self.seconds
        steps = round(asked / step)
        if steps < 1 or abs(steps * step - asked) > 1:
            raise RecipeError(
                f"{key}: {self} is not a multiple of the {in_words(step)} from one step to the "
                f"next; take {in_words(max(1, steps) * step)}, or a number of steps such as "
                "'2 steps'"
            )
        return steps


def duration(text: str, key: str = "duration") -> Duration:
    """What is written.

    Raises:
        RecipeError: it is no length of time.

    >>> duration("10d"), duration("1 step")
    (Duration(amount=10, unit='d'), Duration(amount=1, unit='steps'))
    """
    match = re.fullmatch(r"\s*([1-9]\d{0,6})\s*(min|h|d|w|steps?)\s*", str(text))
    if match is None:
        raise RecipeError(
            f"{key}: {text!r} is no length of time; write 6h, 10d, 30min, or 3 steps of the data"
        )
    return Duration(int(match[1]), "steps" if match[2].startswith("step") else match[2])


def in_words(seconds: float) -> str:
    """A length of time in the largest unit that divides it.

    >>> in_words(21_600), in_words(172_800), in_words(90)
    ('6h', '2d', '90s')
    """
    for unit in ("d", "h", "min"):
        if seconds >= SECONDS[unit] and seconds % SECONDS[unit] == 0:
            return f"{seconds / SECONDS[unit]:g}{unit}"
    return f"{seconds:g}s"
