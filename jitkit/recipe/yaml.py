"""Values as they were written: YAML with its lines, drafts that are laid over one another.

A recipe holds plain values. Tags are refused, so that YAML cannot name a Python object and opening
a recipe runs nothing; aliases as well, whose expansion has no bound. Scalars are typed as in YAML
1.2: ``1e-4`` is a number, ``no`` and ``2020-01-01`` are text.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from jitkit.errors import RecipeError

KeyPath = tuple[str | int, ...]


def dotted(path: KeyPath) -> str:
    """A key as an override writes it, items of lists counted from 0.

    >>> dotted(("train", "ema", 1))
    'train.ema[1]'
    """
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return "".join(steps).removeprefix(".")


@dataclass(frozen=True)
class YamlPosition:
    """Where something was written: in a file, or (None) in an override. Line 0 is unknown."""

    file: str | None
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        if self.file is None:
            return "override"
        return ":".join([self.file, *(str(n) for n in (self.line, self.column) if n)])


@dataclass(frozen=True)
class Problem:
    """One thing to mend, at a key; at the root () where a whole file cannot be read."""

    place: YamlPosition
    path: KeyPath
    text: str

    def __str__(self) -> str:
        return f"{dotted(self.path)}: {self.text}" if self.path else self.text

    def explains(self, other: KeyPath) -> bool:
        """Whether a mistake at ``other`` may only follow from this one: above, below, or of all."""
        related = all(a == b for a, b in zip(self.path, other, strict=False))
        return related or self.path == ("extends",)


@dataclass
class Draft:
    """Values that were read, where each was written, and what is wrong with them so far."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, YamlPosition] = field(default_factory=dict)
    mistakes: list[Problem] = field(default_factory=list)

    def place(self, path: KeyPath) -> YamlPosition:
        """Where the value at ``path`` was written, or else the nearest mapping around it."""
        above = (path[:n] for n in range(len(path), -1, -1))
        return next(self.places[p] for p in above if p in self.places)

    def wrong(self, path: KeyPath, text: str, place: YamlPosition | None = None) -> None:
        """Note a mistake, at the place of its key where no other is given."""
        self.mistakes.append(Problem(place or self.place(path), path, text))


def laid(under: Draft, over: Draft) -> Draft:
    """One draft over another: mappings key by key, all else replaced and its mistakes forgotten."""
    replacing = {path for path, _ in leaves(over.values)}

    def replaced(path: KeyPath) -> bool:
        return any(path[:n] in replacing for n in range(len(path) + 1))

    return Draft(
        _merged(under.values, over.values),
        {path: at for path, at in under.places.items() if not replaced(path)} | over.places,
        [mistake for mistake in under.mistakes if not replaced(mistake.path)] + over.mistakes,
    )


def _merged(under: Any, over: Any) -> Any:
    if not (isinstance(under, dict) and isinstance(over, dict)):
        return over
    return under | {key: _merged(under.get(key), value) for key, value in over.items()}


