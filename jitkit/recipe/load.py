"""Recipes: load from YAML with overrides, validate, report all errors together, write back.

    a file and those it extends ─▶ values with line numbers (yaml.py)
    ─▶ overrides merged ─▶ each section validated by its pydantic model
    ─▶ Recipe, or one RecipeError with all errors (messages.py)

Nothing here loads torch, so that a recipe is checked within a second.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, SerializeAsAny, ValidationError
from pydantic_core import ErrorDetails

from jitkit.domain import Domain
from jitkit.errors import RecipeError, listed, nearest
from jitkit.recipe.messages import error_text, messages_by_key, quoted
from jitkit.recipe.renamed import RENAMED, with_new_names
from jitkit.recipe.yaml import (
    Draft,
    KeyPath,
    Problem,
    YamlPosition,
    dotted,
    dump_yaml,
    leaves,
    nested,
    overlay,
    parse_yaml,
    to_plain,
)
from jitkit.registry import domain_class, import_domain, installed
from jitkit.sections import (
    DiffusionSection,
    DomainSection,
    EvaluateSection,
    ModelSection,
    SampleSection,
    Section,
    TrainSection,
)

SECTIONS: dict[str, type[Section]] = {
    "model": ModelSection,
    "diffusion": DiffusionSection,
    "train": TrainSection,
    "sample": SampleSection,
    "evaluate": EvaluateSection,
}
"""The core's sections; the adapter provides the class of section ``domain``."""

AnySection = TypeVar("AnySection", bound=Section)


class _UncheckedSection(DomainSection):
    """Section ``domain`` as written, for a domain that was not created from it."""

    model_config = ConfigDict(extra="allow")


class Recipe(Section):
    """All settings of a run."""

    name: str
    """Name of the run's folder; the recipe file's name by default."""
    domain: SerializeAsAny[DomainSection]
    model: ModelSection
    diffusion: DiffusionSection
    train: TrainSection
    sample: SampleSection
    evaluate: EvaluateSection


def load_recipe(
    source: str | Path | Mapping[str, Any],
    overrides: Mapping[str, Any] | Sequence[str] = (),
    *,
    domain: type[Domain] | None = None,
    recorded: bool = False,
) -> Recipe:
    """Load a recipe, apply overrides, and validate it.

    In YAML, ``domain: digits`` is short for ``domain: {name: digits}``. ``extends: other.yaml``
    (in the same folder, or bundled) is read first and this file merged into it: mappings key by
    key, other values replaced. ``${env:NAME}`` and ``${env:NAME:-default}`` are replaced inside
    values; a value that is a single reference is typed like any other scalar.

    Args:
        source: a file, the name of a bundled recipe, or a mapping of sections.
        overrides: ``["train.lr=1e-4", "sample.guidance_interval=[0.2, 0.9]"]``, values in YAML, or
            ``{"train.lr": 1e-4}``; the last value of a key wins.
        domain: class of the adapter, in place of the one found by name. Section ``domain`` may then
            be incomplete or absent; the keys that it has are still validated.
        recorded: ``source`` is the recipe.yaml of a run, whose keys may have the names of an
            earlier version.

    Raises:
        RecipeError: there is no such recipe, or it is invalid; the text lists all errors with
            their line numbers.
    """
    if isinstance(source, Mapping):
        name, label, folder = None, "recipe", Path()
        draft = _extended(Draft(_normalized(to_plain(source)), {(): YamlPosition(label)}), Path())
    else:
        path = _find(source)
        name, label = path.stem.lstrip(".") or None, relative_path(path)
        draft, folder = _read(path), path.parent
        recorded = recorded or (folder / "environment.json").is_file()  # inside a run's folder
    if recorded:
        draft.values = with_new_names(draft.values)
    for override in _overrides(overrides):
        draft = overlay(draft, override)
    if domain is not None:
        written = draft.values.get("domain", {})
        if isinstance(written, dict):
            own = {"name": domain.__name__.lower()} | written
            draft.values = draft.values | {"domain": own}
    sections = _checked(draft, domain, () if recorded else (folder, Path.cwd()))
    if draft.problems:
        raise RecipeError(error_text(draft.problems, label))
    return Recipe(name=draft.values.get("name") or name or sections["domain"].name, **sections)


