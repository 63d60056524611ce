"""`jitkit inspect`: look at a store, guess what its dimensions are, propose a recipe that runs.

Metadata and coordinates are read, and values of a few chunks. A guess has its reason, and what is
unsure names the override that changes it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jitkit.domains.arrays.conditions import find_number
from jitkit.domains.arrays.coordinates import label
from jitkit.domains.arrays.data import Data, open_data
from jitkit.domains.arrays.inspect.dimensions import hours_of_step
from jitkit.domains.arrays.inspect.guess import Guess, candidates, guess
from jitkit.domains.arrays.inspect.model_size import settings
from jitkit.domains.arrays.inspect.proposal import Proposal, ProposalRow, as_yaml
from jitkit.domains.arrays.inspect.value_scan import Look, look
from jitkit.domains.arrays.items import decoded_bytes
from jitkit.domains.arrays.section import ArraysSection
from jitkit.errors import DataError, listed

if TYPE_CHECKING:
    from jitkit.stores.store import Described, Store

MEASURED = 2**28  # numbers that statistics are taken from where there are many more
FORGETS = 5 * 24  # hours after which weather resembles itself no more
CYCLE = 0.05  # share of the variance that a season or a day must explain to be told
FILM = 32  # steps from which on films of four are worth a hint
MEMORY = 2**34  # that a buffer may take, at most, to be advised


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
    from jitkit.stores.store import Store

    named = path if "://" in path else str(Path(path).expanduser().absolute())
    store = Store(named, group=group, options=options)
    looks = look(store, candidates(store))
    fills = {name: seen.filler for name, seen in looks.items() if seen.filler is not None}
    if fills:
        fill = {name: value for name, (value, _) in fills.items()}
        store = Store(named, group=group, options=options, fill=fill)
        looks = looks | {name: looks[name].without(value) for name, value in fill.items()}
    found = guess(store, looks)
    asked: dict[str, Any] = {"name": "arrays", "path": named}
    asked |= {key: value for key, value in {"group": group, "options": options}.items() if value}
    asked |= found.section()
    told = _Told(asked, list(found.reasons.values()), list(found.unsure))
    _tell_fills(told, fills)
    _leave_out_flat(told, store, found, looks)
    _tell_cycles(told, store, found, looks)
    data = _split(told, store, found)
    told.warnings += _warnings(data, looks)
    _spare(told, data)
    items = {"train": len(data.items("train")), "val": len(data.items("val"))}
    others = settings(data, items)
    told.notes["model.width"] = f"patch {as_yaml(others.patch)}, the domain's; model.patch"
    return Proposal(
        path=path,
        rows=tuple(_row(name, v, looks, found) for name, v in store.variables.items()),
        recipe={"domain": told.section, **others.sections},
        reasons=(*_looked(looks), *told.reasons, _items_told(data, items), *others.reasons),
        unsure=(*told.unsure, *_hints(found, looks, data)),
        warnings=tuple(told.warnings),
        items=items,
        notes=told.notes,
    )


@dataclass
class _Told:
    """What is being put together."""

    section: dict[str, Any]
    reasons: list[str]
    unsure: list[tuple[str, str]]
    warnings: list[str] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)

    def opened(self) -> Data:
        """The data as the section has it so far, checked as a recipe's section is."""
        text = json.dumps(self.section)
        return open_data(ArraysSection.model_validate_json(text, strict=True))


def _row(name: str, variable: Described, looks: Mapping[str, Look], found: Guess) -> ProposalRow:
    seen = looks.get(name)
    low, high = (seen.range if seen else None) or (None, None)
    return ProposalRow(
        name=name,
        dims=dict(zip(variable.dims, variable.shape, strict=True)),
        chunks=tuple(variable.chunks),
        dtype=str(variable.dtype),
        units=str(variable.attrs.get("units", "")),
        missing=seen.missing if seen else None,
        low=low,
        high=high,
        role=found.roles[name],
    )


def _looked(looks: Mapping[str, Look]) -> list[str]:
    """How much was looked at, where it was not all."""
    part = {name: seen for name, seen in looks.items() if not seen.whole}
    if not part:
        return []
    numbers = sum(box.size for seen in part.values() for box in seen.boxes)
    total = sum(prod(seen.shape) for seen in part.values())
    return [f"looked at {numbers:.3g} of {total:.3g} values of {listed(part, 4)}, in a few chunks"]


def _tell_fills(told: _Told, fills: Mapping[str, tuple[float, float]]) -> None:
    """Values that probably mean "missing" do so in the recipe."""
    for name, (value, share) in fills.items():
        told.section.setdefault("fill", {})[name] = value
        told.reasons.append(
            f"{name} is {value:g} in {share:.1%} of its cells, far from all others: missing ones, "
            "which nothing declares"
        )
        what = f"whether cells of {name} are missing where they are {value:g}"
        told.unsure.append((what, f"domain.fill.{name}=null"))


