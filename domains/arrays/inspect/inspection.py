"""`jitkit inspect`: scan a store, recognize its dimensions, and propose a recipe that runs.

Metadata, coordinates and the values of a few chunks are read. Each guess is listed with its reason,
each doubt with the override that changes the recipe.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jitkit.domains.arrays.conditions import find_scalar
from jitkit.domains.arrays.coordinates import label
from jitkit.domains.arrays.data import Data, open_data
from jitkit.domains.arrays.inspect.dimensions import step_hours
from jitkit.domains.arrays.inspect.guess import Guess, candidates, guess
from jitkit.domains.arrays.inspect.proposal import (
    Proposal,
    ProposalRow,
    as_yaml,
    propose_settings,
)
from jitkit.domains.arrays.inspect.value_scan import ValueScan, scan_values
from jitkit.domains.arrays.items import decoded_bytes
from jitkit.domains.arrays.section import ArraysSection
from jitkit.errors import DataError, listed

if TYPE_CHECKING:
    from jitkit.stores.store import Store, VariableInfo

STATISTICS_VALUES = 2**28  # values used for statistics if there are many more
DECORRELATION_HOURS = 5 * 24  # after which weather is nearly uncorrelated
MIN_EXPLAINED = 0.05  # fraction of the variance that a cycle must explain to be a condition
MIN_WINDOW_STEPS = 32  # steps from which windows of four are suggested
MAX_BUFFER = 2**34  # bytes of the largest buffer that is suggested


def inspect_arrays(
    path: str, *, group: str | None = None, options: Mapping[str, Any] | None = None
) -> Proposal:
    """Scan a store and propose a recipe for it.

    Args:
        path, group, options: as in section ``domain``.

    Raises:
        DataError: it cannot be read, or has no data to train on; the text lists what it has.
    """
    from jitkit.stores.store import Store

    location = path if "://" in path else str(Path(path).expanduser().absolute())
    store = Store(location, group=group, options=options)
    scans = scan_values(store, candidates(store))
    fills = {name: f for name, scan in scans.items() if (f := scan.suspected_fill) is not None}
    if fills:
        fill = {name: value for name, (value, _) in fills.items()}
        store = Store(location, group=group, options=options, fill=fill)
        scans = scans | {name: scans[name].without(value) for name, value in fill.items()}
    guessed = guess(store, scans)
    section: dict[str, Any] = {"name": "arrays", "path": location}
    section |= {key: value for key, value in {"group": group, "options": options}.items() if value}
    section |= guessed.section()
    draft = _Draft(section, list(guessed.reasons.values()), list(guessed.unsure))
    _add_fills(draft, fills)
    _drop_constant_channels(draft, store, guessed, scans)
    _add_cycles(draft, store, guessed, scans)
    data = _split_data(draft, store, guessed)
    draft.warnings += _warnings(data, scans)
    _limit_statistics(draft, data)
    items = {"train": len(data.items("train")), "val": len(data.items("val"))}
    settings = propose_settings(data, items)
    draft.notes["model.width"] = f"patch {as_yaml(settings.patch)}, the domain's; model.patch"
    return Proposal(
        path=path,
        rows=tuple(_row(name, v, scans, guessed) for name, v in store.variables.items()),
        recipe={"domain": draft.section, **settings.sections},
        reasons=(
            *_scan_summary(scans),
            *draft.reasons,
            _items_summary(data, items),
            *settings.reasons,
        ),
        unsure=(*draft.unsure, *_suggestions(guessed, scans, data)),
        warnings=tuple(draft.warnings),
        items=items,
        notes=draft.notes,
    )


@dataclass
class _Draft:
    """A recipe's section ``domain`` under construction."""

    section: dict[str, Any]
    reasons: list[str]
    unsure: list[tuple[str, str]]
    warnings: list[str] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)

    def opened(self) -> Data:
        """Data of the current section, validated as in a recipe."""
        text = json.dumps(self.section)
        return open_data(ArraysSection.model_validate_json(text, strict=True))


