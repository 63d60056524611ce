"""Proposal of `jitkit inspect`: a table of variables, a commented recipe, and a model size."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

from jitkit.domains.arrays.plan import make_axes

if TYPE_CHECKING:
    from jitkit.domains.arrays.data import Data


@dataclass(frozen=True)
class ProposalRow:
    """A variable: one row of the table.

    Attributes:
        missing, low, high: fraction of missing cells, and range of the values that were read; None
            if there are none.
        role: in the recipe, and why it is left out.
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
    """A proposed recipe with reasons, doubts and warnings.

    Attributes:
        path: as given by the user.
        rows: of the table of variables.
        recipe: sections of a recipe that runs.
        reasons: for the choices, one line each.
        unsure: pairs of a doubt and the override that changes it.
        warnings: of slow or failing reads.
        items: number of items in each split.
        notes: comments on keys of the recipe, by dotted key.
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
        """The proposal as plain data for JSON."""
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
        """The recipe as YAML, with reasons and warnings above it and doubts as comments in it."""
        lines = [f"# Proposed by `jitkit inspect {self.path}`.", "#"]
        lines += [f"# {reason}" for reason in self.reasons]
        lines += [f"# Warning: {warning}" for warning in self.warnings]
        for name, section in self.recipe.items():
            lines += ["", f"{name}:"]
            for key, value in section.items():
                lines += self._doubts_of_key(f"{name}.{key}")
                note = self.notes.get(f"{name}.{key}")
                lines.append(f"  {key}: {as_yaml(value)}" + (f"  # {note}" if note else ""))
            lines += self._doubts_of_missing_keys(name, section)
        return "\n".join(lines) + "\n"

    def _doubts_of_key(self, key: str) -> list[str]:
        """Comments with the doubts about a key and their overrides."""
        return [
            f"  # unsure: {doubt}: {override}"
            for doubt, override in self.unsure
            if _key_of(override) == key
        ]

    def _doubts_of_missing_keys(self, name: str, section: Mapping[str, Any]) -> list[str]:
        """Comments with the doubts about keys of a section that the recipe leaves out."""
        return [
            f"  # unsure: {doubt}: {override}"
            for doubt, override in self.unsure
            if _key_of(override).split(".")[0] == name
            and _key_of(override).split(".")[1] not in section
        ]


def _key_of(override: str) -> str:
    """Section and key of the first override in a line."""
    return ".".join(re.split(r"[.=\s]", override)[:2])


def as_yaml(value: Any) -> str:
    """A value as one line of YAML with the same meaning in YAML 1.1 and 1.2.

    >>> as_yaml({"y": "line", "on": [1e-3, True, None, "a b", "1e3"]})
    '{"y": line, "on": [0.001, true, null, "a b", "1e3"]}'
    """
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{as_yaml(k)}: {as_yaml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(as_yaml, value)) + "]"
    if isinstance(value, str):
        text = value.replace("${env:", "$${env:")
        reserved = re.fullmatch(r"y|n|yes|no|on|off|true|false|null|inf|nan", text.lower())
        plain = re.fullmatch(r"[A-Za-z_/][\w./-]*", text, re.ASCII) and not reserved
        return text if plain else json.dumps(text, ensure_ascii=False)
    return json.dumps(value)


# Model size and training settings

SIZES = ((300, 96, 4), (3_000, 128, 4), (30_000, 192, 6), (300_000, 384, 8), (None, 768, 12))
"""Training items below which a width and depth are proposed; the last is the paper's B."""
MAX_STEP_FLOPS = 3e11  # a few seconds on two cores
BATCH_SIZES = (16, 8, 4, 2, 1)


@dataclass(frozen=True)
class ProposedSettings:
    """The other sections of a proposed recipe, with reasons."""

    sections: Mapping[str, Any]
    reasons: tuple[str, ...]
    patch: tuple[int, ...]


def propose_settings(data: Data, items: Mapping[str, int]) -> ProposedSettings:
    """Model, training, sampling and evaluation settings for opened data.

    Args:
        data: opened.
        items: number of items in each split.
    """
    channels = sum(len(v.channels) for v in data.plan.variables)
    axes = make_axes(data.plan.axes, data.plan.grid, (data.plan.along, data.section.window))
    tokens, patch = prod(axis.tokens for axis in axes), tuple(axis.patch for axis in axes)
    wanted = next(n for n, size in enumerate(SIZES) if size[0] is None or items["train"] < size[0])
    index = wanted
    while index and step_flops(SIZES[index], tokens, channels * prod(patch)) * 8 > MAX_STEP_FLOPS:
        index -= 1
    _, width, depth = SIZES[index]
    cost = step_flops(SIZES[index], tokens, channels * prod(patch))
    batch = _batch_size(items["train"], cost)
    steps = 1_000 if items["train"] < 100 else 2_000
    limit = "limited by training on a CPU" if index < wanted else "for this number of items"
    return ProposedSettings(
        {
            "model": {"width": width, "depth": depth, "heads": max(1, width // 32)},
            "train": _train(steps, batch, width),
            "sample": {"steps": 25},
            "evaluate": {"samples": max(8, min(200, items["train"]))},
        },
        (
            f"{channels} channel{'s' * (channels > 1)} on "
            f"{' x '.join(str(axis.size) for axis in axes)} cells; patches of "
            f"{' x '.join(map(str, patch))}, {tokens} tokens",
            f"a model of width {width} and depth {depth}, {limit}; with a GPU and many items "
            "use model.width=768 model.depth=12 model.heads=12",
        ),
        patch,
    )


def step_flops(size: tuple[int | None, int, int], tokens: int, features: int) -> float:
    """FLOPs of a training step on one item: three passes, two FLOPs per multiply-add."""
    _, width, depth = size
    blocks = depth * (12 * width * width + 2 * tokens * width)
    ends = features * (128 + width) + 128 * width
    return 6.0 * tokens * (blocks + ends)


def _batch_size(items: int, cost: float) -> int:
    """The largest batch size within the FLOPs of a step, and at most half of the items."""
    return next(n for n in BATCH_SIZES if n == 1 or (2 * n <= items and n * cost <= MAX_STEP_FLOPS))


def _train(steps: int, batch: int, width: int) -> dict[str, Any]:
    return {
        "steps": steps,
        "batch_size": batch,
        "lr": 1e-3 if width < 384 else 3e-4,
        "warmup_steps": 100,
        "schedule": "cosine",
        "clip_gradient": 1.0,
        "ema": [1 - 20 / steps, 1 - 10 / steps],  # of 5 % and 10 % of the steps
        "save_every_steps": 200,
        "preview_every_steps": 200,
        "preview_samples": 4,
        "validate_every_steps": 200,
        "validate_items": 64,
    }
