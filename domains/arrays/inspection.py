"""`jitkit inspect`: look at a store, guess what its dimensions are, propose a recipe that runs.

Metadata and coordinates are read, and the values of a few items. A guess has its reason, and what
is unsure names the override that changes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jitkit.domains.arrays.data import Data, open_data
from jitkit.domains.arrays.guesses import Guess, guess, hours_of_step
from jitkit.domains.arrays.plan import make_axes
from jitkit.domains.arrays.section import ArraysSection

if TYPE_CHECKING:
    from jitkit.domains.stores.store import Described, Store

LOOKED_AT = 8  # items whose values are looked at
LOOKED_BYTES = 2**28  # of a variable that are read for it, at most
SIZES = ((300, 96, 4), (3_000, 128, 4), (30_000, 192, 6))  # items below which: width, depth
LARGEST = (384, 8)


@dataclass(frozen=True)
class Row:
    """A variable, in a line of the table.

    Attributes:
        missing, low, high: share of missing cells and range of the values that were looked at; None
            where there are none.
        role: predicted, static or left out.
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
    """

    path: str
    rows: tuple[Row, ...]
    recipe: Mapping[str, Any]
    reasons: tuple[str, ...]
    unsure: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...] = ()
    items: Mapping[str, int] = field(default_factory=dict)

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
        """The recipe as YAML, with what was guessed above it."""
        import yaml

        lines = [f"# Proposed by `jitkit inspect {self.path}`.", "#"]
        lines += [f"# {reason}" for reason in self.reasons]
        if self.unsure:
            lines += ["#", "# Unsure of these; each line ends in the override that changes it:"]
            lines += [f"#   {what}: {key}" for what, key in self.unsure]
        lines += [f"# Warning: {warning}" for warning in self.warnings]
        for name, section in self.recipe.items():
            lines += ["", yaml.safe_dump({name: section}, sort_keys=False, width=100).rstrip()]
        return "\n".join(lines) + "\n"


def inspect(
    path: str, *, group: str | None = None, options: Mapping[str, Any] | None = None
) -> Proposal:
    """Look at a store and propose a recipe for it.

    Args:
        path, group, options: as in section ``domain``.

    Raises:
        DataError: it cannot be read, or nothing in it can be trained on; the text says what is
            there.
    """
    from jitkit.domains.stores.store import Store

    named = path if "://" in path else str(Path(path).expanduser().absolute())
    store = Store(named, group=group, options=options)
    found = guess(store)
    section: dict[str, Any] = {"name": "arrays", "path": named}
    section |= {k: v for k, v in {"group": group, "options": options}.items() if v}
    looked = {name: _look(store, name, found) for name in store.variables}
    found = found.without({name for name, seen in looked.items() if seen.constant})
    section |= found.section()
    data = open_data(ArraysSection(**section))
    data, section, unsure = _with_gap(data, section, store, found)
    counts = {"train": len(data.items("train")), "val": len(data.items("val"))}
    recipe = {"domain": section} | _training(counts, data)
    return Proposal(
        path=path,
        rows=tuple(_row(name, v, looked[name], found) for name, v in store.variables.items()),
        recipe=recipe,
        reasons=(*found.reasons, *_sizes_told(recipe, data, counts)),
        unsure=(*found.unsure, *unsure, *_hints(store, found, looked)),
        warnings=tuple(_slow(data)),
        items=counts,
    )


# Values


@dataclass(frozen=True)
class _Seen:
    """What the values of a few items tell."""

    missing: float | None = None
    low: float | None = None
    high: float | None = None
    constant: bool = False
    skewed: bool = False


def _look(store: Store, name: str, found: Guess) -> _Seen:
    """Look at a variable's values, at evenly spread places along the sample dimensions."""
    variable = store.variables[name]
    if not variable.numeric:
        return _Seen()
    sizes = dict(zip(variable.dims, variable.shape, strict=True))
    one = {dim: n for dim, n in sizes.items() if dim not in found.sample}
    if 4 * prod(one.values()) > LOOKED_BYTES:
        return _Seen()
    drawn = {dim: n for dim, n in sizes.items() if dim in found.sample}
    count = min(LOOKED_AT, max(1, LOOKED_BYTES // (4 * max(1, prod(one.values())))))
    if found.window > 1:  # a record: a stretch of it instead of single steps
        where: list[dict[str, int | slice]] = [{d: slice(0, 50_000) for d in drawn}]
    else:
        where = [{dim: (i * n + n // 2) // count for dim, n in drawn.items()} for i in range(count)]
    values = np.concatenate([store.read(name, w).ravel() for w in where])
    return _summary(values)


def _summary(values: np.ndarray[Any, np.dtype[Any]]) -> _Seen:
    known = values[np.isfinite(values)].astype(np.float64)
    missing = 1 - len(known) / max(1, len(values))
    if not len(known):
        return _Seen(missing=missing)
    low, high = float(known.min()), float(known.max())
    middle, most = np.quantile(known, [0.5, 0.99])
    skewed = low >= 0 and high > 0 and bool(middle * 20 < most)
    return _Seen(missing, low, high, constant=low == high, skewed=skewed)


def _row(name: str, variable: Described, seen: _Seen, found: Guess) -> Row:
    return Row(
        name=name,
        dims=dict(zip(variable.dims, variable.shape, strict=True)),
        chunks=tuple(variable.chunks),
        dtype=str(variable.dtype),
        units=str(variable.attrs.get("units", "")),
        missing=seen.missing,
        low=seen.low,
        high=seen.high,
        role=found.role(name, constant=seen.constant),
    )


# The rest of the recipe


def _with_gap(
    data: Data, section: dict[str, Any], store: Store, found: Guess
) -> tuple[Data, dict[str, Any], list[tuple[str, str]]]:
    """A share held out at the end, and steps left out before it, as far as there are enough."""
    steps = len(data.plan.values[found.sample[0]])
    hours = hours_of_step(store, found.sample[0])
    gap = 0
    if hours is not None and found.window == 1:
        gap = min(round(5 * 24 / hours), steps // 20)  # weather forgets in about five days
    share = 0.1
    if found.window > 1:  # room for at least two items
        share = max(share, min(0.3, (found.window + found.stride) / steps * 1.01))
    elif steps * share < 1:
        share = 1 / steps if steps > 2 else 0.0
    changed = section | {"val": round(share, 4)} | ({"gap": gap} if gap else {})
    told = [] if gap or hours is None else [("steps between training and held-out", "domain.gap=0")]
    return open_data(ArraysSection(**changed)), changed, told


def _training(items: Mapping[str, int], data: Data) -> dict[str, Any]:
    """Sections model and train by the number of items, for a processor."""
    width, depth = _size(items["train"])
    batch = 1
    while batch < 16 and 4 * batch <= items["train"]:
        batch *= 2
    return {
        "model": {"width": width, "depth": depth, "heads": width // 32},
        "train": {
            "steps": 2_000,
            "batch_size": batch,
            "lr": 1e-3,
            "warmup_steps": 100,
            "schedule": "cosine",
            "clip_gradient": 1.0,
            "ema": [0.99, 0.998],
            "save_every_steps": 200,
            "preview_every_steps": 200,
            "preview_samples": 4,
            "validate_every_steps": 200,
            "validate_items": 64,
        },
        "sample": {"steps": 25},
        "evaluate": {"samples": max(8, min(200, items["train"]))},
    }


def _size(items: int) -> tuple[int, int]:
    return next(((width, depth) for most, width, depth in SIZES if items < most), LARGEST)


def _sizes_told(recipe: Mapping[str, Any], data: Data, items: Mapping[str, int]) -> list[str]:
    """Items, channels, tokens and the size of the model, in words."""
    section = recipe["domain"]
    channels = sum(len(v.channels) for v in data.plan.variables)
    window = (data.plan.along, section.get("window", 1))
    axes = make_axes(data.plan.axes, data.plan.grid, window)
    grid = " x ".join(str(axis.size) for axis in axes)
    patch = " x ".join(str(axis.patch) for axis in axes)
    tokens = prod(axis.tokens for axis in axes)
    model = recipe["model"]
    return [
        f"{items['train']} items to train on and {items['val']} held out, at the end of "
        f"{data.plan.sample[0]}, with {section.get('gap', 0)} steps between them left out",
        f"{channels} channels on {grid} cells; patches of {patch}, {tokens} tokens",
        f"a model of width {model['width']} and depth {model['depth']}, for so many items on a "
        "processor; with a GPU and more items take model.size=B",
    ]


def _hints(store: Store, found: Guess, looked: Mapping[str, _Seen]) -> list[tuple[str, str]]:
    """What a person who knows the data may want."""
    hints = []
    for name in found.variables:
        if looked[name].skewed:
            key = f"domain.transforms.{name}={{log1p: {looked[name].high or 1:.2g}}}"
            hints.append((f"{name} has a long tail; its logarithm may do better", key))
    told = [name for name in found.static if not looked[name].constant]
    if told:
        said = ", ".join(told)
        hints.append((f"whether to tell {said} to the model", f"domain.conditions.static=[{said}]"))
    return hints


def _slow(data: Data) -> list[str]:
    """Chunks that hold much more than an item takes of them, and do not fit into the buffer."""
    told = []
    for v in data.plan.variables:
        described = data.store.variables[v.name]
        size = dict(zip(described.dims, described.shape, strict=True))
        chunk = dict(zip(described.dims, described.chunks, strict=True))
        needed = 4 * prod(
            min(n, chunk[dim]) if dim in data.plan.sample else -(-n // chunk[dim]) * chunk[dim]
            for dim, n in size.items()
        )
        used = 4 * prod(n for dim, n in size.items() if dim not in data.plan.sample)
        if needed > data.section.buffer_bytes / 2:
            told.append(
                f"{v.name}: an item of {used / 2**20:.3g} MiB lies in chunks of "
                f"{needed / 2**20:.3g} MiB in all, which the buffer does not hold: "
                f"{needed / used:.0f} times as much is decoded as is used; raise domain.buffer, or "
                f"store the data again with chunks that are short along {data.plan.sample[0]}"
            )
    return told
