"""What a recipe for arrays reads of its store: which variables, and of them which entries."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from jitkit.domain import Split
from jitkit.domains.arrays.conditions import PARTS
from jitkit.domains.arrays.coordinates import is_time
from jitkit.domains.arrays.data import Data
from jitkit.domains.arrays.items import ArrayItems
from jitkit.domains.arrays.splits import split
from jitkit.errors import DataError
from jitkit.sections import DomainSection, Section
from jitkit.stores.download import DownloadRequest
from jitkit.utils.types import Array

__all__ = ["Copyable", "DownloadRequest", "check_alike", "copy_of", "reads"]

S = TypeVar("S", bound=Section)
PARTS_OF_DATA: tuple[Split, ...] = ("train", "val")


def reads(data: Data) -> list[DownloadRequest]:
    """What opened data are read for: both splits, and what lies between windows of one of them.

    A store of these entries alone has the same items, in the same order, under the same recipe.
    """
    from jitkit.stores.store import Store

    plan, store = data.plan, data.store
    assert isinstance(store, Store)  # a view of one knows itself what it reads
    entries = {dim: np.unique(chosen) for dim, chosen in plan.entries.items()}
    entries[plan.sample[0]] = plan.entries[plan.sample[0]][positions(data)]
    entries = {dim: chosen for dim, chosen in entries.items() if _may_be_cut(data, dim)}
    variables = {
        name: {dim: entries[dim] for dim in store.variables[name].dims if dim in entries}
        for name in _names(data)
    }
    others = (dim for dim in plan.sample if dim != plan.along)
    return [DownloadRequest("path", store, variables, (plan.along, *others))]


def _names(data: Data) -> list[str]:
    """Data variables that are predicted or told, each once; coordinates are copied in any case."""
    parted = (name.rpartition(".") for name in data.section.conditions.scalars)
    times = [head for head, _, part in parted if part in PARTS]
    named = (*(v.name for v in data.plan.variables), *data.section.conditions.variables, *times)
    return [name for name in dict.fromkeys(named) if name in data.store.variables]


def positions(data: Data) -> Array:
    """Positions along the first sample dimension that a copy needs.

    A share is of all of them, and so are the classes of a category. Of splits by value, entries as
    near to held-out ones as the gap stay, so that others keep their distance; and so do all between
    the first and the last where windows must not reach over what is left out.
    """
    section, plan = data.section, data.plan
    values = plan.values[plan.sample[0]]
    if section.splits is None or section.conditions.categories:
        return np.arange(len(values))
    whole = split(values, dim=plan.sample[0], share=0, gap=0, explicit=section.splits)
    gap = min(section.gap, len(values))
    near = (whole["val"][:, None] + np.arange(-gap, gap + 1)).ravel()
    near = near[(near >= 0) & (near < len(values))]
    kept = np.unique(np.concatenate([whole["train"], whole["val"], near]))
    if section.window + section.conditions.past > 1:
        return np.arange(kept[0], kept[-1] + 1)
    return kept


def _may_be_cut(data: Data, dim: str) -> bool:
    """Whether a recipe finds the same entries of a dimension when others are gone.

    It does by numbers and times; by text it does where no window goes along it.
    """
    coords = data.store.coords
    if dim not in coords.variables or coords[dim].dims != (dim,):
        return True
    values = coords[dim].values
    return values.dtype.kind in "iuf" or is_time(values) or dim != data.plan.along


class Copyable(Protocol):
    """A domain of arrays that is made from a section whose ``path`` may be changed."""

    @property
    def section(self) -> DomainSection: ...
    def reads(self) -> list[DownloadRequest]: ...
    def items(self, split: Split) -> ArrayItems: ...


def copy_of(domain: Copyable, folder: Path, threads: int) -> list[str]:
    """Copy what a domain reads; the overrides that point its recipe at the copy.

    The store of ``domain.path`` goes to the folder itself, that of ``domain.coarse.path`` to
    ``FOLDER-coarse`` beside it.

    Raises:
        DataError: as `fetching.fetch`, or the copy would have other items than the data.
    """
    from jitkit.stores.download import fetch

    reads = domain.reads()
    places = {read.key: _place(folder, read.key) for read in reads}

    def alike(place: Path, *, cells: bool) -> None:
        if len(places) == 1 or cells:  # with several the others must be there
            section = _pointed(domain.section, {**places, "path": place})
            check_alike(domain, type(domain)(section), cells=cells)  # type: ignore[call-arg]

    for read in reads:
        fetch(read, places[read.key], threads=threads, check=partial(alike, cells=False))
    alike(folder, cells=True)
    grouped = [read.key for read in reads if read.store.group]
    return [f"domain.{key}={place}" for key, place in places.items()] + [
        f"domain.{_sibling(key, 'group')}=null" for key in grouped
    ]


def _place(folder: Path, key: str) -> Path:
    head = key.rpartition(".")[0]
    return folder.with_name(f"{folder.name}-{head}") if head else folder


def _sibling(key: str, name: str) -> str:
    head = key.rpartition(".")[0]
    return f"{head}.{name}" if head else name


def _pointed(section: S, places: Mapping[str, Path]) -> S:
    """A section that reads copies in place of what its paths name."""
    update: dict[str, Any] = {}
    for key, place in places.items():
        head, _, last = key.rpartition(".")
        if head:
            update[head] = _pointed(getattr(section, head), {last: place})
        else:
            update |= {last: str(place), "group": None}
    return section.model_copy(update=update)


def check_alike(domain: Copyable, copy: Copyable, *, cells: bool) -> None:
    """That a copy has the items of the data that it was made of.

    Args:
        domain, copy: both opened.
        cells: compare some items' values too.

    Raises:
        DataError: it has not.
    """
    for part in PARTS_OF_DATA:
        ours, theirs = domain.items(part), copy.items(part)
        same = len(ours) == len(theirs)
        some = {0, len(ours) // 2, len(ours) - 1} if cells and same and len(ours) else ()
        for a, b in ((ours[i], theirs[i]) for i in sorted(some)):
            same &= a.name == b.name and np.array_equal(a.values, b.values, equal_nan=True)
        if not same:
            raise DataError(
                f"the {part} split of a copy has {len(theirs)} items, that of the data "
                f"{len(ours)}, and they are not the same: this recipe cannot be copied; choose "
                "entries by plain ranges in domain.select and domain.splits"
            )
