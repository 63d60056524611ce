"""Reader of a run's folder for the report: recipe, state, metrics, scores, sweeps, machine.

A run may be running, have failed, or come from another version. Unreadable files are named in the
notes, and the rest is shown.
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

from jitkit.errors import JitkitError, RecipeError
from jitkit.recipe.load import SECTIONS, bundled, load_recipe
from jitkit.recipe.yaml import YamlPosition, dotted, leaves, parse_yaml
from jitkit.registry import domain_class
from jitkit.report.curves import LOSSES, SPEEDS, Show, TrainingCurves, read_curves
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
    """None if it has none, or if its section is unknown here."""
    bundled: str | None
    """The value in the bundled recipe of the run's name; None if there is no such recipe."""
    meaning: str

    @property
    def is_set(self) -> bool:
        """Whether it differs from its default."""
        return self.value != self.default

    @property
    def differs_from_bundled(self) -> bool:
        """Whether it differs from the bundled recipe."""
        return self.bundled is not None and self.value != self.bundled


@dataclass(frozen=True, kw_only=True)
class Run:
    """Content of a run's folder."""

    folder: Path
    recipe: list[RecipeKey]
    recipe_name: str
    environment: dict[str, Any]
    status: dict[str, Any]
    model: dict[str, Any]
    """``model.json`` of the newest checkpoint."""
    parameters: int | None
    evaluation: dict[str, Any]
    sweeps: list[dict[str, Any]]
    defaults: list[tuple[str, str]]
    """Sampling settings from a sweep (``best.yaml``), by key."""
    losses: TrainingCurves
    speed: TrainingCurves
    written: datetime
    """Time of the last write during training."""
    notes: list[str]
    """Files that could not be read, with the reason."""

    @property
    def name(self) -> str:
        return self.folder.resolve().name


def open_run(folder: Path, show: Show = lambda done: None) -> Run:
    """Read a run.

    Args:
        folder: of the run, or of one of its checkpoints.
        show: called with the number of bytes of its metrics read so far.

    Raises:
        RecipeError: the folder is not a run folder.
    """
    if (folder / "state.json").is_file() and folder.parent.name == "checkpoints":
        folder = folder.parent.parent
    if not (folder / "recipe.yaml").is_file():
        why = "it is a file" if folder.is_file() else "it holds no recipe.yaml"
        why = why if folder.exists() else "there is no such folder"
        raise RecipeError(f"{folder} is not a run: {why}; give the folder that jitkit train made")
    notes: list[str] = []
    model, parameters = _newest_model(folder, notes)
    name, recipe = _recipe(folder, notes)
    losses = read_curves(folder / "metrics.jsonl", LOSSES, show)
    speed = read_curves(folder / "speed.jsonl", SPEEDS)
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
        parameters=parameters,
        evaluation=_json(folder / "evaluation.json", notes),
        sweeps=_sweeps(folder, notes),
        defaults=_defaults(folder, notes),
        losses=losses,
        speed=speed,
        written=_written(folder),
        notes=notes,
    )


def metrics_bytes(folder: Path) -> int:
    """Size of a run's metrics."""
    path = folder / "metrics.jsonl"
    return path.stat().st_size if path.is_file() else 0


def without_secrets(text: str) -> str:
    """Text with user, password and query removed from its URLs.

    >>> without_secrets("see https://me:word@host/data.zarr?sig=abc for more")
    'see https://host/data.zarr?... for more'
    """
    return ADDRESS.sub(lambda m: m[1] + m[3] + ("?..." if m[4] else ""), text)


def _json(path: Path, notes: list[str]) -> dict[str, Any]:
    """The object of a JSON file; empty if there is none, with a note if it cannot be read."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        notes.append(f"{path.name} cannot be read ({error})")
        return {}
    if not isinstance(content, dict):
        notes.append(f"{path.name} holds no object")
        return {}
    return content


def _sweeps(folder: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Every sweep of the run, oldest first."""
    files = sorted((folder / "sweeps").glob("*/sweep.json"))
    return [sweep for path in files if (sweep := _json(path, notes))]


def _defaults(folder: Path, notes: list[str]) -> list[tuple[str, str]]:
    try:
        keys, ema, _ = read_best(folder)
    except (JitkitError, OSError) as error:
        notes.append(f"best.yaml cannot be read ({error})")
        return []
    settings = keys if ema is None else keys | {"ema": ema}
    return [(key, _shown(key, value)) for key, value in settings.items()]


def _written(folder: Path) -> datetime:
    names = ("status.json", "metrics.jsonl", "recipe.yaml")
    times = [(folder / name).stat().st_mtime for name in names if (folder / name).is_file()]
    return datetime.fromtimestamp(max(times), UTC)


# The model


def _newest_model(folder: Path, notes: list[str]) -> tuple[dict[str, Any], int | None]:
    """``model.json`` of the newest checkpoint, and its number of parameters."""
    files = (folder / "checkpoints").glob("step-*/model.json")
    paths = [path for path in files if path.parent.name.removeprefix("step-").isdecimal()]
    if not paths:
        return {}, None
    newest = max(paths, key=lambda path: int(path.parent.name.removeprefix("step-")))
    return _json(newest, notes), _num_parameters(newest.with_name("model.safetensors"))


def _num_parameters(path: Path) -> int | None:
    """Number of values in a safetensors file by its header; None if it has none."""
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
    """The recipe's name, and every key with its default and its value in the bundled recipe."""
    try:
        text = (folder / "recipe.yaml").read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        notes.append(f"recipe.yaml cannot be read ({error})")
        return folder.name, []
    draft = parse_yaml(text, YamlPosition("recipe.yaml"))
    notes += [f"recipe.yaml: {problem}" for problem in draft.problems]
    values = draft.values
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
    """Keys of the bundled recipe of that name; None if there is none that loads."""
    if name not in bundled():
        return None
    try:
        values = load_recipe(name).model_dump(mode="json", exclude={"name"})
    except (JitkitError, OSError, ImportError):
        return None
    return {dotted(path): _shown(dotted(path), value) for path, value in leaves(values)}


def _described(domain: Any) -> Iterator[tuple[str, tuple[str | None, str]]]:
    """Default and meaning of the keys of all sections; an unknown domain is left out."""
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
            full_key = key + dotted(("", *path)) if path else key
            yield full_key, (_shown(full_key, value), meaning)


def _shown(key: str, value: Any) -> str:
    """A value as text; possible secrets are hidden."""
    match safe := _hide_secrets(key, value):
        case None:
            return "not given"
        case bool():
            return "true" if safe else "false"
        case str():
            return safe
        case float() if float(f"{safe:g}") == safe:
            return f"{safe:g}"
    return json.dumps(safe, default=str, ensure_ascii=False)


def _hide_secrets(key: str, value: Any) -> Any:
    if SECRET.search(key) and value is not None:
        return HIDDEN
    match value:
        case dict():
            return {name: _hide_secrets(str(name), inner) for name, inner in value.items()}
        case list() | tuple():
            return [_hide_secrets(key, inner) for inner in value]
        case str():
            return without_secrets(value)
        case float() if value.is_integer() and abs(value) < 1e15:
            return int(value)
    return value
