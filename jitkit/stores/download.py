"""Copies on disk of what a recipe reads of a bucket or any other store, in chunks for training.

store ── Read: variables, entries ── Copied: shape, chunks ── blocks ── chunks ── copies.Copy

The copy is a Zarr store with the names, dimensions, coordinates, attributes and stored numbers of
its source, cut to the entries that are read. It grows in ``FOLDER.part``, which is renamed when all
is there; what a kill leaves is gone on with.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from math import ceil, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jitkit.errors import DataError
from jitkit.stores.chunks import stretches
from jitkit.stores.local_copy import Copied, Copy, create, encoded
from jitkit.utils.console import bar, say
from jitkit.utils.types import Array

if TYPE_CHECKING:
    import xarray

    from jitkit.stores.store import Store

COPY_FORMAT = 1
CHUNK_BYTES = 2**21  # of the largest variable, before compression: a few steps of a coarse grid
MOST_CHUNK_BYTES = 2**25  # of one step, above which its levels are chunks of their own
BLOCK_BYTES = 2**26  # that a thread reads at once, so that each chunk of the source is read once
MOST_BYTES = 2**30  # of the blocks, or of the source's chunks, that all threads hold
EARLY_BYTES = 2**22  # of a variable that is copied before the copy is checked
KEPT = ("units", "calendar", "dtype", "_FillValue", "missing_value", "scale_factor", "add_offset")
"""How coordinates are stored, as far as a copy keeps it."""


@dataclass(frozen=True, eq=False)
class DownloadRequest:
    """What a recipe reads of one store.

    Attributes:
        key: of section ``domain``, which points at the store: ``"path"``.
        store: where it lies.
        variables: data variables, and by dimension the entries that are read, rising; a dimension
            that is not named is read whole.
        sampled: dimensions that items are drawn from, the one that windows go along first.
        attrs: global attributes of the copy, where entries that are left out change the source's.
    """

    key: str
    store: Store
    variables: Mapping[str, Mapping[str, Array]]
    sampled: tuple[str, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)


def fetch(
    read: DownloadRequest,
    folder: Path,
    *,
    threads: int,
    check: Callable[[Path], None] = lambda _: None,
) -> None:
    """Copy what is read of a store into a folder, or go on with it, or mend it.

    Args:
        read: what is copied.
        folder: where to; new, or a copy that this function made, of which damaged parts are
            fetched again.
        threads: that read at once.
        check: is asked about the copy when its coordinates and small variables are there, before
            the large ones; what it raises stops the copy.

    Raises:
        DataError: the source cannot be read or has changed, the copy does not fit on the disk, the
            folder holds something else.
    """
    variables = copied(read)
    with Copy(folder, _asked(read, variables)) as copy:
        sound = copy.sound(threads)
        missing = [
            (v, block, lacking)
            for v in variables
            for block in _blocks(v, read.sampled)
            if (lacking := [i for i in product(*block) if _key(v, i) not in sound])
        ]
        _announce(read, copy, variables, missing)
        if not copy.framed(sound):
            copy.frame(partial(_write_frame, read, variables))
        early = [each for each in missing if each[0].bytes <= EARLY_BYTES]
        _fill(read.store, copy, early, threads)
        check(copy.place)
        _fill(read.store, copy, [each for each in missing if each[0].bytes > EARLY_BYTES], threads)
        copy.finish()


def copied(read: DownloadRequest) -> list[Copied]:
    """The numeric variables of a copy and their chunks.

    An entry that one variable asks for along a dimension is copied for all that have it, as one
    coordinate holds for all.
    """
    entries = _entries(read)
    numeric = [name for name in sorted(read.variables) if read.store.variables[name].numeric]
    found = [_copied(read.store, name, entries) for name in numeric]
    steps = _steps(found, read.sampled)
    return [_chunked(v, read.sampled, steps) for v in found]


def _copied(store: Store, name: str, entries: Mapping[str, Array]) -> Copied:
    """A variable of a copy in one chunk."""
    d = store.variables[name]
    where = tuple(entries.get(dim, np.arange(n)) for dim, n in zip(d.dims, d.shape, strict=True))
    raw = store.alike(name)
    dtype: np.dtype[Any] = np.dtype(np.float32)
    encoding: dict[str, Any] = {"_FillValue": np.nan}
    if raw:
        dtype = np.dtype(bool) if d.dtype.kind == "b" else d.encoding["dtype"]
        encoding = {key: value for key, value in d.encoding.items() if key != "dtype"}
    return Copied(name, d, where, tuple(map(len, where)), dtype, encoding, raw)


def _entries(read: DownloadRequest) -> dict[str, Array]:
    """By dimension, the entries that any variable reads; dimensions read whole are left out."""
    asked: dict[str, list[Array]] = {}
    sizes: dict[str, int] = {}
    for name, where in read.variables.items():
        d = read.store.variables[name]
        for dim, size in zip(d.dims, d.shape, strict=True):
            sizes[dim] = size
            asked.setdefault(dim, []).append(np.asarray(where.get(dim, np.arange(size))))
    united = {dim: np.unique(np.concatenate(each)) for dim, each in asked.items()}
    return {dim: entries for dim, entries in united.items() if len(entries) < sizes[dim]}


def _steps(variables: Sequence[Copied], sampled: Sequence[str]) -> int:
    """Steps of a chunk, the same for all variables, whose chunks are then read together."""
    largest = max((_step_bytes(v, sampled) for v in variables), default=1)
    return max(1, CHUNK_BYTES // max(1, largest))


def _step_bytes(v: Copied, sampled: Sequence[str]) -> int:
    dims = zip(v.described.dims, v.shape, strict=True)
    return v.dtype.itemsize * prod(n for dim, n in dims if dim not in sampled)


def _chunked(v: Copied, sampled: Sequence[str], steps: int) -> Copied:
    """With chunks of a few steps and whole grids; large ones are cut along leading dimensions."""
    limits = dict.fromkeys(sampled, 1) | ({sampled[0]: steps} if sampled else {})
    chunks = [
        max(1, min(n, limits.get(dim, n))) for dim, n in zip(v.described.dims, v.shape, strict=True)
    ]
    for axis in range(len(chunks)):
        if prod(chunks) * v.dtype.itemsize > MOST_CHUNK_BYTES:
            chunks[axis] = 1
    return replace(v, chunks=tuple(chunks))


def _asked(read: DownloadRequest, variables: Sequence[Copied]) -> dict[str, Any]:
    """What a folder is a copy of: JSON that differs where the copies would."""
    return {
        "format": COPY_FORMAT,
        "source": read.store.path,
        "group": read.store.group,
        "data": read.store.fingerprint(read.variables),
        "variables": sorted(read.variables),
        "entries": {d: _digest(entries) for d, entries in sorted(_entries(read).items())},
        "chunks": {v.name: list(v.chunks) for v in variables},
    }


def _digest(entries: Array) -> str:
    return hashlib.sha256(entries.astype("<i8").tobytes()).hexdigest()


# What is told before it starts


def _announce(
    read: DownloadRequest,
    copy: Copy,
    variables: Sequence[Copied],
    missing: Sequence[tuple[Copied, CopyBlock, Sequence[Index]]],
) -> None:
    """Say how much there is to do and whether the disk has room for it.

    Raises:
        DataError: it has not.
    """
    total = sum(v.bytes for v in variables)
    left = sum(_chunk_bytes(v, index) for v, _, lacking in missing for index in lacking)
    near = next(folder for folder in (copy.place, *copy.place.parents) if folder.exists())
    free = shutil.disk_usage(near).free
    names = f"{len(read.variables)} variable{'s' * (len(read.variables) != 1)}"
    say(f"{read.store.path}: {names}, {gigabytes(total)} before compression")
    source = sum(_source_bytes(read.store, v) for v in variables)
    if source > 1.1 * total:
        say(f"they lie in chunks of {gigabytes(source)}, which are fetched whole")
    if left < total:
        say(f"{gigabytes(total - left)} of it are in {copy.place} already, and sound")
    if left > free:
        raise DataError(
            f"{gigabytes(left)} do not fit: {gigabytes(free)} are free where {copy.place} lies; "
            "choose another disk with --to, or fewer variables, levels or years in the recipe"
        )
    if left:
        say(f"{gigabytes(left)} to fetch, {gigabytes(free)} free where {copy.place} lies")


def gigabytes(count: int) -> str:
    """Bytes as people read them.

    >>> gigabytes(59_700_000_000), gigabytes(2_048)
    ('59.7 GB', '2.05 kB')
    """
    units = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "bytes"))
    size, unit = next((size, unit) for size, unit in units if count >= size or size == 1)
    return f"{count / size:.3g} {unit}"


def _source_bytes(store: Store, v: Copied) -> int:
    """Of the source's chunks that hold a variable's entries, decoded."""
    cells = 1
    for dim, entries in zip(v.described.dims, v.entries, strict=True):
        starts = store.starts(v.name, dim)
        touched = np.unique(np.searchsorted(starts, entries, side="right") - 1)
        cells *= int(np.diff(starts)[touched].sum())
    return cells * v.described.encoding["dtype"].itemsize


# Cells, block by block

Index = tuple[int, ...]
"""A chunk of a variable: its number along each dimension."""

CopyBlock = tuple[range, ...]
"""Chunks that are read at once: their numbers along each dimension."""


def _blocks(v: Copied, sampled: Sequence[str]) -> Iterator[CopyBlock]:
    """All chunks of a variable in blocks that hold whole chunks of the source, where they can."""
    parts = []
    most = BLOCK_BYTES // max(1, _step_bytes(v, sampled))  # steps
    for dim, chunk, count, source in zip(
        v.described.dims, v.chunks, v.counts, v.described.chunks, strict=True
    ):
        length = count
        if dim in sampled:
            length = max(1, min(ceil(source / chunk), most // chunk)) if dim == sampled[0] else 1
        parts.append([range(a, min(count, a + length)) for a in range(0, count, length)])
    yield from product(*parts)


def _key(v: Copied, index: Index) -> str:
    return f"{v.name}/{'.'.join(map(str, index)) or '0'}"


def _cut(v: Copied, block: CopyBlock) -> list[Array]:
    """The source's entries of a block along each dimension."""
    return [
        entries[part.start * chunk : part.stop * chunk]
        for part, chunk, entries in zip(block, v.chunks, v.entries, strict=True)
    ]


