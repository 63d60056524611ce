"""YAML with line numbers: parse, overlay, and write the plain values of a recipe.

Tags are refused, so that YAML cannot name a Python object and opening a recipe runs no code.
Aliases are refused too, because their expansion is unbounded. Scalars are typed as in YAML 1.2:
``1e-4`` is a number, ``no`` and ``2020-01-01`` are text.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from jitkit.errors import RecipeError

KeyPath = tuple[str | int, ...]


def dotted(path: KeyPath) -> str:
    """A key in the notation of overrides, list items counted from 0.

    >>> dotted(("train", "ema", 1))
    'train.ema[1]'
    """
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return "".join(steps).removeprefix(".")


@dataclass(frozen=True)
class YamlPosition:
    """A line of a file, or an override (``file`` is None), numbered as given. 0 means unknown."""

    file: str | None
    line: int = 0
    column: int = 0

    def at(self, mark: yaml.Mark) -> YamlPosition:
        """Position of a mark in YAML text that begins here; for an override, the override."""
        return self if self.file is None else YamlPosition(self.file, mark.line + 1)


@dataclass(frozen=True)
class Problem:
    """An error at a key, or at the root () if a whole file cannot be read."""

    position: YamlPosition
    path: KeyPath
    text: str

    def __str__(self) -> str:
        return f"{dotted(self.path)}: {self.text}" if self.path else self.text

    def explains(self, other: KeyPath) -> bool:
        """Whether this may cause a problem at ``other``: a parent or child key, or ``extends``."""
        related = all(a == b for a, b in zip(self.path, other, strict=False))
        return related or self.path == ("extends",)


@dataclass
class Draft:
    """Parsed values, the position of each, and the problems found so far."""

    values: Any
    positions: dict[KeyPath, YamlPosition]
    problems: list[Problem] = field(default_factory=list)

    def position(self, path: KeyPath) -> YamlPosition:
        """Position of a value; of a section or an absent key, first an override inside it."""
        if len(path) == 1 or path not in self.positions:
            inside = [at for key, at in self.positions.items() if key[: len(path)] == path]
            if overrides := [at for at in inside if at.file is None]:
                return max(overrides, key=lambda override: override.line)
        while path not in self.positions:
            path = path[:-1]
        return self.positions[path]

    def add_problem(self, path: KeyPath, text: str, position: YamlPosition | None = None) -> None:
        """Record a problem, by default at the position of its key."""
        self.problems.append(Problem(position or self.position(path), path, text))


def overlay(under: Draft, over: Draft) -> Draft:
    """Merge mappings key by key; other values are replaced, and their problems dropped."""
    replacing = {path for path, _ in leaves(over.values)}

    def kept(path: KeyPath) -> bool:
        return replacing.isdisjoint(path[:n] for n in range(len(path) + 1))

    positions = {path: at for path, at in under.positions.items() if kept(path)}
    problems = [problem for problem in under.problems if kept(problem.path)]
    return Draft(
        merged(under.values, over.values), positions | over.positions, problems + over.problems
    )


def merged(under: Any, over: Any) -> Any:
    """Mappings merged key by key; any other value of ``over`` replaces the one under it."""
    if not (isinstance(under, dict) and isinstance(over, dict)):
        return over
    return under | {key: merged(under.get(key), value) for key, value in over.items()}


def nested(path: KeyPath, value: Any) -> Any:
    """The mapping that has the value at ``path`` and nothing else."""
    for key in reversed(path):
        value = {key: value}
    return value


def leaves(values: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every value that is not a mapping, with its path of keys.

    >>> list(leaves({"sample": {"steps": 50, "guidance_interval": [0.1, 1]}}))
    [(('sample', 'steps'), 50), (('sample', 'guidance_interval'), [0.1, 1])]
    """
    if not isinstance(values, dict):
        yield path, values
        return
    for key, value in values.items():
        yield from leaves(value, (*path, key))


def to_plain(values: Any) -> Any:
    """Convert Python values to those of YAML: paths to text, tuples and arrays to lists."""

    def default(value: Any) -> Any:
        if isinstance(value, Mapping):
            return dict(value)
        return value.tolist() if hasattr(value, "tolist") else str(value)  # of numpy

    return json.loads(json.dumps(values, default=default), parse_float=_number)


# Reading


class _Loader(yaml.BaseLoader):
    """Loads nodes whose scalars are still text."""

    def fetch_alias(self) -> None:
        problem = "aliases (*name) are not allowed; use `extends` to reuse a whole recipe"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=self.get_mark())


def parse_yaml(text: str, start: YamlPosition, path: KeyPath = ()) -> Draft:
    """Parse YAML text, one document; a value with an error becomes None.

    Args:
        text: YAML.
        start: the file, or the override, that contains the text.
        path: key of the value; () for a whole file.
    """
    draft = Draft(None, {path: start})
    try:
        if (node := yaml.compose(text, _Loader)) is not None:
            draft.values = _value(node, draft, path, start)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        position = replace(start.at(mark), column=mark.column + 1) if mark else start
        draft.add_problem(path, f"not YAML: {error.problem or error.context}", position)
    except (yaml.YAMLError, RecursionError) as error:
        draft.add_problem(path, f"not YAML: {str(error).splitlines()[0]}")
    return draft


