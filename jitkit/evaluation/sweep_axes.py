"""Axes of a sweep: parse ``KEY=VALUES`` arguments and enumerate all combinations."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import floor
from typing import Any

from jitkit.errors import RecipeError, listed, nearest
from jitkit.recipe.yaml import YamlPosition, parse_yaml
from jitkit.sections import SampleSection

MOST_POINTS = 1_000
FIXED = {"seed": "evaluate.seed is the seed of samples", "batch_size": "it changes no sample"}

SweepAxes = dict[str, list[Any]]
"""Values of each swept key, ``sample.KEY`` or ``ema``, in the given order."""


def axes_of(words: Sequence[str]) -> SweepAxes:
    """Values of each key, from ``"sample.guidance=1:4:0.3"`` or ``"ema=0.9996,0.9999"``.

    ``first:last:step`` includes both ends. Anything else is a list of YAML values.

    >>> axes_of(["sample.guidance=1:2:0.5", "ema=0.9996,none"])
    {'sample.guidance': [1, 1.5, 2], 'ema': ['0.9996', 'none']}

    Raises:
        RecipeError: a key that cannot be swept, invalid values, or too many settings.
    """
    axes: SweepAxes = {}
    for word in words:
        key, sign, text = word.partition("=")
        if not sign or not text.strip():
            raise RecipeError(
                f"--sweep {word!r}: expected KEY=VALUES, such as sample.guidance=1:4:0.5"
            )
        _check_key(key)
        if key in axes:
            raise RecipeError(f"--sweep: {key} is given twice")
        values = _values(word, text)
        axes[key] = [str(value) for value in values] if key == "ema" else values
        if len({str(value) for value in axes[key]}) < len(values):
            raise RecipeError(f"--sweep {word!r}: a value is given twice")
    count = 1
    for values in axes.values():
        count *= len(values)
    if count > MOST_POINTS:
        raise RecipeError(f"--sweep: {count:,} settings; give at most {MOST_POINTS:,}")
    return axes


def points(axes: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """All settings; those with one EMA are consecutive."""
    keys = sorted(axes, key=lambda key: key != "ema")
    for values in product(*(axes[key] for key in keys)):
        setting = dict(zip(keys, values, strict=True))
        yield {key: setting[key] for key in axes}


def format_setting(setting: Mapping[str, Any]) -> str:
    """A setting as text: ``guidance 1.5, ema 0.9996``."""
    return ", ".join(f"{key.removeprefix('sample.')} {_format(v)}" for key, v in setting.items())


def _format(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _check_key(key: str) -> None:
    name = key.removeprefix("sample.")
    if name in FIXED and key != name:
        raise RecipeError(f"--sweep {key}: cannot be swept, as {FIXED[name]}")
    known = [f"sample.{name}" for name in SampleSection.model_fields if name not in FIXED]
    if key != "ema" and key not in known:
        raise RecipeError(
            f"--sweep {key}: unknown; ema, or one of {listed(known, 20)}{nearest(key, known)}"
        )


def _values(word: str, text: str) -> list[Any]:
    number = r"\s*([-+]?[\d.]+(?:e[-+]?\d+)?)\s*"
    if found := re.fullmatch(f"{number}:{number}:{number}", text, re.IGNORECASE):
        try:
            first, last, step = map(float, found.groups())
        except ValueError:
            raise RecipeError(f"--sweep {word!r}: expected numbers first:last:step") from None
        if not step or (last - first) / step < 0:
            raise RecipeError(
                f"--sweep {word!r}: steps of {step:g} do not lead from {first:g} to {last:g}"
            )
        count = floor((last - first) / step * (1 + 1e-9)) + 1
        if count > MOST_POINTS:
            raise RecipeError(f"--sweep {word!r}: {count:,} values; give fewer")
        return [_tidy(first + i * step) for i in range(count)]
    draft = parse_yaml(f"[{text}]", YamlPosition(None))
    if draft.problems or not draft.values or None in draft.values:
        why = f": {draft.problems[0].text}" if draft.problems else ""
        raise RecipeError(f"--sweep {word!r}: expected a:b:step, or values a,b,c{why}")
    return list(draft.values)


def _tidy(value: float) -> int | float:
    """The value without rounding errors of added steps; an int if it is whole, as in YAML."""
    rounded = round(value, 10)
    return int(rounded) if rounded.is_integer() else rounded
