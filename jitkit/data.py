"""Data loading: reproducible shuffling, augmentation, padding, and batches for several processes.

Batch k of a run is a function of (seed, k) alone: every epoch is a permutation of the items,
batches continue across epochs without a gap, and each item's augmentation has a separate
generator. A batch may be split into equal parts over processes and accumulation steps; neither
their number nor that of workers or threads changes its contents.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from math import ceil, isfinite
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from jitkit.domain import Domain
from jitkit.errors import BadItem, DataError, RecipeError, listed
from jitkit.fields import Batch, Category, Condition, Field, Grid, Layout, PerToken, Scalars
from jitkit.nn.patches import extend_coords
from jitkit.protocols import Chunked, HasSizes, Threaded
from jitkit.utils.console import warn
from jitkit.utils.cpu import cores
from jitkit.utils.seeding import mix

SUBSTITUTES = 16  # consecutive unreadable items at which a run stops
READ_AHEAD = 1  # batches that threads prepare while one is in use
POOL = 64  # batches whose items are sorted by size together
PADDED_SIZES = 32  # maximum number of padded sizes along an axis

ItemKey = tuple[int, int]
"""An epoch and the index of an item."""

Indices = np.ndarray[Any, np.dtype[np.int64]]


def batches(
    domain: Domain, items: Sequence[Any], plan: BatchPlan, *, workers: int = 0
) -> Iterator[Batch]:
    """Augmented training batches, or their parts, in the order of a plan.

    Args:
        domain: the adapter that encodes the items.
        items: training items; read in the workers, or in threads if they are `Threaded`.
        plan: the items of each batch.
        workers: processes that read and encode, in place of threads; 0 uses this process.

    Raises:
        DataError: there are no items, or too many consecutive items cannot be read.
    """
    if not len(items):
        raise DataError("the training split has no items")
    reader = _Reader(domain, items, plan.seed)
    collate_items = partial(_collate, domain.layout, domain.conditions)
    threads = items.threads if isinstance(items, Threaded) else 0
    if not workers and threads > 0:
        return _raise_errors(_threaded(reader, plan, collate_items, threads))
    if workers > cores():
        warn(f"train.workers is {workers} on {cores()} cores; fewer may be faster")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)  # as above
        loader = DataLoader(
            reader,
            batch_sampler=plan,
            num_workers=workers,
            collate_fn=collate_items,
            pin_memory=torch.cuda.is_available(),
            # fork deadlocks under Zarr; forkserver workers outlive a killed run
            multiprocessing_context="spawn" if workers else None,
        )
        return _raise_errors(iter(loader))


def _threaded(
    reader: _Reader,
    plan: BatchPlan,
    collate_items: Callable[[list[ReadItem]], Batch | DataError],
    threads: int,
) -> Iterator[Batch | DataError]:
    """Batches whose items are read in threads, `READ_AHEAD` of them while one is in use."""

    def read_part(keys: Sequence[ItemKey]) -> list[ReadItem]:
        return [reader[key] for key in keys]

    def join_parts(parts: Sequence[Future[list[ReadItem]]]) -> Batch | DataError:
        batch = collate_items([item for part in parts for item in part.result()])
        pin = torch.cuda.is_available() and isinstance(batch, Batch)
        return batch.pin_memory() if pin and isinstance(batch, Batch) else batch

    with ThreadPoolExecutor(threads) as readers, ThreadPoolExecutor(1) as joiner:
        try:
            waiting: deque[Future[Batch | DataError]] = deque()
            for keys in plan:
                size = -(-len(keys) // threads)
                parts = [keys[at : at + size] for at in range(0, len(keys), size)]
                futures = [readers.submit(read_part, part) for part in parts]
                waiting.append(joiner.submit(join_parts, futures))
                if len(waiting) > READ_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for pool in (readers, joiner):
                pool.shutdown(wait=False, cancel_futures=True)


def _raise_errors(loader: Iterable[Batch | DataError]) -> Iterator[Batch]:
    """Batches, until a reader returns an error, which is raised."""
    for batch in loader:
        if isinstance(batch, DataError):
            try:
                raise batch
            finally:
                del loader, batch  # the traceback would keep the workers alive
        yield batch


def validation_batches(
    domain: Domain, *, max_items: int, batch_size: int, rank: int = 0, world: int = 1
) -> Iterator[tuple[list[int], Batch, bool]]:
    """Validation batches, evenly spaced over the split, not augmented, as (indices, batch, own).

    Batches are distributed over the processes in turn. All processes get equally many: one with
    none left gets the first batch again, with ``own`` False.

    Raises:
        DataError: no item of a batch can be read, and there are several processes.
    """
    items = domain.items("val")
    indices = evenly_spaced(len(items), max_items)
    parts = [indices[at : at + batch_size] for at in range(0, len(indices), batch_size)]
    for turn in range(0, len(parts), world):
        own = turn + rank < len(parts)
        part = parts[turn + rank if own else 0]
        encoded = list(readable(domain, items, part))
        if encoded:
            fields = [field for _, field in encoded]
            yield [i for i, _ in encoded], collate(domain.layout, domain.conditions, fields), own
        elif world > 1:
            raise DataError(f"none of the validation items {listed(map(str, part))} can be read")


def readable(
    domain: Domain, items: Sequence[Any], indices: Iterable[int]
) -> Iterator[tuple[int, Field]]:
    """(index, encoded item) of the readable items."""
    for index in indices:
        with suppress(BadItem):
            yield index, encode(domain, items[index])


def evenly_spaced(size: int, max_items: int) -> list[int]:
    """At most ``max_items`` evenly spaced indices below ``size``; deterministic.

    >>> evenly_spaced(10, 4)
    [0, 2, 5, 7]
    """
    count = min(size, max_items)
    return [i * size // count for i in range(count)]


def encode(domain: Domain, item: Any, rng: np.random.Generator | None = None) -> Field:
    """Encode an item; raises `BadItem` if it has no data in any cell."""
    field = domain.encode(item, rng)
    known = _known(domain.layout, field)
    if known is not None and not known.any():
        raise BadItem(str(getattr(item, "name", "an item")), "no data in any of its cells")
    return field


ReadItem = tuple[Field, tuple[tuple[str, str], ...]] | DataError
"""An encoded item with the (name, reason) of items skipped before it, or an error."""


class _Reader(Dataset[ReadItem]):
    """(epoch, index) -> encoded item.

    Errors are returned, not raised: the loader would add a worker's traceback to the text.
    """

    def __init__(self, domain: Domain, items: Sequence[Any], seed: int) -> None:
        self.domain, self.items, self.seed = domain, items, seed

    def __getitem__(self, key: ItemKey) -> ReadItem:
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
class BatchPlan:
    """The items of each batch of a run; iterates over lists of (epoch, index).

    Each batch is split into ``accumulate`` x ``world`` equal parts. Part (i, rank) starts at
    position (i world + rank) x part size of the batch; a process iterates over its parts.

    Attributes:
        size: number of items of the split.
        batch_size: samples per batch, over all processes.
        seed: seed of the run.
        start: index of the first batch; nonzero in a resumed run.
        stop: index after the last batch.
        shuffle: returns one epoch's permutation, given its generator; uniform by default.
        sizes: sizes of the items, to group items of similar size (`by_size`).
        accumulate: gradient accumulation parts per process.
        rank: rank of this process, counted from 0.
        world: number of processes.
    """

    size: int
    batch_size: int
    seed: int
    start: int
    stop: int
    shuffle: Callable[[np.random.Generator], Indices] | None = None
    sizes: Indices | None = None
    accumulate: int = 1
    rank: int = 0
    world: int = 1

    @classmethod
    def over(
        cls,
        items: Sequence[Any],
        batch_size: int,
        seed: int,
        *,
        start: int = 0,
        stop: int,
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
    ) -> BatchPlan:
        """The plan of a split; `Chunked` items set their order, `HasSizes` are grouped by size."""
        shuffle = items.order if isinstance(items, Chunked) else None
        sizes = items.sizes if isinstance(items, HasSizes) and shuffle is None else None
        options = (shuffle, sizes, accumulate, rank, world)
        return cls(len(items), batch_size, seed, start, stop, *options)

    def __post_init__(self) -> None:
        parts = self.accumulate * self.world
        if self.batch_size % parts:
            raise RecipeError(
                f"train.batch_size {self.batch_size} cannot be split into equal parts for "
                f"{self.world} processes x train.accumulate {self.accumulate}; use a multiple of "
                f"{parts}"
            )

    @property
    def part_size(self) -> int:
        """Number of samples of one part."""
        return self.batch_size // (self.accumulate * self.world)

    def first_position(self, part: int) -> int:
        """Position in the batch of the first sample of this process's part ``part``."""
        return (part * self.world + self.rank) * self.part_size

    def __len__(self) -> int:
        return (self.stop - self.start) * self.accumulate

    def __iter__(self) -> Iterator[list[ItemKey]]:
        orders: dict[int, Indices] = {}
        for batch in range(self.start, self.stop):
            for part in range(self.accumulate):
                first = self.first_position(part)
                yield self._keys(batch, range(first, first + self.part_size), orders)

    def keys(self, batch: int) -> list[ItemKey]:
        """(epoch, index) of every sample of batch number ``batch``, over all processes."""
        return self._keys(batch, range(self.batch_size), {})

    def _keys(
        self, batch: int, positions: Iterable[int], orders: dict[int, Indices]
    ) -> list[ItemKey]:
        keys = []
        for position in positions:
            epoch, at = divmod(batch * self.batch_size + position, self.size)
            if epoch not in orders:
                for old in [e for e in orders if e < epoch - 1]:
                    del orders[old]
                orders[epoch] = self._order(epoch)
            keys.append((epoch, int(orders[epoch][at])))
        return keys

    def _order(self, epoch: int) -> Indices:
        rng = np.random.default_rng(mix(self.seed, "order", epoch))
        if self.shuffle:
            return self.shuffle(rng)
        if self.sizes is not None:
            return by_size(self.sizes, rng, self.batch_size, first=-epoch * self.size)
        return rng.permutation(self.size)


