"""Open, split and measure the data of a recipe: from section ``domain`` to metadata.

The metadata are all that a model needs without the data: axes, channels, statistics, coordinates.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jitkit.domain import Split
from jitkit.domains.arrays import conditions
from jitkit.domains.arrays.coordinates import label
from jitkit.domains.arrays.items import ArrayItems, ReadSpec, block_entries, read_blocks
from jitkit.domains.arrays.normalize.statistics import Statistics, load_or_measure
from jitkit.domains.arrays.normalize.transforms import Transform
from jitkit.domains.arrays.output import output_metadata
from jitkit.domains.arrays.plan import ArrayPlan, make_axes, make_plan
from jitkit.domains.arrays.read import ArrayVariable
from jitkit.domains.arrays.section import ArraysSection
from jitkit.domains.arrays.splits import ItemIndex, split, window_starts
from jitkit.errors import DataError, RecipeError, listed, nearest
from jitkit.utils.console import bar
from jitkit.utils.types import Array

if TYPE_CHECKING:
    from jitkit.stores.store import Readable, Store

ARRAYS_FORMAT = 1
MAX_VALUES = 2**33  # used for statistics by default: half an hour for a core that reads 20 MB/s


@dataclass(frozen=True, eq=False)
class Data:
    """Opened data.

    Attributes:
        section: of the recipe.
        store, plan: the data, and the mapping to items.
        splits: positions along the first sample dimension.
        static, grids: variables of the map conditions.
        scalars, categories: scalar and categorical conditions; ``series`` has their values by name.
        spacing: entries from one step of an item, or of its past, to the next.
    """

    section: ArraysSection
    store: Readable
    plan: ArrayPlan
    splits: Mapping[Split, Array]
    static: tuple[ArrayVariable, ...]
    grids: tuple[ArrayVariable, ...]
    scalars: tuple[conditions.ScalarCondition, ...]
    categories: tuple[conditions.CategoryCondition, ...]
    series: Mapping[str, conditions.Series]
    spacing: int = 1

    def items(self, part: Split) -> ArrayItems:
        """The items of a split."""
        section, plan = self.section, self.plan
        starts = {dim: np.arange(len(plan.entries[dim])) for dim in plan.sample}
        starts[plan.sample[0]] = self.splits[part]
        starts[plan.along] = window_starts(
            plan.values[plan.along],
            starts[plan.along],
            window=section.window,
            past=section.conditions.past,
            stride=section.stride,
            spacing=self.spacing,
        )
        spec = ReadSpec(
            store=self.store,
            plan=plan,
            grids=self.grids,
            series=self.series,
            window=section.window,
            past=section.conditions.past,
            spacing=self.spacing,
            buffer_bytes=section.buffer_bytes,
            threads=section.threads or (16 if "://" in self.store.path else 4),
        )
        return ArrayItems(spec, ItemIndex(starts))


def open_store(section: ArraysSection) -> Store:
    """The store that a section names.

    Raises:
        DataError: it does not exist, or cannot be read.
    """
    from jitkit.stores.store import Store

    if section.path is None:
        raise DataError(
            "domain.path is not set; give a Zarr store (folder, .zip, s3://, gs://, https://), a "
            "NetCDF file or a pattern of them (data/*.nc), an HDF5, .npy or .npz file"
        )
    path = section.path if "://" in section.path else str(Path(section.path).expanduser())
    return Store(
        path,
        group=section.group,
        options=section.options,
        buffer_bytes=section.buffer_bytes,
        fill=section.fill,
    )


def open_data(section: ArraysSection, store: Readable | None = None, *, spacing: int = 1) -> Data:
    """Open the data of a section and resolve its keys; only coordinates are read.

    Args:
        section: of a recipe.
        store: to read instead of the section's path.
        spacing: entries from one step of an item, or of its past, to the next.

    Raises:
        DataError, RecipeError: the data do not fit the section; the text lists what is available.
    """
    store = store or open_store(section)
    keys = section.conditions
    plan = make_plan(
        store,
        axes=section.axes,
        sample=section.sample,
        along=section.along,
        unroll=section.unroll,
        select=section.select,
        variables=section.variables,
        conditioning_variables=keys.variables,
    )
    first = plan.sample[0]
    parts = split(
        plan.values[first],
        dim=first,
        share=section.val,
        gap=section.gap,
        explicit=section.splits,
    )
    key = "domain.conditions"
    scalars = {n: conditions.find_scalar(store, plan, n, parts["train"]) for n in keys.scalars}
    categories = {n: conditions.find_category(store, plan, n) for n in keys.categories}
    data = Data(
        section,
        store,
        plan,
        parts,
        conditions.find_maps(store, plan, keys.static, key=f"{key}.static", sample=()),
        conditions.find_maps(store, plan, keys.grids, key=f"{key}.grids", sample=plan.sample),
        tuple(condition for condition, _ in scalars.values()),
        tuple(condition for condition, _ in categories.values()),
        {name: series for name, (_, series) in (scalars | categories).items()},
        spacing,
    )
    _check_splits(data)
    return data


def _check_splits(data: Data) -> None:
    """Check that both splits have items; an empty validation split is allowed if val is 0."""
    section, plan = data.section, data.plan
    names: list[Split] = ["train", "val"]
    for name in names:
        if len(data.items(name)) or (name == "val" and not section.val and not section.splits):
            continue
        span = (section.window + section.conditions.past - 1) * data.spacing + 1
        steps = data.splits[name]
        values = plan.values[plan.sample[0]]
        within = f" ({label(values[steps[0]])} to {label(values[steps[-1]])})" if len(steps) else ""
        remedy = {
            "train": "lower domain.val or domain.gap, or shorten the window",
            "val": "raise domain.val or shorten the window; domain.val: 0 is no validation split",
        }
        need = f"an item is {span} consecutive steps of {plan.along} without a gap"
        need += f" ({section.conditions.past} of them past)" if section.conditions.past else ""
        raise DataError(
            f"no item is left for {name}: it has {len(steps)} of {len(values)} "
            f"{plan.sample[0]}{within}, and {need}; {remedy[name]}"
        )


# Metadata


def measure_metadata(data: Data) -> dict[str, Any]:
    """Metadata of data, JSON with numpy arrays as leaves; reads the training split once."""
    section, plan = data.section, data.plan
    statistics, complete = _statistics(data, plan.variables, "domain.transforms")
    channels = [name for v in plan.variables for name in v.channels]
    axes = make_axes(plan.axes, plan.grid, (plan.along, section.window))
    missing = _missing(data, statistics, complete)
    return {
        "format": ARRAYS_FORMAT,
        "axes": [{"name": a.name, "size": a.size, "kind": a.kind} for a in axes],
        "channels": channels,
        "window": section.window,
        "past": section.conditions.past,
        "missing": missing,
        "statistics": statistics.metadata(),
        "static": _static(data),
        "grids": None if not data.grids else _statistics(data, data.grids, "")[0].metadata(),
        "grid_units": units_of(data.store, data.grids),
        **conditions.to_metadata(data.scalars, data.categories),
        "output": output_metadata(data.store, plan, window=section.window),
    }


def units_of(store: Readable, variables: Sequence[ArrayVariable]) -> dict[str, str]:
    """Units by channel, for variables that have them."""
    units = {v: str(store.variables[v.name].attrs.get("units", "")) for v in variables}
    return {channel: unit for v, unit in units.items() if unit for channel in v.channels}


def _static(data: Data) -> dict[str, Any] | None:
    """Static maps in physical units and their statistics."""
    if not data.static:
        return None
    values = conditions.read_static(data.store, data.plan, data.static)
    channels = [name for v in data.static for name in v.channels]
    transforms = _transforms(data.section, data.static)
    statistics = Statistics.measure([values[None]], channels, transforms=transforms)
    return {"values": values, "statistics": statistics.metadata()}


def _missing(data: Data, statistics: Statistics, complete: bool) -> bool:
    """Whether cells may be missing: the recipe's setting, else whether training has any.

    Args:
        data: opened.
        statistics: of the training split.
        complete: whether the statistics use all of it.
    """
    setting, has_missing = data.section.missing, statistics.missing > 0
    if setting == "auto":
        if has_missing.any() or complete:
            return bool(has_missing.any())
        return any(data.store.variables[v.name].missing for v in data.plan.variables)
    if not setting and statistics.observed is not None:
        pairs = zip(statistics.channels, statistics.observed, strict=True)
        names = [channel for channel, observed in pairs if not observed.all()]
        raise DataError(
            f"domain.missing: false skips items with missing cells, but all have some: "
            f"{listed(names)} has cells that are never observed; leave domain.missing out"
        )
    return bool(setting)


def _statistics(
    data: Data, variables: Sequence[ArrayVariable], key: str
) -> tuple[Statistics, bool]:
    """Statistics of the training split, cached, and whether all of it was used."""
    section, plan = data.section, data.plan
    channels = [name for v in variables for name in v.channels]
    transforms = _transforms(section, variables)
    limit = {"auto": MAX_VALUES, "all": None}.get(str(section.measure), section.measure)
    assert not isinstance(limit, str)
    train = data.splits["train"]
    blocks = block_entries(data.store, plan, variables, train, limit)
    all_blocks = block_entries(data.store, plan, variables, train, None)

    def measure() -> Statistics:
        with bar("measuring the training split", len(blocks), unit="blocks") as progress:
            values = read_blocks(data.store, plan, variables, blocks)

            def counted() -> Any:
                for number, block in enumerate(values, 1):
                    yield block
                    progress(number)

            return Statistics.measure(
                counted(),
                channels,
                transforms=transforms,
                normalize=section.normalize,
                per_cell=section.per_cell,
            )

    settings = {
        "format": ARRAYS_FORMAT,
        "data": data.store.fingerprint(),
        "channels": channels,
        "axes": list(plan.axes),
        "entries": {dim: _digest(entries) for dim, entries in sorted(plan.entries.items())},
        "train": _digest(train),
        "sample": list(plan.sample),
        "blocks": len(blocks),
        "transforms": {name: [t.name, t.scale] for name, t in sorted(transforms.items())},
        "normalize": section.normalize,
        "per_cell": section.per_cell,
    }
    text = json.dumps(settings, sort_keys=True)
    statistics = load_or_measure(hashlib.sha256(text.encode()).hexdigest(), measure)
    return statistics, len(blocks) == len(all_blocks)


def _digest(entries: Array) -> str:
    return hashlib.sha256(entries.astype("<i8").tobytes()).hexdigest()


def _transforms(section: ArraysSection, variables: Sequence[ArrayVariable]) -> dict[str, Transform]:
    """Transforms by channel; a variable's transform applies to all its channels."""
    transforms = {}
    for v in variables:
        for name in v.channels:
            setting = section.transforms.get(name, section.transforms.get(v.name))
            if setting is not None:
                transforms[name] = Transform.of(setting)
    return transforms


def check_transforms(data: Data) -> None:
    """Check that every transform names a channel or variable.

    Raises:
        RecipeError: a transform names neither.
    """
    maps = (*data.plan.variables, *data.grids, *data.static)
    names = [name for v in maps for name in dict.fromkeys((v.name, *v.channels))]
    for name in data.section.transforms:
        if name not in names:
            raise RecipeError(
                f"domain.transforms: no variable or channel {name!r}; there are "
                f"{listed(names, 20)}{nearest(name, names)}"
            )
