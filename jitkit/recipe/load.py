"""A recipe: from YAML to the typed sections of a run and back, all its mistakes told at once.

    a file, and what it extends ─▶ values, and where each was written (written.py)
    ─▶ overrides laid on top ─▶ each section checked by its own model
    ─▶ Recipe, or one RecipeError with every mistake (mistakes.py)

Nothing here loads torch: a recipe is checked in the first second.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, SerializeAsAny, ValidationError
from pydantic_core import ErrorDetails

from jitkit.domain import Domain, domain_class, installed
from jitkit.errors import RecipeError, listed, nearest
from jitkit.recipe.messages import error_text, phrased, quoted
from jitkit.recipe.renamed import RENAMED, with_new_names
from jitkit.recipe.yaml import (
    Draft,
    KeyPath,
    YamlPosition,
    dotted,
    dumped,
    laid,
    leaves,
    parsed,
    plain,
)
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
"""The core's sections; the class of section ``domain`` is its adapter's."""


class _Said(DomainSection):
    """Section ``domain`` as it was written, for a domain that was made from something else."""

    model_config = ConfigDict(extra="allow")


class Recipe(Section):
    """Everything that defines a run."""

    name: str
    """Name of the run's folder; the recipe file's own name where not given."""
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
    """The recipe that ``source`` describes, with overrides on top, checked.

    In YAML, ``domain: digits`` is short for ``domain: {name: digits}``. ``extends: other.yaml``
    (beside this file, or bundled) is read first and this file laid over it: mappings key by key,
    everything else whole. ``${env:NAME}`` and ``${env:NAME:-default}`` are replaced inside values,
    and typed like any other scalar where they are all of one.

    Args:
        source: a file, the bare name of a bundled recipe, or the sections themselves.
        overrides: ``["train.lr=1e-4", "sample.guidance_interval=[0.2, 0.9]"]``, values in YAML, or
            ``{"train.lr": 1e-4}``; the last one counts.
        domain: the adapter's class, where it is not to be found by its name. Section ``domain`` may
            lack keys then, or be left out; what it says is checked all the same.
        recorded: ``source`` is the recipe.yaml of a run, whose keys may have the names that an
            earlier jitkit gave them.

    Raises:
        RecipeError: there is no such recipe, or something in it cannot be meant; the text lists
            every mistake with its line.
    """
    if isinstance(source, Mapping):
        name, shown = None, "recipe"
        draft = _extended(Draft(_tidied(plain(source)), {(): YamlPosition(shown)}), Path())
    else:
        path = _found(source)
        name, shown = path.stem.lstrip(".") or None, _shown(path)
        draft = _read(path)
    if recorded:
        draft.values = with_new_names(draft.values)
    for override in _overrides(overrides):
        draft = laid(draft, override)
    if domain is not None:
        written = draft.values.get("domain", {})
        if isinstance(written, dict):
            own = {"name": domain.__name__.lower()} | written
            draft.values = draft.values | {"domain": own}
    sections = _checked(draft, domain)
    if draft.mistakes:
        raise RecipeError(error_text(draft.mistakes, shown))
    return Recipe(name=draft.values.get("name") or name or sections["domain"].name, **sections)


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, every key with its value; `load_recipe` reads back an equal one."""
    return dumped(recipe.model_dump(mode="json"))


def differences(old: Recipe, new: Recipe) -> list[str]:
    """What changed, as ``"train.lr: null -> 0.001"`` for each key whose value differs."""
    before, after = (dict(leaves(recipe.model_dump(mode="json"))) for recipe in (old, new))

    def value(values: dict[KeyPath, Any], path: KeyPath) -> str:
        if path not in values:
            return "absent"
        found = values[path]
        return found if isinstance(found, str) else json.dumps(found)

    changed = [
        path
        for path in before | after
        if path not in before or path not in after or before[path] != after[path]
    ]
    return [f"{dotted(path)}: {value(before, path)} -> {value(after, path)}" for path in changed]


def bundled() -> dict[str, Path]:
    """The recipes that come with jitkit, by name."""
    files = [Path(str(entry)) for entry in resources.files("jitkit.recipes").iterdir()]
    return {path.stem: path for path in sorted(files) if path.suffix == ".yaml"}


# Reading


def _found(source: str | Path) -> Path:
    """The file of that path, or else the bundled recipe of that name."""
    path, names = Path(source), bundled()
    name = str(source).removesuffix(".yaml")
    if path.is_file():
        return path
    if name in names:
        return names[name]
    what = "it is a folder" if path.is_dir() else "there is no such file"
    hint = nearest(path.stem, names)
    raise RecipeError(f"no recipe {str(source)!r}: {what}; bundled: {listed(names)}{hint}")


def _shown(path: Path) -> str:
    """A path as messages name it: from the current folder where it lies below."""
    real, here = path.resolve(), Path.cwd()
    return str(real.relative_to(here)) if real.is_relative_to(here) else str(path)


def _read(path: Path, chain: tuple[Path, ...] = ()) -> Draft:
    """A file, laid over what it extends; ``chain`` holds the files that extend it."""
    draft = Draft(places={(): YamlPosition(_shown(path))})
    try:
        values = parsed(path.read_text(encoding="utf-8-sig"), draft, file=_shown(path))
    except (OSError, UnicodeDecodeError) as error:
        draft.wrong((), f"cannot be read: {error}")
        return draft
    if isinstance(values, dict):
        draft.values = _tidied(values)
    elif values is not None:
        draft.wrong((), f"{quoted(values)} is not a mapping of sections")
    return _extended(draft, path.parent, (*chain, path))