def by_size(sizes: Indices, rng: np.random.Generator, batch_size: int, first: int = 0) -> Indices:
    """An epoch's permutation in which the items of each batch have similar sizes.

    Items are shuffled, sorted by size within pools of `POOL` batches, and the batches are shuffled.
    A batch that extends into a neighbouring epoch holds arbitrary items.

    Args:
        sizes: sizes of the items, (items,).
        rng: random generator of the epoch.
        batch_size: items of a batch.
        first: offset of the first item of any batch from the start of the epoch, modulo the batch
            size.
    """
    order = rng.permutation(len(sizes))
    first = min(first % batch_size, len(sizes))
    count = (len(sizes) - first) // batch_size
    middle = order[first : first + count * batch_size]
    for at in range(0, len(middle), POOL * batch_size):
        pool = middle[at : at + POOL * batch_size]
        pool[:] = pool[np.argsort(sizes[pool], kind="stable")]
    rows = middle.reshape(count, batch_size)
    rows[:] = rows[rng.permutation(count)]
    return order


def collate(layout: Layout, conditions: Mapping[str, Condition], fields: Sequence[Field]) -> Batch:
    """Stack fields into a batch, padded to the largest grid among them.

    Axes smaller than the layout's are rounded up to one of at most `PADDED_SIZES` numbers of
    tokens, so that `torch.compile` sees few shapes.

    Cells without data are zero in ``x`` and False in the mask; there is no mask if all cells of all
    fields have data. Conditions on the grid are padded with the unset value (NaN, class ``n``).
    """
    grids = [tuple(field.values.shape[1:]) for field in fields]
    grid = _rounded(layout, tuple(max(sizes) for sizes in zip(*grids, strict=True)))
    known = [_known(layout, field) for field in fields]
    mask = None
    if any(own != grid for own in grids) or any(each is not None for each in known):
        rows = len(layout.channels) if layout.missing else 1
        whole = [torch.ones(rows, *own, dtype=torch.bool) for own in grids]
        own = [w if k is None else k for k, w in zip(known, whole, strict=True)]
        mask = torch.stack([_to_grid(each, grid, value=False) for each in own])
    x = [
        f.values if k is None else f.values.where(k, 0.0)
        for k, f in zip(known, fields, strict=True)
    ]
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


