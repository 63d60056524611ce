"""Select the best of many sampling settings by a score, with the uncertainty of that choice.

Settings are compared on the same random halves of samples from the same noise. Common variation
cancels in differences, so that scores can differ significantly although their intervals overlap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jitkit.errors import RecipeError
from jitkit.evaluation.scoring import LARGEST_RESAMPLE, cost
from jitkit.evaluation.sweep_axes import SweepAxes
from jitkit.utils.types import Array


def select_best(
    points: Sequence[Mapping[str, Any]], by: str, axes: SweepAxes, n: int
) -> dict[str, Any]:
    """The points with the fraction of halves in which each is best, and the best point.

    A setting is tied with the best one if their difference is less than 1.96 of its standard
    deviations over the halves.

    Raises:
        RecipeError: the score is undefined for every setting.
    """
    costs = np.array([cost(point["scores"][by], point["scores"][by]["value"]) for point in points])
    if not np.isfinite(costs).any():
        raise RecipeError(f"--by {by}: the score is undefined for every setting")
    first = int(np.argmin(costs))
    wins, tied = _compared(points, by, costs, first, n)
    shown = [
        {k: v for k, v in point.items() if k != "resampled"}
        | {"wins": None if wins is None else round(float(wins[i]), 3), "tied": bool(tied[i])}
        for i, point in enumerate(points)
    ]
    row, ties = shown[first], [each for each in shown if each["tied"]]
    return {
        "points": shown,
        "best": {
            "set": row["set"],
            "value": row["scores"][by]["value"],
            "interval": row["scores"][by]["interval"],
            "wins": row["wins"],
            "tied_with": [each["set"] for each in ties],
            "at_edge": [
                key
                for key in axes
                if all(_at_edge(each["set"][key], axes[key]) for each in (row, *ties))
            ],
        },
    }


def _compared(
    points: Sequence[Mapping[str, Any]], by: str, costs: Array, first: int, n: int
) -> tuple[Array | None, Array]:
    """Fraction of halves in which each point has the least cost; which points tie with the best.

    None and no ties if the score has no resamples.
    """
    resampled = [point["resampled"].get(by, []) for point in points]
    if not all(len(values) == len(resampled[first]) > 1 for values in resampled):
        return None, np.zeros(len(points), bool)
    halves = np.array(
        [
            [cost(point["scores"][by], value) for value in values]
            for point, values in zip(points, resampled, strict=True)
        ]
    )
    least = halves == halves.min(axis=0)
    wins = (least / least.sum(axis=0)).mean(axis=1)  # equal costs share a win
    n = points[first]["scores"][by].get("samples", n)
    size = min(n // 2, LARGEST_RESAMPLE)
    with np.errstate(invalid="ignore"):
        deviation = np.std(halves - halves[first], axis=1, ddof=1) * np.sqrt(size / (n - size))
        tied = costs - costs[first] <= 1.96 * deviation
    tied[first] = False
    return wins, tied


def _at_edge(value: Any, values: Sequence[Any]) -> bool:
    """Whether a number is the smallest or largest of at least three that were tried."""
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    return len(numbers) == len(values) > 2 and value in (min(numbers), max(numbers))