def with_keys(section: AnySection, values: Mapping[str, Any]) -> AnySection:
    """A section with other values for some of its keys, checked as those of a recipe.

    Raises:
        RecipeError: an unknown key or an invalid value.
    """
    if not values:
        return section
    cls, merged = type(section), to_plain({**section.model_dump(), **values})
    try:
        return cls.model_validate_json(json.dumps(merged), strict=True)
    except ValidationError as error:
        known = listed(cls.model_fields, 20)
        messages = messages_by_key(
            error.errors(include_url=False),
            merged,
            lambda path: f"unknown{nearest(dotted(path), cls.model_fields)}; there are {known}",
        )
        texts = [f"{dotted(key)}: {text}" if key else text for key, text in messages.items()]
        raise RecipeError("; ".join(texts)) from None


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML with every key; `load_recipe` reads back an equal recipe."""
    return dump_yaml(recipe.model_dump(mode="json"))


def differences(old: Recipe, new: Recipe) -> list[str]:
    """The keys whose values differ, as ``"train.lr: null -> 0.001"``."""

    def as_json(recipe: Recipe) -> dict[str, str]:
        values = recipe.model_dump(mode="json")
        return {dotted(path): json.dumps(value) for path, value in leaves(values)}

    def text(value: str | None) -> str:
        if value is None:
            return "absent"
        return str(json.loads(value)) if value.startswith('"') else value

    before, after = as_json(old), as_json(new)
    changed = [key for key in before | after if before.get(key) != after.get(key)]
    return [f"{key}: {text(before.get(key))} -> {text(after.get(key))}" for key in changed]


def bundled() -> dict[str, Path]:
    """The bundled recipes that can be loaded by name."""
    files = [Path(str(entry)) for entry in resources.files("jitkit.recipes").iterdir()]
    return {path.stem: path for path in sorted(files) if path.suffix == ".yaml"}


def recipe_titles() -> dict[str, str]:
    """Titles (first comment lines) of the bundled recipes by name, and of the paper's by path."""
    folder = Path(str(resources.files("jitkit.recipes"))) / "paper"
    paper = {relative_path(path): path for path in sorted(folder.glob("*.yaml"))}
    return {name: _title(path) for name, path in (bundled() | paper).items()}


def _title(path: Path) -> str:
    line = path.read_text(encoding="utf-8").partition("\n")[0]
    return line[1:].strip() if line.startswith("#") else ""


# Reading


def _find(source: str | Path) -> Path:
    """The file at that path, or else the bundled recipe of that name."""
    path, names = Path(source), bundled()
    name = str(source).removesuffix(".yaml")
    if path.is_file():
        return path
    if name in names:
        return names[name]
    what = "it is a folder" if path.is_dir() else "there is no such file"
    hint = nearest(path.stem, names)
    raise RecipeError(f"no recipe {str(source)!r}: {what}; bundled: {listed(names)}{hint}")


def relative_path(path: Path) -> str:
    """A path for messages: relative to the current folder if it is inside it."""
    real, here = path.resolve(), Path.cwd()
    return str(real.relative_to(here)) if real.is_relative_to(here) else str(path)


def _read(path: Path, chain: tuple[Path, ...] = ()) -> Draft:
    """A file, merged into those it extends; ``chain`` holds the files that extend it."""
    start = YamlPosition(relative_path(path))
    try:
        draft = parse_yaml(path.read_text(encoding="utf-8-sig"), start)
    except (OSError, UnicodeDecodeError) as error:
        return Draft({}, {(): start}, [Problem(start, (), f"cannot be read: {error}")])
    if not isinstance(draft.values, dict | None):
        draft.add_problem((), f"{quoted(draft.values)} is not a mapping of sections")
        draft.values = None
    draft.values = _normalized(draft.values or {})
    return _extended(draft, path.parent, (*chain, path))


def _extended(draft: Draft, folder: Path, chain: tuple[Path, ...] = ()) -> Draft:
    """The draft, merged into the recipe named by its key ``extends``; ``name`` is not inherited."""
    base = draft.values.pop("extends", None)
    if base is None:
        return draft
    try:
        path = _base(base, folder, chain)
    except RecipeError as error:
        draft.add_problem(("extends",), str(error))
        return draft
    under = _read(path, chain)
    under.values.pop("name", None)
    return overlay(under, draft)


def _base(name: Any, folder: Path, chain: tuple[Path, ...]) -> Path:
    if not isinstance(name, str):
        raise RecipeError(f"{quoted(name)} is not the name of a recipe")
    path = folder / name if (folder / name).is_file() else _find(name)
    if any(path.samefile(link) for link in chain):
        cycle = " -> ".join(link.name for link in (*chain, path))
        raise RecipeError(f"recipes extend each other in a cycle: {cycle}")
    return path


