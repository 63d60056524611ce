"""The best setting that a sweep found: the run's own defaults, beside its recipe.

``best.yaml`` in the run's folder holds keys of section ``sample``, and which mean of the weights.
Commands that open the run lay it over the recipe, say so in a line, and lay what they are asked
over that. Whoever deletes the file is back at the recipe.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jitkit.errors import RecipeError
from jitkit.recipe.yaml import Draft, YamlPosition, dumped, parsed
from jitkit.runs.run_dir import write_text
from jitkit.utils.console import remark

FILE = "best.yaml"

Overrides = Mapping[str, Any] | Sequence[str]


def write_best(folder: Path, settings: Mapping[str, Any], about: Mapping[str, Any]) -> Path:
    """Write the defaults of a run.

    Args:
        folder: the run's.
        settings: values by ``"sample.guidance"``, ``"ema"``.
        about: where they come from, for people.
    """
    prefix = "sample."
    values: dict[str, Any] = {
        "sample": {k.removeprefix(prefix): v for k, v in settings.items() if k.startswith(prefix)}
    }
    if "ema" in settings:
        values["ema"] = str(settings["ema"])
    head = "# defaults of this run, found by a sweep; delete this file to go back to recipe.yaml\n"
    write_text(folder / FILE, head + dumped({**values, "found": dict(about)}))
    return folder / FILE


def read_best(folder: Path) -> tuple[dict[str, Any], str | None, int | None]:
    """Keys of the recipe with their values, the mean of the weights, and the step they are for.

    Nothing of it without a file.

    Raises:
        RecipeError: the file is not what `write_best` writes.
    """
    path = folder / FILE
    if not path.is_file():
        return {}, None, None
    draft = Draft(places={(): YamlPosition(str(path))})
    try:
        values = parsed(path.read_text(encoding="utf-8"), draft, file=str(path))
        sample, mean = values.get("sample") or {}, values.get("ema")
        keys = {f"sample.{key}": value for key, value in sample.items()}
        step = (values.get("found") or {}).get("step")
    except (AttributeError, UnicodeDecodeError) as error:
        why = draft.mistakes[0].text if draft.mistakes else error
        raise RecipeError(f"{path} cannot be read: {why}; mend or delete it") from None
    return keys, None if mean is None else str(mean), step


def named(overrides: Overrides) -> list[str]:
    """The keys that overrides are of.

    >>> named(["sample.guidance=3", "ema=0.99"]), named({"sample.steps": 20})
    (['sample.guidance', 'ema'], ['sample.steps'])
    """
    words = [overrides] if isinstance(overrides, str) else overrides
    return [word.partition("=")[0] for word in words]


def with_best(
    folder: Path, overrides: Overrides, ema: float | str | None
) -> tuple[Overrides, float | str | None]:
    """What is asked of a run, laid over its own defaults; a line on standard error says which.

    Args:
        folder: the run's.
        overrides, ema: what is asked.
    """
    keys, mean, step = read_best(folder)
    asked = [overrides] if isinstance(overrides, str) else overrides
    used = {key: value for key, value in keys.items() if key not in named(overrides)}
    words = [f"{key}={json.dumps(value)}" for key, value in used.items()]
    shown = words + ([f"ema {mean}"] if mean is not None and ema is None else [])
    if shown:
        at = "" if step is None else f", found at step {step}"
        remark(f"from {folder / FILE}{at}: {', '.join(shown)}; delete it to go back to recipe.yaml")
    ema = mean if ema is None else ema
    return ({**used, **asked} if isinstance(asked, Mapping) else [*words, *asked]), ema