def _row(
    name: str, variable: VariableInfo, scans: Mapping[str, ValueScan], guessed: Guess
) -> ProposalRow:
    scan = scans.get(name)
    low, high = (scan.range if scan else None) or (None, None)
    return ProposalRow(
        name=name,
        dims=dict(zip(variable.dims, variable.shape, strict=True)),
        chunks=tuple(variable.chunks),
        dtype=str(variable.dtype),
        units=str(variable.attrs.get("units", "")),
        missing=scan.missing if scan else None,
        low=low,
        high=high,
        role=guessed.roles[name],
    )


def _scan_summary(scans: Mapping[str, ValueScan]) -> list[str]:
    """How many values were read, for variables that were not read completely."""
    partial = {name: scan for name, scan in scans.items() if not scan.complete}
    if not partial:
        return []
    count = sum(box.size for scan in partial.values() for box in scan.boxes)
    total = sum(prod(scan.shape) for scan in partial.values())
    return [f"read {count:.3g} of {total:.3g} values of {listed(partial, 4)}, in a few chunks"]


def _add_fills(draft: _Draft, fills: Mapping[str, tuple[float, float]]) -> None:
    """Declare suspected fill values in the recipe."""
    for name, (value, share) in fills.items():
        draft.section.setdefault("fill", {})[name] = value
        draft.reasons.append(
            f"{name} is {value:g} in {share:.1%} of its cells, far from all other values: an "
            "undeclared fill value"
        )
        doubt = f"whether cells of {name} are missing where they are {value:g}"
        draft.unsure.append((doubt, f"domain.fill.{name}=null"))


# Channels and conditions


def _drop_constant_channels(
    draft: _Draft, store: Store, guessed: Guess, scans: Mapping[str, ValueScan]
) -> None:
    """Select the entries of unrolled dimensions whose channels all vary."""
    for dim in guessed.unroll:
        constant = np.zeros(_dim_size(store, dim), bool)
        for name in guessed.variables:
            if dim in scans[name].dims and scans[name].boxes:
                constant |= scans[name].constant_entries([dim])
        if constant.any() and not constant.all():
            values = _values_of(store, dim)
            draft.section.setdefault("select", {})[dim] = [_plain(v) for v in values[~constant]]
            dropped = listed([label(value) for value in values[constant]])
            draft.notes["domain.select"] = f"without {dim} {dropped}, where a variable is constant"
            draft.reasons.append(f"{dim}: {dropped} left out, where a variable is constant")


def _dim_size(store: Store, dim: str) -> int:
    """Entries of a dimension."""
    return next(
        n
        for v in store.variables.values()
        for d, n in zip(v.dims, v.shape, strict=True)
        if d == dim
    )


def _values_of(store: Store, dim: str) -> np.ndarray[Any, np.dtype[Any]]:
    from jitkit.domains.arrays.coordinates import coordinate

    return coordinate(store, dim, _dim_size(store, dim))


def _plain(value: Any) -> int | float | str:
    if isinstance(value, np.integer):
        return int(value)
    return float(str(value)) if isinstance(value, np.floating) else label(value)


def _add_cycles(
    draft: _Draft, store: Store, guessed: Guess, scans: Mapping[str, ValueScan]
) -> None:
    """Add day of the year and hour as conditions if they explain some of the variance."""
    for dim in guessed.sample:
        hours = step_hours(store, dim)
        if hours is None:
            continue
        span = hours * _dim_size(store, dim)
        season = span > 300 * 24 and hours < 100 * 24
        parts = ["dayofyear"] * season + ["hour"] * (hours <= 8 and span > 48)
        for part in parts:
            _add_cycle(draft, store, guessed, scans, f"{dim}.{part}")