def _overrides(given: Mapping[str, Any] | Sequence[str]) -> Iterator[Draft]:
    """Each override as a draft with its value nested under its dotted key."""
    given = [given] if isinstance(given, str) else given
    for number, override in enumerate(given, start=1):
        key, equals, text = override.partition("=")
        path, start = tuple(key.split(".")), YamlPosition(None, number)
        if isinstance(given, Mapping):
            draft = Draft(nested(path, to_plain(given[override])), {path: start})
        elif equals:
            draft = parse_yaml(text, start, path)
            draft.values = nested(path, draft.values)
        else:
            draft = Draft({}, {path: start})
            draft.add_problem(path, "no value; write section.key=value")
        draft.values = _normalized(draft.values)
        yield draft


def _normalized(values: dict[str, Any]) -> dict[str, Any]:
    """Expand ``domain: digits``, and turn empty sections into empty mappings."""
    for section in ("domain", *SECTIONS):
        if section in values and values[section] is None:
            values[section] = {}
    if isinstance(values.get("domain"), str):
        values["domain"] = {"name": values["domain"]}
    return values


# Checking


def _checked(draft: Draft, domain: type[Domain] | None, folders: Sequence[Path]) -> dict[str, Any]:
    """The valid sections; errors of the others are added to the draft.

    A class of the user's own, ``my_module:MyDomain``, is imported from one of ``folders``.
    """
    errors = _top_level_errors(draft.values)
    classes = dict(SECTIONS)
    try:
        named = draft.values.get("domain", {})
        given = None if domain is None else domain.Section
        classes["domain"] = given or _domain_section(named, folders)
    except RecipeError as error:
        errors["domain", "name"] = str(error)
    sections = {}
    for key, cls in classes.items():
        values = draft.values.get(key, {})
        try:
            # strict, so that true is not accepted as 1; from JSON, so that a list can be a tuple
            sections[key] = cls.model_validate_json(json.dumps(values), strict=True)
        except ValidationError as error:
            details = error.errors(include_url=False)
            if key == "domain" and domain is not None:
                details = _without_missing_keys(details, values)
                if not details:
                    sections[key] = _UncheckedSection(**values)
            unknown = partial(_unknown, (key,), known=cls.model_fields)
            messages = messages_by_key(details, values, unknown)
            errors |= {(key, *path): text for path, text in messages.items()}
    earlier = tuple(draft.problems)
    for path, text in errors.items():
        if not any(problem.explains(path) for problem in earlier):
            draft.add_problem(path, text)
    return sections


def _without_missing_keys(errors: list[ErrorDetails], values: Any) -> list[ErrorDetails]:
    """The errors of section ``domain`` except those of missing keys."""
    if isinstance(values, dict) and values.keys() <= {"name"}:
        return [error for error in errors if error["loc"] == ("name",)]
    return [error for error in errors if error["type"] != "missing" or len(error["loc"]) > 1]


def _top_level_errors(values: dict[str, Any]) -> dict[KeyPath, str]:
    """Errors outside the sections: an invalid name, and unknown sections."""
    known = ("name", "domain", *SECTIONS)
    errors: dict[KeyPath, str] = {}
    errors |= {(key,): _unknown((), (key,), known) for key in values if key not in known}
    name = values.get("name")
    if name is not None and not (isinstance(name, str) and re.fullmatch(r"[^/\\.][^/\\]*", name)):
        errors["name",] = f"{quoted(name)} cannot be the name of a folder"
    return errors


def _domain_section(values: Any, folders: Sequence[Path]) -> type[DomainSection]:
    """The class of section ``domain``, which the adapter defines."""
    name = values.get("name") if isinstance(values, dict) else values
    if name is None:
        raise RecipeError(f"missing; installed: {listed(installed())}")
    if not isinstance(name, str):
        raise RecipeError(f"{quoted(name)} is not a name; installed: {listed(installed())}")
    if ":" in name and folders:
        return import_domain(name, folders).Section
    return domain_class(name).Section


def _unknown(section: KeyPath, path: KeyPath, known: Iterable[str]) -> str:
    """``unknown``, with a suggestion: the same key of another section, or a similar key."""
    if (now := RENAMED.get(dotted((*section, *path)))) is not None:
        return f"is now {now}"
    key = str(path[-1])
    homes = [f"{name}.{key}" for name, cls in SECTIONS.items() if key in cls.model_fields]
    close = [dotted((*section, word)) for word in difflib.get_close_matches(key, known, n=1)]
    likely = (homes or close) if len(path) == 1 else []
    return "unknown" + (f"; did you mean {' or '.join(likely)}?" if likely else "")
