"""What `jitkit inspect` says: a table of the variables, and a recipe with its doubts beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ProposalRow:
    """A variable, in a line of the table.

    Attributes:
        missing, low, high: share of missing cells and range of the values that were looked at;
            None where there are none.
        role: what becomes of it, and why.
    """

    name: str
    dims: Mapping[str, int]
    chunks: tuple[int, ...]
    dtype: str
    units: str
    missing: float | None
    low: float | None
    high: float | None
    role: str


@dataclass(frozen=True)
class Proposal:
    """What `inspect` found.

    Attributes:
        recipe: sections of a recipe that runs.
        reasons: why it is so, a line each.
        unsure: what may be wrong, and the override that changes it.
        warnings: what will be slow or fail.
        items: of each split.
        notes: what is said beside keys of the recipe, by dotted key.
    """

    path: str
    rows: tuple[ProposalRow, ...]
    recipe: Mapping[str, Any]
    reasons: tuple[str, ...]
    unsure: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...] = ()
    items: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """The same as plain data for JSON."""
        return {
            "path": self.path,
            "variables": [vars(row) | {"dims": dict(row.dims)} for row in self.rows],
            "recipe": dict(self.recipe),
            "reasons": list(self.reasons),
            "unsure": [{"what": what, "override": key} for what, key in self.unsure],
            "warnings": list(self.warnings),
            "items": dict(self.items),
        }

    def text(self) -> str:
        """The recipe as YAML: what was found and guessed above it, what is unsure beside it."""
        lines = [f"# Proposed by `jitkit inspect {self.path}`.", "#"]
        lines += [f"# {reason}" for reason in self.reasons]
        lines += [f"# Warning: {warning}" for warning in self.warnings]
        for name, section in self.recipe.items():
            lines += ["", f"{name}:"]
            for key, value in section.items():
                lines += self._asked(f"{name}.{key}")
                note = self.notes.get(f"{name}.{key}")
                lines.append(f"  {key}: {as_yaml(value)}" + (f"  # {note}" if note else ""))
            lines += self._left(name, section)
        return "\n".join(lines) + "\n"

    def _asked(self, key: str) -> list[str]:
        """What is unsure of a key, and the override, as comments above it."""
        return [
            f"  # unsure: {what}: {override}"
            for what, override in self.unsure
            if _key_of(override) == key
        ]

    def _left(self, name: str, section: Mapping[str, Any]) -> list[str]:
        """What is unsure of keys of a section that the recipe leaves out."""
        return [
            f"  # unsure: {what}: {override}"
            for what, override in self.unsure
            if _key_of(override).split(".")[0] == name
            and _key_of(override).split(".")[1] not in section
        ]


def _key_of(override: str) -> str:
    """Section and key of the first override in a line."""
    return ".".join(re.split(r"[.=\s]", override)[:2])


def as_yaml(value: Any) -> str:
    """A value on one line, as YAML 1.1 and 1.2 read it alike.

    >>> as_yaml({"y": "line", "on": [1e-3, True, None, "a b", "1e3"]})
    '{"y": line, "on": [0.001, true, null, "a b", "1e3"]}'
    """
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{as_yaml(k)}: {as_yaml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(as_yaml, value)) + "]"
    if isinstance(value, str):
        text = value.replace("${env:", "$${env:")
        odd = re.fullmatch(r"y|n|yes|no|on|off|true|false|null|inf|nan", text.lower())
        bare = re.fullmatch(r"[A-Za-z_/][\w./-]*", text, re.ASCII) and not odd
        return text if bare else json.dumps(text, ensure_ascii=False)
    return json.dumps(value)