# Channels and conditions


def _leave_out_flat(told: _Told, store: Store, found: Guess, looks: Mapping[str, Look]) -> None:
    """Entries of an unrolled dimension whose channel has one value or none are not selected."""
    for dim in found.unroll:
        flat = np.zeros(store_size(store, dim), bool)
        for name in found.variables:
            if dim in looks[name].dims and looks[name].boxes:
                flat |= looks[name].flat_entries([dim])
        if flat.any() and not flat.all():
            values = _values_of(store, dim)
            kept = [_plain(value) for value, out in zip(values, flat, strict=True) if not out]
            told.section.setdefault("select", {})[dim] = kept
            left = listed([label(value) for value, out in zip(values, flat, strict=True) if out])
            told.notes["domain.select"] = f"without {dim} {left}, where a variable never varies"
            told.reasons.append(f"{dim}: {left} left out, where a variable never varies")


def store_size(store: Store, dim: str) -> int:
    """Entries of a dimension."""
    return next(
        n
        for v in store.variables.values()
        for d, n in zip(v.dims, v.shape, strict=True)
        if d == dim
    )


def _values_of(store: Store, dim: str) -> np.ndarray[Any, np.dtype[Any]]:
    from jitkit.domains.arrays.coordinates import coordinate

    return coordinate(store, dim, store_size(store, dim))


def _plain(value: Any) -> int | float | str:
    if isinstance(value, np.integer):
        return int(value)
    return float(str(value)) if isinstance(value, np.floating) else label(value)


def _tell_cycles(told: _Told, store: Store, found: Guess, looks: Mapping[str, Look]) -> None:
    """Day of the year and hour, where values follow them, are told to the model."""
    for dim in found.sample:
        hours = hours_of_step(store, dim)
        if hours is None:
            continue
        span = hours * store_size(store, dim)
        season = span > 300 * 24 and hours < 100 * 24
        parts = ["dayofyear"] * season + ["hour"] * (hours <= 8 and span > 48)
        for part in parts:
            _tell_cycle(told, store, found, looks, f"{dim}.{part}")


def _tell_cycle(
    told: _Told, store: Store, found: Guess, looks: Mapping[str, Look], name: str
) -> None:
    explained = _explained(told, store, looks[found.variables[0]], name)
    override = f"domain.conditions.scalars=[{name}]"
    if explained is not None and explained < CYCLE:
        what = f"whether to tell {name}, which explains {explained:.0%} of the variance"
        told.unsure.append((what, override))
        return
    conditions = told.section.setdefault("conditions", {"scalars": []})
    conditions["scalars"].append(name)
    why = "of the variance explained by it" if explained is not None else "not looked into"
    share = f"{explained:.0%} " if explained is not None else ""
    told.reasons.append(f"{name} is told to the model: {share}{why}")
    told.unsure.append((f"whether to tell {name}", "domain.conditions.scalars=[]"))


