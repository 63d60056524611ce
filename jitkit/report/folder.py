"""A run's folder as a page tells it; whatever is missing, torn or strange there is left out.

A run may be at work while it is read, or have failed, or have been written by another version. What
could not be read is named, and the rest is shown.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from math import prod
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from jitkit.domain import domain_class
from jitkit.errors import JitkitError, RecipeError
from jitkit.recipe.load import SECTIONS, bundled, load_recipe
from jitkit.recipe.yaml import Draft, dotted, leaves, parsed
from jitkit.report.curves import LOSSES, SPEEDS, Show, TrainingCurves, read
from jitkit.runs.defaults import read_best
from jitkit.sections import Section

HIDDEN = "(not shown)"
SECRET = re.compile(r"secret|password|credential|(access|account|api)_?key|(^|[._])token$", re.I)
ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*://)([^\s/@]+@)?([^\s?#]*)(\?\S*)?", re.I)


@dataclass(frozen=True)
class RecipeKey:
    """A key of a recipe."""

    name: str
    value: str
    default: str | None
    """None where it has none, or where its section is not known here."""
    bundled: str | None
    """The value in the bundled recipe of the run's name; None where there is no such recipe."""
    meaning: str

    @property
    def is_set(self) -> bool:
        """Whether it differs from its default."""
        return self.value != self.default

    @property
    def departs(self) -> bool:
        """Whether it differs from the bundled recipe."""
        return self.bundled is not None and self.value != self.bundled


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run's folder says."""

    folder: Path
    recipe: list[RecipeKey]
    recipe_name: str
    environment: dict[str, Any]
    status: dict[str, Any]
    model: dict[str, Any]
    """``model.json`` of the newest checkpoint."""
    weights: int | None
    evaluation: dict[str, Any]
    sweeps: list[dict[str, Any]]
    defaults: list[tuple[str, str]]
    """Keys that a sweep set for samples of the run, with their values (``best.yaml``)."""
    losses: TrainingCurves
    speed: TrainingCurves
    written: datetime
    """When the run last wrote of its training."""
    notes: list[str]
    """What could not be read."""

    @property
    def name(self) -> str:
        return self.folder.resolve().name


def open_run(folder: Path, show: Show = lambda done: None) -> Run:
    """Read a run.

    Args:
        folder: of the run; of one of its checkpoints, too.
        show: is told how many bytes of its metrics have been read.

    Raises:
        RecipeError: it is no run.
    """
    if (folder / "state.json").is_file() and folder.parent.name == "checkpoints":
        folder = folder.parent.parent
    if not (folder / "recipe.yaml").is_file():
        found = "it is a file" if folder.is_file() else "it holds no recipe.yaml"
        found = found if folder.exists() else "there is no such folder"
        raise RecipeError(f"{folder} is no run: {found}; give the folder that jitkit train made")
    notes: list[str] = []
    model, weights = _newest_model(folder, notes)
    name, recipe = _recipe(folder, notes)
    losses = read(folder / "metrics.jsonl", LOSSES, show)
    speed = read(folder / "speed.jsonl", SPEEDS)
    for history, file in ((losses, "metrics.jsonl"), (speed, "speed.jsonl")):
        if history.torn:
            notes.append(f"{history.torn:,} lines of {file} cannot be read")
    return Run(
        folder=folder,
        recipe=recipe,
        recipe_name=name,
        environment=_json(folder / "environment.json", notes),
        status=_json(folder / "status.json", notes),
        model=model,
        weights=weights,
        evaluation=_json(folder / "evaluation.json", notes),
        sweeps=_sweeps(folder, notes),
        defaults=_defaults(folder, notes),
        losses=losses,
        speed=speed,
        written=_written(folder),
        notes=notes,
    )


def metrics_bytes(folder: Path) -> int:
    """How much there is to read of a run."""
    path = folder / "metrics.jsonl"
    return path.stat().st_size if path.is_file() else 0


def without_secrets(text: str) -> str:
    """Text whose addresses have lost user, password and query, where keys may stand.

    >>> without_secrets("see https://me:word@host/data.zarr?sig=abc for more")
    'see https://host/data.zarr?... for more'
    """
    return ADDRESS.sub(lambda m: m[1] + m[3] + ("?..." if m[4] else ""), text)


def _json(path: Path, notes: list[str]) -> dict[str, Any]:
    """The object of a file; an empty one where there is none, noted where it cannot be read."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        notes.append(f"{path.name} cannot be read ({error})")
        return {}
    if not isinstance(found, dict):
        notes.append(f"{path.name} holds no object")
        return {}
    return found


def _sweeps(folder: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Every sweep that was done on the run, oldest first."""
    files = sorted((folder / "sweeps").glob("*/sweep.json"))
    return [found for path in files if (found := _json(path, notes))]