def _value(node: yaml.Node, draft: Draft, path: KeyPath, start: YamlPosition) -> Any:
    position = start.at(node.start_mark)
    draft.positions.setdefault(path, position)  # for list items; keys have a position already
    if not re.fullmatch("tag:yaml.org,2002:(str|seq|map)", node.tag):
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        draft.add_problem(path, f"YAML tags are not allowed: {tag}", position)
    elif isinstance(node, yaml.MappingNode):
        return _mapping(node, draft, path, start)
    elif isinstance(node, yaml.SequenceNode):
        return [_value(item, draft, (*path, i), start) for i, item in enumerate(node.value)]
    elif isinstance(node, yaml.ScalarNode):
        try:
            return _scalar(node.value, quoted=node.style is not None)
        except RecipeError as error:
            draft.add_problem(path, str(error), position)


def _mapping(node: yaml.MappingNode, draft: Draft, path: KeyPath, start: YamlPosition) -> Any:
    values: dict[str, Any] = {}
    for key, value in node.value:
        position, here = start.at(key.start_mark), (*path, key.value)
        if not isinstance(key, yaml.ScalarNode):
            draft.add_problem(path, "a key must be a word, not a list or a mapping", position)
        elif key.value in values:
            first = f", first on line {draft.positions[here].line}" if start.file else ""
            draft.add_problem(here, f"given twice{first}", position)
        else:
            draft.positions[here] = position
            values[key.value] = _value(value, draft, here, start)
    return values


_REFERENCE = re.compile(r"\$?\$\{env:([^}:]*)(?::-([^}]*))?\}")


def _scalar(text: str, *, quoted: bool) -> Any:
    """A scalar with ``${env:NAME}`` and ``${env:NAME:-default}`` replaced; ``$${env:`` escapes.

    The result is typed if the scalar is unquoted without references, or is a single reference.

    Raises:
        RecipeError: a variable is not set and has no default.
    """

    def replaced(reference: re.Match[str]) -> str:
        if reference[0].startswith("$$"):
            return reference[0][1:]
        name, default = reference.groups()
        value = os.environ.get(name, default)
        if value is None:
            hint = f"set it, or write a default as ${{env:{name}:-default}}"
            raise RecipeError(f"the environment variable {name} is not set; {hint}")
        return value

    whole = _REFERENCE.fullmatch(text) and not text.startswith("$$")
    value, references = _REFERENCE.subn(replaced, text)
    return parse_scalar(value) if whole or not (quoted or references) else value


_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False} | {
    f"{sign}.inf": float(f"{sign}inf") for sign in ("", "+", "-")
}
_NUMBER = re.compile(r"[-+]?(?!0\d)[-+.\de_]{1,1000}", re.ASCII | re.IGNORECASE)


def parse_scalar(text: str) -> Any:
    """The typed value of an unquoted scalar; a number without a fraction is an integer.

    >>> [parse_scalar(word) for word in ("1e-4", "1e5", "100_000", "true", "no", "~", "007")]
    [0.0001, 100000, 100000, True, 'no', None, '007']
    """
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for number in (int, _number) if _NUMBER.fullmatch(text) else ():
        with suppress(ValueError):
            return number(text)
    return text


def _number(text: str) -> float:
    value = float(text)
    return int(value) if value.is_integer() else value


# Writing


class _Dumper(yaml.SafeDumper):
    """One key per line, lists on one line, quotes where text would be parsed as another type."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _list_node(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)


def _text_node(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    bare = isinstance(parse_scalar(text), str) and text.splitlines() == [text]
    escaped = _REFERENCE.sub(lambda reference: "$" + reference[0], text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", escaped, style=None if bare else '"')


def _mapping_node(dumper: yaml.SafeDumper, values: dict[str, Any]) -> yaml.Node:
    node = dumper.represent_mapping("tag:yaml.org,2002:map", values)
    for key, _ in node.value:  # references in keys are not replaced, so they must not be escaped
        key.value = _REFERENCE.sub(lambda reference: reference[0][1:], key.value)
    return node


_Dumper.add_representer(dict, _mapping_node)
_Dumper.add_representer(list, _list_node)
_Dumper.add_representer(str, _text_node)


def dump_yaml(values: dict[str, Any]) -> str:
    """Plain values as YAML; `parse_yaml` reads back equal ones.

    >>> print(dump_yaml({"train": {"lr": None, "betas": [0.9, 0.95], "note": "1e-4"}}), end="")
    train:
      lr: null
      betas: [0.9, 0.95]
      note: "1e-4"
    """
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