def _explained(told: _Told, store: Store, seen: Look, name: str) -> float | None:
    """Share of a variable's variance that a cycle explains; None where it was not looked at whole.

    Less what two numbers explain of noise.
    """
    if not seen.whole:
        return None
    section = {k: v for k, v in told.section.items() if k != "conditions"} | {"val": 0.0}
    plan = _Told(section, [], []).opened().plan
    first = np.arange(len(plan.values[plan.sample[0]]))
    number, series = find_number(store, plan, name, first)
    phase = np.array([number.encode(float(value)) for value in series.values.ravel()])
    axis = seen.dims.index(series.dims[0])
    x = np.moveaxis(seen.boxes[0], axis, 0).reshape(len(phase), -1).astype(np.float64)
    x = x[:, :: max(1, x.shape[1] // 256)]
    x = x[:, np.isfinite(x).mean(axis=0) > 0.5]
    if not x.size or len(phase) < 8:
        return None
    x = np.where(np.isfinite(x), x, np.nanmean(x, axis=0))
    x, phase = x - x.mean(axis=0), phase - phase.mean(axis=0)
    left = x - phase @ np.linalg.lstsq(phase, x, rcond=None)[0]
    total = float((x**2).sum())
    return max(0.0, 1 - float((left**2).sum()) / total - 2 / len(phase)) if total else None


# Splits


def _split(told: _Told, store: Store, found: Guess) -> Data:
    """A share held out at the end, with a gap before it, as far as there are enough items."""
    first = found.sample[0]
    steps = store_size(store, first)
    gap, why = _gap(store, found, steps)
    for share in _shares(found, steps):
        told.section |= {"val": round(share, 4)} | ({"gap": gap} if gap and share else {})
        told.section.pop("gap", None) if not (gap and share) else None
        try:
            data = told.opened()
        except DataError:
            if not share:
                raise
            continue
        break
    if not told.section["val"]:
        told.reasons.append(f"nothing is held out: {steps} of {first} are too few")
        told.unsure.append(("whether to hold out items all the same", "domain.val=0.1"))
    elif gap:
        told.notes["domain.gap"] = why
        told.unsure.append((f"steps of {first} between training and held out", "domain.gap=0"))
    return data


def _shares(found: Guess, steps: int) -> Iterator[float]:
    """Shares to hold out, the first that leaves items in both splits is taken."""
    if steps >= 3:
        yield 0.1 if 0.1 * steps >= 1 else 1 / steps
    if found.window > 1:  # room for two items
        yield min(0.4, 1.01 * (found.window + found.stride) / steps)
        yield min(0.4, 1.01 * (found.window + 1) / steps)
    yield 0.0


def _gap(store: Store, found: Guess, steps: int) -> tuple[int, str]:
    hours = hours_of_step(store, found.sample[0])
    if hours is None or steps < 20:
        return 0, ""
    if found.window > 1:
        return min(found.window, steps // 20), "as long as an item, at most a twentieth of all"
    gap = max(1, min(round(FORGETS / hours), steps // 20))
    return gap, "steps in five days, at least one, at most a twentieth of all"


def _items_told(data: Data, items: Mapping[str, int]) -> str:
    held = f"{items['val']} held out at the end of {data.plan.sample[0]}"
    if not items["val"]:
        return f"{items['train']} item{'s' * (items['train'] > 1)} to train on"
    gap = data.section.gap
    return (
        f"{items['train']} items to train on and {held}, with {gap} step{'s' * (gap != 1)} between "
        "them left out"
    )


# What a person who knows the data may want


def _hints(found: Guess, looks: Mapping[str, Look], data: Data) -> list[tuple[str, str]]:
    """Further choices, and the override that makes each."""
    hints = []
    for name in found.variables:
        seen = looks[name]
        if seen.skewed and seen.range:
            key = f"domain.transforms.{name}.log1p={_scale(seen):.1g}"
            hints.append((f"{name} has a long tail; its logarithm may do better", key))
    if found.static:
        key = f"domain.conditions.static=[{','.join(found.static)}]"
        hints.append((f"whether to tell {listed(found.static)} to the model", key))
    if (
        found.window == 1
        and len(found.axes) < 4
        and found.along
        and len(data.plan.values[found.along]) >= FILM
    ):
        key = f"domain.along={found.along} domain.window=4"
        hints.append((f"whether items are single steps, or films along {found.along}", key))
    return hints


def _scale(seen: Look) -> float:
    """A unit below which values hardly matter: the median of what is not zero."""
    positive = seen.known[seen.known > 0]
    return float(np.median(positive))


def _warnings(data: Data, looks: Mapping[str, Look]) -> list[str]:
    """What will be slow, or wrong."""
    found = list(_slow(data))
    for v in data.plan.variables:
        seen = looks[v.name]
        if seen.filler is not None:
            value, share = seen.filler
            found.append(
                f"{v.name} is {value:g} in {share:.1%} of its cells, far from all others: missing "
                "ones, probably, beside those of domain.fill; write the data again without it, as "
                f"ds[{v.name!r}].where(ds[{v.name!r}] != {value:g}) of xarray does"
            )
        elif seen.infinite:
            found.append(f"{v.name} has infinite values; items with them are passed over")
        if not seen.boxes:
            found.append(f"{v.name} was not looked at, since its chunks are very large")
    return found


def _slow(data: Data) -> Iterator[str]:
    """Chunks that hold much more than an item takes of them, and do not fit into the buffer."""
    plan, store = data.plan, data.store
    if store.path.endswith((".npy", ".npz")):
        return  # mapped, nothing is decoded
    for v in plan.variables:
        needed = decoded_bytes(store, [v], plan, dict.fromkeys(plan.sample, 1))
        itemsize = store.variables[v.name].dtype.itemsize
        used = itemsize * len(v.channels) * prod(plan.grid) * data.section.window
        if needed > data.section.buffer_bytes / 2:
            buffer = f"raise domain.buffer to {2.2 * needed / 2**30:.2g}GiB, or "
            yield (
                f"{v.name}: an item of {used / 2**20:.3g} MiB lies in chunks of "
                f"{needed / 2**20:.3g} MiB in all, which the buffer does not hold: "
                f"{needed / used:.0f} times as much is decoded as is used; "
                f"{buffer if needed < MEMORY else ''}store the data again with chunks that are "
                f"short along {plan.sample[0]}"
            )


def _spare(told: _Told, data: Data) -> None:
    """Of very many values a part tells the statistics, or training begins after an hour."""
    steps = prod(len(values) for values in data.plan.values.values())
    total = steps * prod(data.plan.grid) * sum(len(v.channels) for v in data.plan.variables)
    if total > 4 * MEASURED:
        told.section["measure"] = MEASURED
        told.notes["domain.measure"] = f"of {total:.2g} numbers; all measures every one"