def _add_cycle(
    draft: _Draft, store: Store, guessed: Guess, scans: Mapping[str, ValueScan], name: str
) -> None:
    explained = _explained_variance(draft, store, scans[guessed.variables[0]], name)
    override = f"domain.conditions.scalars=[{name}]"
    if explained is not None and explained < MIN_EXPLAINED:
        doubt = f"whether to condition on {name}, which explains {explained:.0%} of the variance"
        draft.unsure.append((doubt, override))
        return
    conditions = draft.section.setdefault("conditions", {"scalars": []})
    conditions["scalars"].append(name)
    effect = "an unknown part" if explained is None else f"{explained:.0%}"
    draft.reasons.append(f"the model is conditioned on {name}: explains {effect} of the variance")
    draft.unsure.append((f"whether to condition on {name}", "domain.conditions.scalars=[]"))


def _explained_variance(draft: _Draft, store: Store, scan: ValueScan, name: str) -> float | None:
    """Fraction of a variable's variance that a cycle explains; None if not all values were read.

    The fraction of noise that two regressors explain (2 / n) is subtracted.
    """
    if not scan.complete:
        return None
    section = {k: v for k, v in draft.section.items() if k != "conditions"} | {"val": 0.0}
    plan = _Draft(section, [], []).opened().plan
    first = np.arange(len(plan.values[plan.sample[0]]))
    scalar, series = find_scalar(store, plan, name, first)
    phase = np.array([scalar.encode(float(value)) for value in series.values.ravel()])
    axis = scan.dims.index(series.dims[0])
    x = np.moveaxis(scan.boxes[0], axis, 0).reshape(len(phase), -1).astype(np.float64)
    x = x[:, :: max(1, x.shape[1] // 256)]
    x = x[:, np.isfinite(x).mean(axis=0) > 0.5]
    if not x.size or len(phase) < 8:
        return None
    x = np.where(np.isfinite(x), x, np.nanmean(x, axis=0))
    x, phase = x - x.mean(axis=0), phase - phase.mean(axis=0)
    residual = x - phase @ np.linalg.lstsq(phase, x, rcond=None)[0]
    total = float((x**2).sum())
    return max(0.0, 1 - float((residual**2).sum()) / total - 2 / len(phase)) if total else None


# Splits


def _split_data(draft: _Draft, store: Store, guessed: Guess) -> Data:
    """Validation split at the end with a gap before it, if there are enough items."""
    first = guessed.sample[0]
    steps = _dim_size(store, first)
    gap, why = _gap(store, guessed, steps)
    for share in _val_fractions(guessed, steps):
        draft.section |= {"val": round(share, 4)} | ({"gap": gap} if gap and share else {})
        draft.section.pop("gap", None) if not (gap and share) else None
        try:
            data = draft.opened()
        except DataError:
            if not share:
                raise
            continue
        break
    if not draft.section["val"]:
        draft.reasons.append(f"no validation split: {steps} of {first} are too few")
        draft.unsure.append(("whether to use some items for validation anyway", "domain.val=0.1"))
    elif gap:
        draft.notes["domain.gap"] = why
        draft.unsure.append((f"steps of {first} between training and validation", "domain.gap=0"))
    return data


def _val_fractions(guessed: Guess, steps: int) -> Iterator[float]:
    """Fractions for validation to try; the first that leaves items in both splits is used."""
    if steps >= 3:
        yield 0.1 if 0.1 * steps >= 1 else 1 / steps
    if guessed.window > 1:  # room for two items
        yield min(0.4, 1.01 * (guessed.window + guessed.stride) / steps)
        yield min(0.4, 1.01 * (guessed.window + 1) / steps)
    yield 0.0


def _gap(store: Store, guessed: Guess, steps: int) -> tuple[int, str]:
    hours = step_hours(store, guessed.sample[0])
    if hours is None or steps < 20:
        return 0, ""
    if guessed.window > 1:
        return min(guessed.window, steps // 20), "as long as an item, at most a twentieth of all"
    gap = max(1, min(round(DECORRELATION_HOURS / hours), steps // 20))
    return gap, "steps in five days, at least one, at most a twentieth of all"


def _items_summary(data: Data, items: Mapping[str, int]) -> str:
    train = f"{items['train']} training item{'s' * (items['train'] != 1)}"
    if not items["val"]:
        return train
    gap = data.section.gap
    return (
        f"{train} and {items['val']} validation item{'s' * (items['val'] != 1)} at the end of "
        f"{data.plan.sample[0]}, with a gap of {gap} step{'s' * (gap != 1)} between them"
    )


# Suggestions and warnings


def _suggestions(
    guessed: Guess, scans: Mapping[str, ValueScan], data: Data
) -> list[tuple[str, str]]:
    """Further options, each with its override."""
    suggestions = []
    for name in guessed.variables:
        scan = scans[name]
        if scan.skewed and scan.range:
            key = f"domain.transforms.{name}.log1p={_scale(scan):.1g}"
            suggestions.append((f"{name} has a long tail; its logarithm may work better", key))
    if guessed.static:
        key = f"domain.conditions.static=[{','.join(guessed.static)}]"
        suggestions.append((f"whether to condition on {listed(guessed.static)}", key))
    if (
        guessed.window == 1
        and len(guessed.axes) < 4
        and guessed.along
        and len(data.plan.values[guessed.along]) >= MIN_WINDOW_STEPS
    ):
        key = f"domain.along={guessed.along} domain.window=4"
        suggestions.append((f"whether items are single steps or windows of {guessed.along}", key))
    return suggestions


def _scale(scan: ValueScan) -> float:
    """Scale of a log1p transform: the median of the positive values."""
    positive = scan.finite[scan.finite > 0]
    return float(np.median(positive))


def _warnings(data: Data, scans: Mapping[str, ValueScan]) -> list[str]:
    """Warnings of slow chunks, further fill values, infinite values and unread variables."""
    warnings = list(_slow_chunks(data))
    for v in data.plan.variables:
        scan = scans[v.name]
        if scan.suspected_fill is not None:
            value, share = scan.suspected_fill
            warnings.append(
                f"{v.name} is {value:g} in {share:.1%} of its cells, far from all other values: "
                "probably another fill value besides domain.fill; write the data without it, e.g. "
                f"with xarray: ds[{v.name!r}].where(ds[{v.name!r}] != {value:g})"
            )
        elif scan.infinite:
            warnings.append(f"{v.name} has infinite values; items with them are skipped")
        if not scan.boxes:
            warnings.append(f"{v.name} was not read, because its chunks are very large")
    return warnings


def _slow_chunks(data: Data) -> Iterator[str]:
    """Warnings of variables whose items need more chunks than the buffer holds."""
    plan, store = data.plan, data.store
    if store.path.endswith((".npy", ".npz")):
        return  # memory-mapped, nothing is decoded
    for v in plan.variables:
        needed = decoded_bytes(store, [v], plan, dict.fromkeys(plan.sample, 1))
        itemsize = store.variables[v.name].dtype.itemsize
        used = itemsize * len(v.channels) * prod(plan.grid) * data.section.window
        if needed > data.section.buffer_bytes / 2:
            buffer = f"raise domain.buffer to {2.2 * needed / 2**30:.2g}GiB, or "
            yield (
                f"{v.name}: an item of {used / 2**20:.3g} MiB is in chunks of "
                f"{needed / 2**20:.3g} MiB in total, which do not fit in the buffer: "
                f"{needed / used:.0f} times as much is decoded as is used; "
                f"{buffer if needed < MAX_BUFFER else ''}rechunk the data with short chunks along "
                f"{plan.sample[0]}"
            )


def _limit_statistics(draft: _Draft, data: Data) -> None:
    """Use part of the values for statistics if there are very many, since all may take an hour."""
    steps = prod(len(values) for values in data.plan.values.values())
    total = steps * prod(data.plan.grid) * sum(len(v.channels) for v in data.plan.variables)
    if total > 4 * STATISTICS_VALUES:
        draft.section["measure"] = STATISTICS_VALUES
        draft.notes["domain.measure"] = f"of {total:.2g} values; all uses every one"
