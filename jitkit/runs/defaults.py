"""Default sampling settings of a run, found by a sweep: ``best.yaml`` beside its recipe.

It holds keys of section ``sample`` and the name of an EMA. Commands that open the run apply it on
top of recipe.yaml, print it on one line, and apply their own overrides on top. Without the file
the recipe's values apply.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jitkit.errors import RecipeError
from jitkit.recipe.renamed import RENAMED
from jitkit.recipe.yaml import YamlPosition, dump_yaml, parse_yaml
from jitkit.runs.run_dir import write_text
from jitkit.utils.console import remark

FILE = "best.yaml"

Overrides = Mapping[str, Any] | Sequence[str]


def write_best(folder: Path, settings: Mapping[str, Any], about: Mapping[str, Any]) -> Path:
    """Write the default settings of a run.

    Args:
        folder: the run's folder.
        settings: values by key, ``"sample.guidance"`` or ``"ema"``.
        about: their origin, kept for the reader.
    """
    prefix = "sample."
    values: dict[str, Any] = {
        "sample": {k.removeprefix(prefix): v for k, v in settings.items() if k.startswith(prefix)}
    }
    if "ema" in settings:
        values["ema"] = str(settings["ema"])
    head = "# defaults of this run, found by a sweep; delete this file to go back to recipe.yaml\n"
    write_text(folder / FILE, head + dump_yaml({**values, "found": dict(about)}))
    return folder / FILE


def read_best(folder: Path) -> tuple[dict[str, Any], str | None, int | None]:
    """Values by recipe key, the name of the EMA, and the step for which they were found.

    Empty and None without a file. Keys renamed since an earlier version get their current names.

    Raises:
        RecipeError: the file is not one that `write_best` writes.
    """
    path = folder / FILE
    if not path.is_file():
        return {}, None, None
    try:
        draft = parse_yaml(path.read_text(encoding="utf-8"), YamlPosition(str(path)))
        if draft.problems:
            raise RecipeError(draft.problems[0].text)
        values = draft.values
        sample, ema = values.get("sample") or {}, values.get("ema")
        keys = {f"sample.{key}": value for key, value in sample.items()}
        keys = {RENAMED.get(key, key): value for key, value in keys.items()}
        step = (values.get("found") or {}).get("step")
    except (AttributeError, UnicodeDecodeError, RecipeError) as error:
        raise RecipeError(f"{path} cannot be read: {error}; correct or delete it") from None
    return keys, None if ema is None else str(ema), step


def override_keys(overrides: Overrides) -> list[str]:
    """The keys that are overridden.

    >>> override_keys(["sample.guidance=3", "ema=0.99"]), override_keys({"sample.steps": 20})
    (['sample.guidance', 'ema'], ['sample.steps'])
    """
    words = [overrides] if isinstance(overrides, str) else overrides
    return [word.partition("=")[0] for word in words]


def with_best(
    folder: Path, overrides: Overrides, ema: float | str | None
) -> tuple[Overrides, float | str | None]:
    """Overrides and EMA on top of a run's defaults; the defaults used are shown on standard error.

    Args:
        folder: the run's folder.
        overrides, ema: as requested.
    """
    keys, best_ema, step = read_best(folder)
    requested = [overrides] if isinstance(overrides, str) else overrides
    used = {key: value for key, value in keys.items() if key not in override_keys(overrides)}
    words = [f"{key}={json.dumps(value)}" for key, value in used.items()]
    shown = words + ([f"ema {best_ema}"] if best_ema is not None and ema is None else [])
    if shown:
        at = "" if step is None else f", found at step {step}"
        remark(f"from {folder / FILE}{at}: {', '.join(shown)}; delete it to return to recipe.yaml")
    ema = best_ema if ema is None else ema
    if isinstance(requested, Mapping):
        return {**used, **requested}, ema
    return [*words, *requested], ema