def _block_bytes(v: Copied, block: CopyBlock) -> int:
    return prod(len(entries) for entries in _cut(v, block)) * v.dtype.itemsize


def _chunk_bytes(v: Copied, index: Index) -> int:
    return _block_bytes(v, tuple(range(i, i + 1) for i in index))


def _fill(
    store: Store,
    copy: Copy,
    missing: Sequence[tuple[Copied, CopyBlock, Sequence[Index]]],
    threads: int,
) -> None:
    """Fetch the chunks that are not there, several blocks at once."""
    total = sum(len(lacking) for *_, lacking in missing)
    largest = max(
        (max(_block_bytes(v, block), _source_chunk_bytes(v)) for v, block, _ in missing), default=1
    )
    at_once = max(1, min(threads, MOST_BYTES // largest))
    done = written = 0
    with (
        ThreadPoolExecutor(at_once, "jitkit-fetch") as pool,
        bar("fetching", total, unit="chunks") as shown,
    ):
        jobs = [pool.submit(_fetch_block, store, copy, *each) for each in missing]
        try:
            for job, (*_, lacking) in zip(jobs, missing, strict=True):
                written += job.result()
                done += len(lacking)
                shown(done, f"{gigabytes(written)} written")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _source_chunk_bytes(v: Copied) -> int:
    itemsize: int = v.described.encoding["dtype"].itemsize
    return prod(v.described.chunks) * itemsize


def _fetch_block(
    store: Store, copy: Copy, v: Copied, block: CopyBlock, lacking: Sequence[Index]
) -> int:
    """Read a block and write those of its chunks that are lacking; bytes that were written."""
    cells = _cells(store, v, block)
    written = 0
    for index in lacking:
        place = tuple(
            slice((i - part.start) * chunk, (i - part.start + 1) * chunk)
            for i, part, chunk in zip(index, block, v.chunks, strict=True)
        )
        data = encoded(cells[place], v.chunks)
        copy.write(_key(v, index), data)
        written += len(data)
    return written


def _cells(store: Store, v: Copied, block: CopyBlock) -> Array:
    """The cells of a block as the copy stores them."""
    cuts = [stretches(entries) for entries in _cut(v, block)]
    take = store.read_raw if v.raw else store.read
    values = _gathered(take, v.name, v.described.dims, cuts, ())
    return values.astype(v.dtype, copy=False)  # also back to the sign that a file stores


def _gathered(
    take: Callable[..., Array],
    name: str,
    dims: Sequence[str],
    cuts: Sequence[tuple[slice, ...]],
    chosen: tuple[slice, ...],
) -> Array:
    """A variable's cells along stretches of every dimension."""
    axis = len(chosen)
    if axis == len(dims):
        return take(name, dict(zip(dims, chosen, strict=True)))
    parts = [_gathered(take, name, dims, cuts, (*chosen, cut)) for cut in cuts[axis]]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=axis)


# Coordinates, attributes, metadata


def _write_frame(read: DownloadRequest, variables: Sequence[Copied], folder: Path) -> None:
    """Write all of a copy but its cells: coordinates, what holds no numbers, and metadata."""
    import zarr

    small = _small(read)
    small.to_zarr(folder, mode="w", zarr_format=2, consolidated=False)
    for v in variables:
        create(folder, v)
    zarr.consolidate_metadata(folder, zarr_format=2)


def _small(read: DownloadRequest) -> xarray.Dataset:
    """Coordinates cut to the entries, and variables of text or times, in memory.

    A dimension that is cut and has no coordinate gets one, its entries' numbers in the source: a
    recipe that chooses by number then means the same ones.
    """
    import xarray

    store, entries = read.store, _entries(read)
    dims = {dim for name in read.variables for dim in store.variables[name].dims}
    beyond = [name for name, c in store.coords.coords.items() if not set(c.dims) <= dims]
    small = store.coords.drop_vars(beyond).copy()
    small = small.isel({dim: chosen for dim, chosen in entries.items() if dim in small.dims})
    small = small.assign_coords(
        {dim: (dim, chosen) for dim, chosen in entries.items() if dim not in small.variables}
    )
    for name in read.variables:
        d = store.variables[name]
        if not d.numeric:
            whole = xarray.Variable(d.dims, store.read_raw(name), d.attrs)
            small[name] = whole.isel({dim: entries[dim] for dim in d.dims if dim in entries})
    for variable in small.variables.values():
        kept = {key: value for key, value in variable.encoding.items() if key in KEPT}
        variable.encoding = kept
    return small.assign_attrs({**store.attrs, **read.attrs})
