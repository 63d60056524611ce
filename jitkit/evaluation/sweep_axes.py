"""The settings of a sweep: from words to every combination of values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import floor
from typing import Any

from jitkit.errors import RecipeError, listed, nearest
from jitkit.recipe.yaml import Draft, YamlPosition, parsed
from jitkit.sections import SampleSection

MOST_POINTS = 1_000
FIXED = {"seed": "evaluate.seed is the samples' seed", "batch_size": "it changes no sample"}

SweepAxes = dict[str, list[Any]]
"""Values of each swept key, ``sample.KEY`` or ``ema``, in the order in which they were given."""


def axes_of(words: Sequence[str]) -> SweepAxes:
    """Values of each key, from ``"sample.guidance=1:4:0.3"`` or ``"ema=0.9996,0.9999"``.

    ``first:last:step`` has both ends. Anything else is a list of YAML values.

    >>> axes_of(["sample.guidance=1:2:0.5", "ema=0.9996,none"])
    {'sample.guidance': [1, 1.5, 2], 'ema': ['0.9996', 'none']}

    Raises:
        RecipeError: a key that cannot be swept, values that cannot be meant, or too many.
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
            raise RecipeError(f"--sweep {word!r}: a value is there twice")
    count = 1
    for values in axes.values():
        count *= len(values)
    if count > MOST_POINTS:
        raise RecipeError(f"--sweep: {count:,} settings; ask for at most {MOST_POINTS:,}")
    return axes


def points(axes: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Every setting; those of one mean of the weights follow one another."""
    keys = sorted(axes, key=lambda key: key != "ema")
    for values in product(*(axes[key] for key in keys)):
        setting = dict(zip(keys, values, strict=True))
        yield {key: setting[key] for key in axes}


def in_words(setting: Mapping[str, Any]) -> str:
    """A setting in a line: ``guidance 1.5, ema 0.9996``."""
    return ", ".join(f"{key.removeprefix('sample.')} {_word(v)}" for key, v in setting.items())


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _check_key(key: str) -> None:
    name = key.removeprefix("sample.")
    if name in FIXED and key != name:
        raise RecipeError(f"--sweep {key}: not swept, as {FIXED[name]}")
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
            raise RecipeError(f"--sweep {word!r}: no such steps lead from {first:g} to {last:g}")
        count = floor((last - first) / step * (1 + 1e-9)) + 1
        if count > MOST_POINTS:
            raise RecipeError(f"--sweep {word!r}: {count:,} values; ask for fewer")
        return [_tidy(first + i * step) for i in range(count)]
    draft = Draft(places={(): YamlPosition(None)})
    values = parsed(f"[{text}]", draft)
    if draft.mistakes or not values or None in values:
        why = f": {draft.mistakes[0].text}" if draft.mistakes else ""
        raise RecipeError(f"--sweep {word!r}: expected a:b:step, or values a,b,c{why}")
    return list(values)


def _tidy(value: float) -> int | float:
    """Without the last digits that adding steps leaves; whole where it is whole, as in YAML."""
    rounded = round(value, 10)
    return int(rounded) if rounded.is_integer() else rounded