def _defaults(folder: Path, notes: list[str]) -> list[tuple[str, str]]:
    try:
        keys, mean, _ = read_best(folder)
    except (JitkitError, OSError) as error:
        notes.append(f"best.yaml cannot be read ({error})")
        return []
    found = keys if mean is None else keys | {"ema": mean}
    return [(key, _shown(key, value)) for key, value in found.items()]


def _written(folder: Path) -> datetime:
    names = ("status.json", "metrics.jsonl", "recipe.yaml")
    times = [(folder / name).stat().st_mtime for name in names if (folder / name).is_file()]
    return datetime.fromtimestamp(max(times), UTC)


# The model


def _newest_model(folder: Path, notes: list[str]) -> tuple[dict[str, Any], int | None]:
    """What the newest checkpoint says of its model, and how many weights it has."""
    found = (folder / "checkpoints").glob("step-*/model.json")
    paths = [path for path in found if path.parent.name.removeprefix("step-").isdecimal()]
    if not paths:
        return {}, None
    newest = max(paths, key=lambda path: int(path.parent.name.removeprefix("step-")))
    return _json(newest, notes), _weights(newest.with_name("model.safetensors"))


def _weights(path: Path) -> int | None:
    """How many numbers a safetensors file holds, by its header; None where it has none."""
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(size)) if size < path.stat().st_size else {}
        shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
        return sum(prod(shape) for shape in shapes) or None
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError):
        return None


# The recipe


def _recipe(folder: Path, notes: list[str]) -> tuple[str, list[RecipeKey]]:
    """Its name, and every key beside its default and beside the bundled recipe of that name."""
    draft = Draft()
    try:
        values = parsed((folder / "recipe.yaml").read_text(encoding="utf-8"), draft, file="recipe")
    except (OSError, ValueError) as error:
        values = None
        notes.append(f"recipe.yaml cannot be read ({error})")
    notes += [f"recipe.yaml: {mistake}" for mistake in draft.mistakes]
    if not isinstance(values, dict):
        return folder.name, []
    name, domain = str(values.pop("name", folder.name)), values.get("domain")
    described = dict(_described(domain.get("name") if isinstance(domain, dict) else domain))
    base = _bundled(name)
    keys = []
    for path, value in leaves(values):
        key = dotted(path)
        default, meaning = described.get(key, (None, ""))
        other = None if base is None else base.get(key, "absent")
        keys.append(RecipeKey(key, _shown(key, value), default, other, meaning))
    return name, keys


def _bundled(name: str) -> dict[str, str] | None:
    """Keys of the bundled recipe of that name; None where there is none, or none that loads."""
    if name not in bundled():
        return None
    try:
        values = load_recipe(name).model_dump(mode="json", exclude={"name"})
    except (JitkitError, OSError, ImportError):
        return None
    return {dotted(path): _shown(dotted(path), value) for path, value in leaves(values)}


def _described(domain: Any) -> Iterator[tuple[str, tuple[str | None, str]]]:
    """Default and meaning of the keys of all sections; those of a domain that is not here are
    left out."""
    sections: dict[str, type[Section]] = dict(SECTIONS)
    try:
        sections = {"domain": domain_class(str(domain)).Section} | sections
    except (JitkitError, ImportError):
        pass
    for name, section in sections.items():
        yield from _fields(section, name)


def _fields(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, tuple[str | None, str]]]:
    for name, field in section.model_fields.items():
        key = f"{prefix}.{name}"
        meaning = " ".join((field.description or "").split())
        if field.is_required():
            yield key, (None, meaning)
            continue
        default = field.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            yield from _fields(type(default), key)
            default = default.model_dump(mode="json")
        for path, value in leaves(default):
            whole = key + dotted(("", *path)) if path else key
            yield whole, (_shown(whole, value), meaning)


def _shown(key: str, value: Any) -> str:
    """A value as a person reads it; what may be a secret is not told."""
    match safe := _safe(key, value):
        case None:
            return "not given"
        case bool():
            return "true" if safe else "false"
        case str():
            return safe
        case float() if float(f"{safe:g}") == safe:
            return f"{safe:g}"
    return json.dumps(safe, default=str, ensure_ascii=False)


def _safe(key: str, value: Any) -> Any:
    if SECRET.search(key) and value is not None:
        return HIDDEN
    match value:
        case dict():
            return {name: _safe(str(name), inner) for name, inner in value.items()}
        case list() | tuple():
            return [_safe(key, inner) for inner in value]
        case str():
            return without_secrets(value)
        case float() if value.is_integer() and abs(value) < 1e15:
            return int(value)
    return value
