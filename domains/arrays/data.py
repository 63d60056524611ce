"""The data of a recipe, opened, split and measured: the way from section ``domain`` to metadata.

Facts are all that a model needs when the data are gone: axes, channels, statistics, coordinates.
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
from jitkit.domains.arrays import conditions as told
from jitkit.domains.arrays.coordinates import label
from jitkit.domains.arrays.items import ArrayItems, Reading, block_places, read_blocks
from jitkit.domains.arrays.normalize.statistics import Statistics, load_or_measure
from jitkit.domains.arrays.normalize.transforms import Transform
from jitkit.domains.arrays.output import describe
from jitkit.domains.arrays.plan import ArrayPlan, make_axes, make_plan
from jitkit.domains.arrays.read import ArrayVariable
from jitkit.domains.arrays.section import ArraysSection
from jitkit.domains.arrays.splits import Places, split, starts
from jitkit.errors import DataError, RecipeError, listed, nearest
from jitkit.utils.console import bar
from jitkit.utils.types import Array

if TYPE_CHECKING:
    from jitkit.stores.store import Readable, Store

ARRAYS_FORMAT = 1
MOST_VALUES = 2**33  # that statistics look at unless told: half an hour where a core reads 20 MB/s


@dataclass(frozen=True, eq=False)
class Data:
    """Opened data.

    Attributes:
        section: what was asked.
        store, plan: the data, and how items lie in them.
        splits: positions along the first sample dimension.
        static, grids: variables that are told as maps.
        numbers, classes: what is told of a place, and its values by name.
        spacing: entries from one step of an item, or of its past, to the next.
    """

    section: ArraysSection
    store: Readable
    plan: ArrayPlan
    splits: Mapping[Split, Array]
    static: tuple[ArrayVariable, ...]
    grids: tuple[ArrayVariable, ...]
    numbers: tuple[told.Number, ...]
    classes: tuple[told.Classes, ...]
    series: Mapping[str, told.Series]
    spacing: int = 1

    def items(self, part: Split) -> ArrayItems:
        """The items of a split."""
        section, plan = self.section, self.plan
        begins = {dim: np.arange(len(plan.entries[dim])) for dim in plan.sample}
        begins[plan.sample[0]] = self.splits[part]
        begins[plan.along] = starts(
            plan.values[plan.along],
            begins[plan.along],
            window=section.window,
            past=section.conditions.past,
            stride=section.stride,
            spacing=self.spacing,
        )
        reading = Reading(
            store=self.store,
            plan=plan,
            grids=self.grids,
            told=self.series,
            window=section.window,
            past=section.conditions.past,
            spacing=self.spacing,
            buffer_bytes=section.buffer_bytes,
            threads=section.threads or (16 if "://" in self.store.path else 4),
        )
        return ArrayItems(reading, Places(begins))


def open_store(section: ArraysSection) -> Store:
    """The store that a section names.

    Raises:
        DataError: it is not there, or cannot be read.
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
    """Find what a section says in the data that it names; nothing but coordinates is read.

    Args:
        section: of a recipe.
        store: what to read, in place of what the section's path names.
        spacing: entries from one step of an item, or of its past, to the next.

    Raises:
        DataError, RecipeError: it is not there; the text says what there is.
    """
    store = store or open_store(section)
    conditions = section.conditions
    plan = make_plan(
        store,
        axes=section.axes,
        sample=section.sample,
        along=section.along,
        unroll=section.unroll,
        select=section.select,
        variables=section.variables,
        spoken_for=conditions.variables,
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
    numbers = {n: told.find_number(store, plan, n, parts["train"]) for n in conditions.scalars}
    classes = {n: told.find_classes(store, plan, n) for n in conditions.categories}
    data = Data(
        section,
        store,
        plan,
        parts,
        told.find_maps(store, plan, conditions.static, key=f"{key}.static", sample=()),
        told.find_maps(store, plan, conditions.grids, key=f"{key}.grids", sample=plan.sample),
        tuple(number for number, _ in numbers.values()),
        tuple(found for found, _ in classes.values()),
        {name: series for name, (_, series) in (numbers | classes).items()},
        spacing,
    )
    _check_splits(data)
    return data


def _check_splits(data: Data) -> None:
    """Both splits have an item, but for a held-out one that was not asked."""
    section, plan = data.section, data.plan
    names: list[Split] = ["train", "val"]
    for name in names:
        if len(data.items(name)) or (name == "val" and not section.val and not section.splits):
            continue
        span = (section.window + section.conditions.past - 1) * data.spacing + 1
        steps = data.splits[name]
        values = plan.values[plan.sample[0]]
        within = f" ({label(values[steps[0]])} to {label(values[steps[-1]])})" if len(steps) else ""
        mend = {
            "train": "lower domain.val or domain.gap, or shorten the window",
            "val": "raise domain.val or shorten the window; domain.val: 0 holds out nothing",
        }
        need = f"an item is {span} steps of {plan.along} in a row without a hole"
        need += f" ({section.conditions.past} of them its past)" if section.conditions.past else ""
        raise DataError(
            f"no item is left for {name}: it has {len(steps)} of {len(values)} "
            f"{plan.sample[0]}{within}, and {need}; {mend[name]}"
        )


# Facts


def measure(data: Data) -> dict[str, Any]:
    """Metadata of data, JSON with numpy arrays as leaves; reads the training split once."""
    section, plan = data.section, data.plan
    found, whole = _statistics(data, plan.variables, "domain.transforms")
    channels = [name for v in plan.variables for name in v.channels]
    axes = make_axes(plan.axes, plan.grid, (plan.along, section.window))
    missing = _missing(data, found, whole)
    return {
        "format": ARRAYS_FORMAT,
        "axes": [{"name": a.name, "size": a.size, "kind": a.kind} for a in axes],
        "channels": channels,
        "window": section.window,
        "past": section.conditions.past,
        "missing": missing,
        "statistics": found.metadata(),
        "static": _static(data),
        "grids": None if not data.grids else _statistics(data, data.grids, "")[0].metadata(),
        "grid_units": units_of(data.store, data.grids),
        **told.as_facts(data.numbers, data.classes),
        "output": describe(data.store, plan, window=section.window),
    }


def units_of(store: Readable, variables: Sequence[ArrayVariable]) -> dict[str, str]:
    """Units of the channels whose variables tell them."""
    told = {v: str(store.variables[v.name].attrs.get("units", "")) for v in variables}
    return {channel: unit for v, unit in told.items() if unit for channel in v.channels}


def _static(data: Data) -> dict[str, Any] | None:
    """Static maps in physical units and their statistics."""
    if not data.static:
        return None
    values = told.read_static(data.store, data.plan, data.static)
    channels = [name for v in data.static for name in v.channels]
    transforms = _transforms(data.section, data.static)
    found = Statistics.measure([values[None]], channels, transforms=transforms)
    return {"values": values, "statistics": found.metadata()}


def _missing(data: Data, found: Statistics, whole: bool) -> bool:
    """Whether cells may be missing: as asked, else whether some are in the training split."""
    asked, lacking = data.section.missing, found.missing > 0
    if asked == "auto":
        if lacking.any() or whole:
            return bool(lacking.any())
        return any(data.store.variables[v.name].missing for v in data.plan.variables)
    if not asked and found.observed is not None:
        names = [
            c for c, seen in zip(found.channels, found.observed, strict=True) if not seen.all()
        ]
        raise DataError(
            f"domain.missing: false passes over items with missing cells, and all have some: "
            f"{listed(names)} has cells that are never observed; leave domain.missing out"
        )
    return bool(asked)


def _statistics(
    data: Data, variables: Sequence[ArrayVariable], key: str
) -> tuple[Statistics, bool]:
    """Statistics of the training split, from the cache where they are there, and whether all of
    it was looked at."""
    section, plan = data.section, data.plan
    channels = [name for v in variables for name in v.channels]
    transforms = _transforms(section, variables)
    most = {"auto": MOST_VALUES, "all": None}.get(str(section.measure), section.measure)
    assert not isinstance(most, str)
    train = data.splits["train"]
    places = block_places(data.store, plan, variables, train, most)
    every = block_places(data.store, plan, variables, train, None)

    def make() -> Statistics:
        with bar("measuring the training split", len(places), unit="blocks") as done:
            blocks = read_blocks(data.store, plan, variables, places)

            def counted() -> Any:
                for number, block in enumerate(blocks, 1):
                    yield block
                    done(number)

            return Statistics.measure(
                counted(),
                channels,
                transforms=transforms,
                normalize=section.normalize,
                per_cell=section.per_cell,
            )

    asked = {
        "format": ARRAYS_FORMAT,
        "data": data.store.fingerprint(),
        "channels": channels,
        "axes": list(plan.axes),
        "entries": {dim: _digest(entries) for dim, entries in sorted(plan.entries.items())},
        "train": _digest(train),
        "sample": list(plan.sample),
        "blocks": len(places),
        "transforms": {name: [t.name, t.scale] for name, t in sorted(transforms.items())},
        "normalize": section.normalize,
        "per_cell": section.per_cell,
    }
    text = json.dumps(asked, sort_keys=True)
    found = load_or_measure(hashlib.sha256(text.encode()).hexdigest(), make)
    return found, len(places) == len(every)


def _digest(entries: Array) -> str:
    return hashlib.sha256(entries.astype("<i8").tobytes()).hexdigest()


def _transforms(section: ArraysSection, variables: Sequence[ArrayVariable]) -> dict[str, Transform]:
    """Transforms by channel, of a variable's name for all of its channels."""
    found = {}
    for v in variables:
        for name in v.channels:
            given = section.transforms.get(name, section.transforms.get(v.name))
            if given is not None:
                found[name] = Transform.of(given)
    return found


def check_transforms(data: Data) -> None:
    """Every transform belongs to a channel.

    Raises:
        RecipeError: one does not.
    """
    maps = (*data.plan.variables, *data.grids, *data.static)
    known = [name for v in maps for name in dict.fromkeys((v.name, *v.channels))]
    for name in data.section.transforms:
        if name not in known:
            raise RecipeError(
                f"domain.transforms: no variable or channel {name!r}; there are "
                f"{listed(known, 20)}{nearest(name, known)}"
            )
