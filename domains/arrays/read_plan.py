"""Download plan of an arrays recipe: the variables and entries that it reads; copies on disk."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from jitkit.domain import Split
from jitkit.domains.arrays.conditions import TIME_PARTS
from jitkit.domains.arrays.coordinates import is_time
from jitkit.domains.arrays.data import Data
from jitkit.domains.arrays.items import ArrayItems
from jitkit.domains.arrays.splits import split
from jitkit.errors import DataError
from jitkit.sections import DomainSection, Section
from jitkit.stores.download import DownloadRequest
from jitkit.utils.types import Array

__all__ = [
    "Copyable",
    "DownloadRequest",
    "check_same_items",
    "copy_data",
    "download_requests",
    "needed_positions",
]

S = TypeVar("S", bound=Section)
SPLITS: tuple[Split, ...] = ("train", "val")


def download_requests(data: Data) -> list[DownloadRequest]:
    """The entries that both splits read, including those between the windows of a split.

    A store with only these entries has the same items, in the same order, under the same recipe.
    """
    from jitkit.stores.store import Store

    plan, store = data.plan, data.store
    assert isinstance(store, Store)  # derived stores have their own requests
    entries = {dim: np.unique(used) for dim, used in plan.entries.items()}
    entries[plan.sample[0]] = plan.entries[plan.sample[0]][needed_positions(data)]
    entries = {dim: used for dim, used in entries.items() if _can_be_subset(data, dim)}
    variables = {
        name: {dim: entries[dim] for dim in store.variables[name].dims if dim in entries}
        for name in _variable_names(data)
    }
    others = (dim for dim in plan.sample if dim != plan.along)
    return [DownloadRequest("path", store, variables, (plan.along, *others))]


def _variable_names(data: Data) -> list[str]:
    """Predicted and conditioning data variables, each once; coordinates are always copied."""
    scalars = (name.rpartition(".") for name in data.section.conditions.scalars)
    times = [head for head, _, part in scalars if part in TIME_PARTS]
    names = (*(v.name for v in data.plan.variables), *data.section.conditions.variables, *times)
    return [name for name in dict.fromkeys(names) if name in data.store.variables]


def needed_positions(data: Data) -> Array:
    """Positions along the first sample dimension that a copy needs.

    All of them if the split is a fraction or there are categories, whose classes are collected over
    all entries. With splits by coordinate: both splits and the gap around validation entries, so
    that distances stay the same; with windows or past steps also all entries between the first and
    the last, so that no window crosses an entry that was left out.
    """
    section, plan = data.section, data.plan
    values = plan.values[plan.sample[0]]
    if section.splits is None or section.conditions.categories:
        return np.arange(len(values))
    splits = split(values, dim=plan.sample[0], share=0, gap=0, explicit=section.splits)
    gap = min(section.gap, len(values))
    near = (splits["val"][:, None] + np.arange(-gap, gap + 1)).ravel()
    near = near[(near >= 0) & (near < len(values))]
    kept = np.unique(np.concatenate([splits["train"], splits["val"], near]))
    if section.window + section.conditions.past > 1:
        return np.arange(kept[0], kept[-1] + 1)
    return kept


def _can_be_subset(data: Data, dim: str) -> bool:
    """Whether a recipe selects the same entries of a dimension after others are removed.

    True for numeric and time coordinates, and for text unless windows are along the dimension.
    """
    coords = data.store.coords
    if dim not in coords.variables or coords[dim].dims != (dim,):
        return True
    values = coords[dim].values
    return values.dtype.kind in "iuf" or is_time(values) or dim != data.plan.along


class Copyable(Protocol):
    """A domain of arrays that is created from a section whose ``path`` may be changed."""

    @property
    def section(self) -> DomainSection: ...
    def download_requests(self) -> list[DownloadRequest]: ...
    def items(self, split: Split) -> ArrayItems: ...


def copy_data(domain: Copyable, folder: Path, threads: int) -> list[str]:
    """Copy what a domain reads to disk; returns the overrides with which its recipe reads the copy.

    The store of ``domain.path`` is copied to the folder, that of ``domain.coarse.path`` to
    ``FOLDER-coarse`` beside it.

    Raises:
        DataError: as `jitkit.stores.download.download`, or the copy would have other items.
    """
    from jitkit.stores.download import download

    requests = domain.download_requests()
    targets = {request.key: _target(folder, request.key) for request in requests}

    def check(path: Path, *, cells: bool) -> None:
        if len(targets) == 1 or cells:  # with several stores all copies must exist first
            section = _with_paths(domain.section, {**targets, "path": path})
            check_same_items(domain, type(domain)(section), cells=cells)  # type: ignore[call-arg]

    for request in requests:
        target = targets[request.key]
        download(request, target, threads=threads, check=partial(check, cells=False))
    check(folder, cells=True)
    grouped = [request.key for request in requests if request.store.group]
    return [f"domain.{key}={path}" for key, path in targets.items()] + [
        f"domain.{_sibling(key, 'group')}=null" for key in grouped
    ]


def _target(folder: Path, key: str) -> Path:
    head = key.rpartition(".")[0]
    return folder.with_name(f"{folder.name}-{head}") if head else folder


def _sibling(key: str, name: str) -> str:
    head = key.rpartition(".")[0]
    return f"{head}.{name}" if head else name


def _with_paths(section: S, paths: Mapping[str, Path]) -> S:
    """A section that reads the copies at these paths, given by key."""
    update: dict[str, Any] = {}
    for key, path in paths.items():
        head, _, last = key.rpartition(".")
        if head:
            update[head] = _with_paths(getattr(section, head), {last: path})
        else:
            update |= {last: str(path), "group": None}
    return section.model_copy(update=update)


def check_same_items(domain: Copyable, copy: Copyable, *, cells: bool) -> None:
    """Check that a copy has the items of the original data.

    Args:
        domain, copy: both opened.
        cells: also compare the values of some items.

    Raises:
        DataError: the items differ.
    """
    for part in SPLITS:
        items, copied = domain.items(part), copy.items(part)
        same = len(items) == len(copied)
        checked = {0, len(items) // 2, len(items) - 1} if cells and same and len(items) else ()
        for a, b in ((items[i], copied[i]) for i in sorted(checked)):
            same &= a.name == b.name and np.array_equal(a.values, b.values, equal_nan=True)
        if not same:
            raise DataError(
                f"the {part} split of the copy has {len(copied)} items, that of the data "
                f"{len(items)}, and they differ: this recipe cannot be copied; select entries "
                "with plain ranges in domain.select and domain.splits"
            )