def _extended(draft: Draft, folder: Path, chain: tuple[Path, ...] = ()) -> Draft:
    """The draft, laid over the recipe that its key ``extends`` names; names are not inherited."""
    base = draft.values.pop("extends", None)
    if base is None:
        return draft
    try:
        path = _base(base, folder, chain)
    except RecipeError as error:
        draft.wrong(("extends",), str(error))
        return draft
    under = _read(path, chain)
    under.values.pop("name", None)
    return laid(under, draft)


def _base(name: Any, folder: Path, chain: tuple[Path, ...]) -> Path:
    if not isinstance(name, str):
        raise RecipeError(f"{quoted(name)} is not the name of a recipe")
    path = folder / name if (folder / name).is_file() else _found(name)
    if any(path.samefile(link) for link in chain):
        circle = " -> ".join(link.name for link in (*chain, path))
        raise RecipeError(f"goes round in a circle: {circle}")
    return path


def _overrides(given: Mapping[str, Any] | Sequence[str]) -> Iterator[Draft]:
    """Each override as a draft: its value, inside the mappings that its dotted key names."""
    given = [given] if isinstance(given, str) else given
    for override in given:
        key, equals, written = override.partition("=")
        path = tuple(key.split("."))
        draft = Draft(places={path: YamlPosition(None)})
        if isinstance(given, Mapping):
            value = plain(given[override])
        elif equals:
            value = parsed(written, draft, path)
        else:
            draft.wrong(path, "no value; write section.key=value")
            yield draft
            continue
        for part in reversed(path):
            value = {part: value}
        draft.values = _tidied(value)
        yield draft


def _tidied(values: dict[str, Any]) -> dict[str, Any]:
    """``domain: digits`` written out, and a section that holds nothing as an empty mapping."""
    for section in ("domain", *SECTIONS):
        if section in values and values[section] is None:
            values[section] = {}
    if isinstance(values.get("domain"), str):
        values["domain"] = {"name": values["domain"]}
    return values


# Checking


def _checked(draft: Draft, domain: type[Domain] | None = None) -> dict[str, Any]:
    """The sections that are right; what is wrong with the others goes into the draft."""
    found = _checked_top(draft.values)
    classes = dict(SECTIONS)
    try:
        named = draft.values.get("domain", {})
        given = None if domain is None else getattr(domain, "Section", DomainSection)
        classes["domain"] = given or _domain_section(named)
    except RecipeError as error:
        found["domain", "name"] = str(error)
    sections = {}
    for key, cls in classes.items():
        values = draft.values.get(key, {})
        try:
            # strict, or true would pass for 1; as JSON, or a list would not pass for a tuple
            sections[key] = cls.model_validate_json(json.dumps(values), strict=True)
        except ValidationError as error:
            errors = error.errors(include_url=False)
            if key == "domain" and domain is not None:
                errors = _of_what_is_said(errors, values)
                if not errors:
                    sections[key] = _Said(**values)
            unknown = partial(_unknown, (key,), known=cls.model_fields)
            wrong = phrased(errors, values, unknown)
            found |= {(key, *path): text for path, text in wrong.items()}
    read = tuple(draft.mistakes)
    for path, text in found.items():
        if not any(mistake.explains(path) for mistake in read):
            draft.wrong(path, text, _blamed(draft, path))
    return sections


def _of_what_is_said(errors: list[ErrorDetails], values: Any) -> list[ErrorDetails]:
    """What is wrong with section ``domain`` but for what it lacks."""
    if isinstance(values, dict) and values.keys() <= {"name"}:
        return [error for error in errors if error["loc"] == ("name",)]
    return [error for error in errors if error["type"] != "missing" or len(error["loc"]) > 1]


def _checked_top(values: dict[str, Any]) -> dict[KeyPath, str]:
    """What is wrong beside the sections: with the name, and with keys that are no section."""
    known = ("name", "domain", *SECTIONS)
    found: dict[KeyPath, str] = {}
    found |= {(key,): _unknown((), (key,), known) for key in values if key not in known}
    name = values.get("name")
    if name is not None and not (isinstance(name, str) and re.fullmatch(r"[^/\\.][^/\\]*", name)):
        found["name",] = f"{quoted(name)} cannot be the name of a folder"
    return found


def _domain_section(values: Any) -> type[DomainSection]:
    """The class of section ``domain``: the adapter's own."""
    name = values.get("name") if isinstance(values, dict) else values
    if name is None:
        raise RecipeError(f"missing; installed: {listed(installed())}")
    if not isinstance(name, str):
        raise RecipeError(f"{quoted(name)} is not a name; installed: {listed(installed())}")
    return domain_class(name).Section


def _unknown(section: KeyPath, path: KeyPath, known: Iterable[str]) -> str:
    """``unknown``, and the key that was probably meant: of that name elsewhere, or nearly so."""
    if (now := RENAMED.get(dotted((*section, *path)))) is not None:
        return f"is now {now}"
    key = str(path[-1])
    homes = [f"{name}.{key}" for name, cls in SECTIONS.items() if key in cls.model_fields]
    close = [dotted((*section, word)) for word in difflib.get_close_matches(key, known, n=1)]
    likely = (homes or close) if len(path) == 1 else []
    return "unknown" + (f"; did you mean {' or '.join(likely)}?" if likely else "")


def _blamed(draft: Draft, path: KeyPath) -> YamlPosition:
    """Where to mend a mistake: for one of a section as a whole, the override that touched it."""
    touched = [place for key, place in draft.places.items() if key[: len(path)] == path]
    overrides = [place for place in touched if place.file is None]
    return overrides[-1] if overrides and len(path) == 1 else draft.place(path)