def leaves(values: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every value that is not a mapping, with its keys.

    >>> list(leaves({"sample": {"steps": 50, "interval": [0.1, 1]}}))
    [(('sample', 'steps'), 50), (('sample', 'interval'), [0.1, 1])]
    """
    if not isinstance(values, dict):
        yield path, values
        return
    for key, value in values.items():
        yield from leaves(value, (*path, key))


def plain(values: Any) -> Any:
    """Python values as YAML would give them: paths as text, tuples and arrays as lists."""

    def default(value: Any) -> Any:
        if isinstance(value, Mapping):
            return dict(value)
        return value.tolist() if hasattr(value, "tolist") else str(value)  # numpy's have it

    return json.loads(json.dumps(values, default=default), parse_float=_number)


# Reading


class _Loader(yaml.BaseLoader):
    """Nodes, their values still text."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark: yaml.Mark = self.get_event().start_mark  # type: ignore[no-untyped-call]
            problem = "an alias (*name) has no place in a recipe; `extends` takes over a whole one"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
        return super().compose_node(parent, index)


def parsed(text: str, draft: Draft, path: KeyPath = (), file: str | None = None) -> Any:
    """The value that YAML text describes.

    Places and mistakes go into the draft; a value with a mistake is None.

    Args:
        text: YAML, one document.
        draft: where places and mistakes are noted.
        path: the key whose value this is; () for a whole file.
        file: the file's name in messages; None for an override.
    """
    try:
        node = yaml.compose(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = YamlPosition(file, mark.line + 1, mark.column + 1) if mark else None
        draft.wrong(path, f"not YAML: {error.problem or error.context}", place)
    except (yaml.YAMLError, RecursionError) as error:
        draft.wrong(path, f"not YAML: {str(error).splitlines()[0]}")
    else:
        return None if node is None else _value(node, draft, path, file)


def _value(node: yaml.Node, draft: Draft, path: KeyPath, file: str | None) -> Any:
    place = YamlPosition(file, node.start_mark.line + 1)
    if not re.fullmatch("tag:yaml.org,2002:(str|seq|map)", node.tag):
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        draft.wrong(path, f"a recipe holds plain values, not the tag {tag}", place)
    elif isinstance(node, yaml.MappingNode):
        return _mapping(node, draft, path, file)
    elif isinstance(node, yaml.SequenceNode):
        return [_value(item, draft, (*path, i), file) for i, item in enumerate(node.value)]
    elif isinstance(node, yaml.ScalarNode):
        draft.places.setdefault(path, place)  # an item of a list; a key has its own already
        try:
            return _scalar(node.value, quoted=node.style is not None)
        except RecipeError as error:
            draft.wrong(path, str(error), place)


def _mapping(
    node: yaml.MappingNode, draft: Draft, path: KeyPath, file: str | None
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in node.value:
        place = YamlPosition(file, key.start_mark.line + 1)
        here = (*path, key.value)
        if not isinstance(key, yaml.ScalarNode):
            draft.wrong(path, "a key is a word, not a list or a mapping", place)
        elif key.value in values:
            first = draft.places[here].line
            draft.wrong(here, f"given twice, first on line {first}", place)
        else:
            draft.places[here] = place
            values[key.value] = _value(value, draft, here, file)
    return values


_REFERENCE = re.compile(r"\$?\$\{env:([^}:]*)(?::-([^}]*))?\}")


def _scalar(text: str, *, quoted: bool) -> Any:
    """A scalar with ``${env:NAME}`` and ``${env:NAME:-default}`` replaced; ``$${env:`` escapes.

    Typed where it is not quoted, and where a reference is all of it.

    Raises:
        RecipeError: a variable is not set and has no default.
    """

    def replaced(reference: re.Match[str]) -> str:
        if reference[0].startswith("$$"):
            return reference[0][1:]
        name, default = reference.groups()
        value = os.environ.get(name, default)
        if value is None:
            way = f"set it, or write a default as ${{env:{name}:-default}}"
            raise RecipeError(f"the environment variable {name} is not set; {way}")
        return value

    whole = _REFERENCE.fullmatch(text) and not text.startswith("$$")
    value, references = _REFERENCE.subn(replaced, text)
    return typed(value) if whole or not (quoted or references) else value


_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False} | {
    f"{sign}.inf": float(f"{sign}inf") for sign in ("", "+", "-")
}
_INTEGER = re.compile(r"[-+]?(0|[1-9][\d_]{0,999})", re.ASCII)
_DECIMAL = re.compile(r"[-+]?(\d[\d_]*(\.\d*)?|\.\d+)(e[-+]?\d+)?", re.ASCII | re.IGNORECASE)


def typed(text: str) -> Any:
    """What an unquoted scalar means; a number without a fraction is whole.

    >>> [typed(word) for word in ("1e-4", "1e5", "100_000", "true", "no", "~", "007")]
    [0.0001, 100000, 100000, True, 'no', None, '007']
    """
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _DECIMAL.fullmatch(text) and not re.match(r"[-+]?0\d", text):
        return _number(text)
    return text


def _number(text: str) -> float:
    value = float(text)
    return int(value) if value.is_integer() else value


# Writing


class _Dumper(yaml.SafeDumper):
    """A key a line, lists in one, quotes where text would be read as anything else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _list_node(dumper: yaml.SafeDumper, values: list[Any]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)


def _text_node(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    bare = isinstance(typed(text), str) and text.splitlines() == [text]
    escaped = _REFERENCE.sub(lambda reference: "$" + reference[0], text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", escaped, style=None if bare else '"')


def _mapping_node(dumper: yaml.SafeDumper, values: dict[str, Any]) -> yaml.Node:
    node = dumper.represent_mapping("tag:yaml.org,2002:map", values)
    for key, _ in node.value:  # references are not read in keys, and so not escaped
        key.value = _REFERENCE.sub(lambda reference: reference[0][1:], key.value)
    return node


_Dumper.add_representer(dict, _mapping_node)
_Dumper.add_representer(list, _list_node)
_Dumper.add_representer(str, _text_node)


def dumped(values: dict[str, Any]) -> str:
    """Plain values as YAML; `parsed` reads back equal ones.

    >>> print(dumped({"train": {"lr": None, "betas": [0.9, 0.95], "note": "1e-4"}}), end="")
    train:
      lr: null
      betas: [0.9, 0.95]
      note: "1e-4"
    """
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