def _rounded(layout: Layout, grid: tuple[int, ...]) -> tuple[int, ...]:
    """The grid, with axes smaller than the layout's rounded up."""
    sizes = []
    for size, axis in zip(grid, layout.axes, strict=True):
        patches = ceil(axis.tokens / PADDED_SIZES)
        step = axis.patch * patches if patches > 1 and size < axis.size else 1
        sizes.append(min(max(axis.size, size), ceil(size / step) * step))
    return tuple(sizes)


def _collate(
    layout: Layout,
    conditions: Mapping[str, Condition],
    items: Sequence[ReadItem],
) -> Batch | DataError:
    fields: list[Field] = []
    notes: list[tuple[str, str]] = []
    for item in items:
        if isinstance(item, DataError):
            return item
        fields.append(item[0])
        notes += item[1]
    return replace(collate(layout, conditions, fields), notes=tuple(notes))


def _known(layout: Layout, field: Field) -> Tensor | None:
    """Mask of cells with data: (C, X1..Xn) if channels may be missing, else (1, X1..Xn).

    None if every cell has data.
    """
    if field.mask is None and isfinite(field.values.sum()):
        return None  # 20 times faster than a test of each cell; false alarms are rare
    known = torch.isfinite(field.values)
    if field.mask is not None:
        known = known & field.mask
    if bool(known.all()):
        return None
    return known if layout.missing else known.all(dim=0, keepdim=True)


def _cond(condition: Condition, value: Any, grid: tuple[int, ...]) -> Tensor:
    """One item's condition as input of the network, without the batch axis."""
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
    """Pad (C, X1..Xn) at the end of each axis to a larger grid."""
    ends = [(0, new - old) for old, new in zip(x.shape[1:], grid, strict=True)]
    if not any(end for _, end in ends):
        return x
    return F.pad(x, [n for end in reversed(ends) for n in end], value=value)


def _coords(field: Field, grid: tuple[int, ...]) -> Tensor:
    """Positions of a field's cells, (X1..Xn, n); 0, 1, 2, ... by default."""
    if field.coords is not None:
        return extend_coords(field.coords.movedim(-1, 0), grid).movedim(0, -1)
    lines = [torch.arange(size, dtype=torch.float32) for size in grid]
    return torch.stack(torch.meshgrid(*lines, indexing="ij"), dim=-1)
