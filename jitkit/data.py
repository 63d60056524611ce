"""Items into batches: shuffled, seeded, and the same whoever reads them.

Batch k of a run is a function of (seed, k) alone: every epoch is a permutation of the items, the
batches go through one epoch after the other without a gap, and each item's augmentation has its
own generator. The number of worker processes changes nothing.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from jitkit.domain import Domain
from jitkit.errors import BadItem, DataError
from jitkit.fields import Batch, Category, Condition, Field, Grid, Layout, PerToken, Scalars
from jitkit.patches import extend_coords
from jitkit.progress import warn
from jitkit.seeds import mix

SUBSTITUTES = 16  # items in a row that may be unreadable before a run stops


def batches(
    domain: Domain,
    items: Sequence[Any],
    *,
    batch_size: int,
    seed: int,
    start: int,
    stop: int,
    workers: int = 0,
) -> Iterator[Batch]:
    """Training batches ``start`` to ``stop - 1``, augmented.

    Args:
        domain: the adapter that encodes the items.
        items: of the training split; read in the workers.
        batch_size: samples in a batch.
        seed: of the run.
        start: number of the first batch; a run that goes on starts where it was.
        stop: number after the last batch.
        workers: processes that read and encode; 0 does it here.

    Raises:
        DataError: there are no items, or too many in a row cannot be read.
    """
    if not len(items):
        raise DataError("the training split has no items")
    reader = _Reader(domain, items, seed)
    plan = _Plan(len(items), batch_size, seed, start, stop)
    if workers > (cores := _cores()):
        warn(f"train.workers is {workers} on {cores} cores; fewer may be faster")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)  # told above
        loader = DataLoader(
            reader,
            batch_sampler=plan,
            num_workers=workers,
            collate_fn=partial(_collate, domain.layout, domain.conditions),
            pin_memory=torch.cuda.is_available(),
            # fork dead-locks under Zarr; workers of a fork server do not see that a run was killed
            multiprocessing_context="spawn" if workers else None,
        )
        return _raised(iter(loader))


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _raised(loader: Iterable[Batch | DataError]) -> Iterator[Batch]:
    """Batches, until a reader hands over what went wrong."""
    for batch in loader:
        if isinstance(batch, DataError):
            try:
                raise batch
            finally:
                del loader, batch  # or its traceback would keep the workers
        yield batch


def held_out(domain: Domain, *, most: int, batch_size: int) -> Iterator[tuple[list[int], Batch]]:
    """Validation items, evenly spread over their split, as (indices, batch); none augmented."""
    items = domain.items("val")
    indices = spread(len(items), most)
    for at in range(0, len(indices), batch_size):
        found = list(readable(domain, items, indices[at : at + batch_size]))
        if found:
            fields = [field for _, field in found]
            yield [i for i, _ in found], collate(domain.layout, domain.conditions, fields)


def readable(
    domain: Domain, items: Sequence[Any], indices: Iterable[int]
) -> Iterator[tuple[int, Field]]:
    """Encoded items with their indices, those that cannot be read left out."""
    for index in indices:
        with suppress(BadItem):
            yield index, encode(domain, items[index])


def spread(size: int, most: int) -> list[int]:
    """At most ``most`` indices below ``size``, evenly spread, the same every time.

    >>> spread(10, 4)
    [0, 2, 5, 7]
    """
    count = min(size, most)
    return [i * size // count for i in range(count)]


def encode(domain: Domain, item: Any, rng: np.random.Generator | None = None) -> Field:
    """An item as a `Field`; one with no data in any cell is a `BadItem`."""
    field = domain.encode(item, rng)
    if not _known(domain.layout, field).any():
        raise BadItem(str(getattr(item, "name", "an item")), "no data in any of its cells")
    return field


Read = tuple[Field, tuple[tuple[str, str], ...]] | DataError
"""An encoded item and what was passed over on the way to it; or why there is none."""


class _Reader(Dataset[Read]):
    """(epoch, index) -> encoded item.

    Mistakes are handed over, not raised: the loader would put a worker's traceback into the text.
    """

    def __init__(self, domain: Domain, items: Sequence[Any], seed: int) -> None:
        self.domain, self.items, self.seed = domain, items, seed

    def __getitem__(self, key: tuple[int, int]) -> Read:
        epoch, index = key
        rng = np.random.default_rng(mix(self.seed, "augment", epoch, index))
        notes: list[tuple[str, str]] = []
        for attempt in range(SUBSTITUTES):
            try:
                item = self.items[(index + attempt) % len(self.items)]
                return encode(self.domain, item, rng), tuple(notes)
            except BadItem as error:
                notes.append((error.name, error.why))
            except DataError as error:
                return error
        return DataError(
            f"{SUBSTITUTES} items in a row cannot be read; the first: {': '.join(notes[0])}"
        )


@dataclass(frozen=True)
class _Plan:
    """Which items, of which epoch, make each batch; iterates over lists of (epoch, index)."""

    size: int
    batch_size: int
    seed: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for number in range(self.start, self.stop):
            batch = []
            for place in range(number * self.batch_size, (number + 1) * self.batch_size):
                if place // self.size != epoch:
                    epoch = place // self.size
                    rng = np.random.default_rng(mix(self.seed, "order", epoch))
                    order = rng.permutation(self.size)
                batch.append((epoch, int(order[place % self.size])))
            yield batch


def collate(layout: Layout, conditions: Mapping[str, Condition], fields: Sequence[Field]) -> Batch:
    """Fields side by side, padded to the largest grid among them.

    Cells without data are zero in ``x`` and False in the mask; there is no mask where all cells
    of all fields have data. Conditions on the grid are padded with what stands for "not told".
    """
    grids = [tuple(field.values.shape[1:]) for field in fields]
    grid = tuple(max(sizes) for sizes in zip(*grids, strict=True))
    known = [_known(layout, field) for field in fields]
    mask = None
    if any(own != grid for own in grids) or not all(bool(each.all()) for each in known):
        mask = torch.stack([_to_grid(each, grid, value=False) for each in known])
    x = [torch.where(k, f.values, 0.0) for k, f in zip(known, fields, strict=True)]
    cond = {
        name: torch.stack([_cond(condition, field.cond[name], grid) for field in fields])
        for name, condition in conditions.items()
    }
    given = any(field.coords is not None for field in fields)
    return Batch(
        x=torch.stack([_to_grid(values, grid, value=0.0) for values in x]),
        mask=mask,
        cond=cond,
        coords=torch.stack([_coords(field, grid) for field in fields]) if given else None,
    )


def _collate(
    layout: Layout,
    conditions: Mapping[str, Condition],
    items: Sequence[Read],
) -> Batch | DataError:
    fields: list[Field] = []
    notes: list[tuple[str, str]] = []
    for item in items:
        if isinstance(item, DataError):
            return item
        fields.append(item[0])
        notes += item[1]
    return replace(collate(layout, conditions, fields), notes=tuple(notes))


def _known(layout: Layout, field: Field) -> Tensor:
    """Where a field has data: (C, X1..Xn) if channels may be missing, else (1, X1..Xn)."""
    known = torch.isfinite(field.values)
    if field.mask is not None:
        known = known & field.mask
    return known if layout.missing else known.all(dim=0, keepdim=True)


def _cond(condition: Condition, value: Any, grid: tuple[int, ...]) -> Tensor:
    """One item's condition as the network takes it, without the batch."""
    value = torch.as_tensor(value)
    match condition:
        case Category():
            return value.long()
        case Scalars():
            return value.float()
        case Grid():
            return _to_grid(value.float(), grid, value=torch.nan)
        case PerToken(n=n):
            return _to_grid(value.long()[None], grid, value=n)[0]


def _to_grid(x: Tensor, grid: tuple[int, ...], *, value: float) -> Tensor:
    """(C, X1..Xn) padded at the end of each axis to a larger grid."""
    ends = [(0, new - old) for old, new in zip(x.shape[1:], grid, strict=True)]
    if not any(end for _, end in ends):
        return x
    return F.pad(x, [n for end in reversed(ends) for n in end], value=value)


def _coords(field: Field, grid: tuple[int, ...]) -> Tensor:
    """Positions of a field's cells, (X1..Xn, n), or 0, 1, 2, ... where it gives none."""
    if field.coords is not None:
        return extend_coords(field.coords.movedim(-1, 0), grid).movedim(0, -1)
    lines = [torch.arange(size, dtype=torch.float32) for size in grid]
    return torch.stack(torch.meshgrid(*lines, indexing="ij"), dim=-1)
