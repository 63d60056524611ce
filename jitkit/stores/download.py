"""Download (`jitkit fetch`): copy what a recipe reads to a local Zarr store, chunked for training.

store ── DownloadRequest: variables, entries ── CopiedVariable: shape, chunks ── blocks of chunks
── local_copy.LocalCopy

The copy is a Zarr store with the names, dimensions, coordinates, attributes and stored values of
its source, restricted to the entries that are read. It is written to ``FOLDER.part``, which is
renamed when complete; an interrupted copy resumes.
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
from jitkit.stores.chunks import as_slices
from jitkit.stores.local_copy import CopiedVariable, LocalCopy, create_array, encode_chunk
from jitkit.utils.console import bar, say
from jitkit.utils.types import Array

if TYPE_CHECKING:
    import xarray

    from jitkit.stores.store import Store

COPY_FORMAT = 1
CHUNK_BYTES = 2**21  # of the largest variable, uncompressed: a few steps of a coarse grid
MOST_CHUNK_BYTES = 2**25  # limit of a chunk; above it each level is a chunk
BLOCK_BYTES = 2**26  # read by a thread at once, so that each source chunk is read once
MOST_BYTES = 2**30  # of blocks, or source chunks, in memory of all threads
EARLY_BYTES = 2**22  # limit of variables copied before the copy is checked
KEPT_ENCODING = (
    "units",
    "calendar",
    "dtype",
    "_FillValue",
    "missing_value",
    "scale_factor",
    "add_offset",
)
"""Encoding of coordinates that a copy keeps."""


@dataclass(frozen=True, eq=False)
class DownloadRequest:
    """What a recipe reads of one store.

    Attributes:
        key: the key of section ``domain`` with the store's path, such as ``"path"``.
        store: the source.
        variables: for each data variable, the entries read by dimension, ascending; other
            dimensions are read whole.
        sampled: dimensions that index items, the one of windows first.
        attrs: global attributes of the copy that replace the source's.
    """

    key: str
    store: Store
    variables: Mapping[str, Mapping[str, Array]]
    sampled: tuple[str, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)


def download(
    request: DownloadRequest,
    folder: Path,
    *,
    threads: int,
    check: Callable[[Path], None] = lambda _: None,
) -> None:
    """Copy the requested data of a store into a folder; resume or repair an existing copy.

    Args:
        request: what to copy.
        folder: new, or a copy made by this function, whose damaged files are downloaded again.
        threads: number of parallel reads.
        check: called with the copy's path when coordinates and small variables are written, before
            the large ones; an exception stops the copy.

    Raises:
        DataError: the source cannot be read or has changed, the copy does not fit on the disk, the
            folder has other content.
    """
    variables = copied_variables(request)
    with LocalCopy(folder, _description(request, variables)) as copy:
        intact = copy.intact_files(threads)
        missing = [
            (v, block, absent)
            for v in variables
            for block in _blocks(v, request.sampled)
            if (absent := [i for i in product(*block) if _key(v, i) not in intact])
        ]
        _announce(request, copy, variables, missing)
        if not copy.metadata_complete(intact):
            copy.write_metadata(partial(_write_metadata, request, variables))
        early = [each for each in missing if each[0].bytes <= EARLY_BYTES]
        _fill(request.store, copy, early, threads)
        check(copy.path)
        _fill(
            request.store, copy, [each for each in missing if each[0].bytes > EARLY_BYTES], threads
        )
        copy.finish()


def copied_variables(request: DownloadRequest) -> list[CopiedVariable]:
    """The numeric variables of a copy and their chunks.

    An entry requested by one variable is copied for all variables with that dimension, because
    they share the coordinate.
    """
    entries = _entries(request)
    numeric = [name for name in sorted(request.variables) if request.store.variables[name].numeric]
    variables = [_copied(request.store, name, entries) for name in numeric]
    steps = _steps_per_chunk(variables, request.sampled)
    return [_chunked(v, request.sampled, steps) for v in variables]


def _copied(store: Store, name: str, entries: Mapping[str, Array]) -> CopiedVariable:
    """A variable of a copy, as one chunk."""
    d = store.variables[name]
    where = tuple(entries.get(dim, np.arange(n)) for dim, n in zip(d.dims, d.shape, strict=True))
    raw = store.uniformly_stored(name)
    dtype: np.dtype[Any] = np.dtype(np.float32)
    encoding: dict[str, Any] = {"_FillValue": np.nan}
    if raw:
        dtype = np.dtype(bool) if d.dtype.kind == "b" else d.encoding["dtype"]
        encoding = {key: value for key, value in d.encoding.items() if key != "dtype"}
    return CopiedVariable(name, d, where, tuple(map(len, where)), dtype, encoding, raw)


def _entries(request: DownloadRequest) -> dict[str, Array]:
    """Union of the entries read by all variables, by dimension; whole dimensions are left out."""
    requested: dict[str, list[Array]] = {}
    sizes: dict[str, int] = {}
    for name, where in request.variables.items():
        d = request.store.variables[name]
        for dim, size in zip(d.dims, d.shape, strict=True):
            sizes[dim] = size
            requested.setdefault(dim, []).append(np.asarray(where.get(dim, np.arange(size))))
    union = {dim: np.unique(np.concatenate(each)) for dim, each in requested.items()}
    return {dim: entries for dim, entries in union.items() if len(entries) < sizes[dim]}


def _steps_per_chunk(variables: Sequence[CopiedVariable], sampled: Sequence[str]) -> int:
    """Steps per chunk, the same for all variables, so that their chunks are read together."""
    largest = max((_step_bytes(v, sampled) for v in variables), default=1)
    return max(1, CHUNK_BYTES // max(1, largest))


def _step_bytes(v: CopiedVariable, sampled: Sequence[str]) -> int:
    dims = zip(v.info.dims, v.shape, strict=True)
    return v.dtype.itemsize * prod(n for dim, n in dims if dim not in sampled)


def _chunked(v: CopiedVariable, sampled: Sequence[str], steps: int) -> CopiedVariable:
    """Chunks of a few steps of whole grids; large chunks are split along leading axes."""
    limits = dict.fromkeys(sampled, 1) | ({sampled[0]: steps} if sampled else {})
    chunks = [
        max(1, min(n, limits.get(dim, n))) for dim, n in zip(v.info.dims, v.shape, strict=True)
    ]
    for axis in range(len(chunks)):
        if prod(chunks) * v.dtype.itemsize > MOST_CHUNK_BYTES:
            chunks[axis] = 1
    return replace(v, chunks=tuple(chunks))


def _description(request: DownloadRequest, variables: Sequence[CopiedVariable]) -> dict[str, Any]:
    """JSON that identifies the content of a copy."""
    return {
        "format": COPY_FORMAT,
        "source": request.store.path,
        "group": request.store.group,
        "data": request.store.fingerprint(request.variables),
        "variables": sorted(request.variables),
        "entries": {d: _digest(entries) for d, entries in sorted(_entries(request).items())},
        "chunks": {v.name: list(v.chunks) for v in variables},
    }


def _digest(entries: Array) -> str:
    return hashlib.sha256(entries.astype("<i8").tobytes()).hexdigest()


# Report before the start


def _announce(
    request: DownloadRequest,
    copy: LocalCopy,
    variables: Sequence[CopiedVariable],
    missing: Sequence[tuple[CopiedVariable, CopyBlock, Sequence[Index]]],
) -> None:
    """Report the amount of data to download and check the free disk space.

    Raises:
        DataError: the disk is too small.
    """
    total = sum(v.bytes for v in variables)
    left = sum(_chunk_bytes(v, index) for v, _, absent in missing for index in absent)
    existing = next(folder for folder in (copy.path, *copy.path.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    names = f"{len(request.variables)} variable{'s' * (len(request.variables) != 1)}"
    say(f"{request.store.path}: {names}, {gigabytes(total)} before compression")
    source = sum(_source_bytes(request.store, v) for v in variables)
    if source > 1.1 * total:
        say(f"the source's chunks that contain them have {gigabytes(source)} and are read whole")
    if left < total:
        say(f"{gigabytes(total - left)} of it are in {copy.path} already, with correct checksums")
    if left > free:
        raise DataError(
            f"{gigabytes(left)} do not fit: {gigabytes(free)} are free on the disk of {copy.path}; "
            "choose another disk with --to, or fewer variables, levels or years in the recipe"
        )
    if left:
        say(f"{gigabytes(left)} to fetch, {gigabytes(free)} free on the disk of {copy.path}")


def gigabytes(count: int) -> str:
    """Bytes as text with a unit.

    >>> gigabytes(59_700_000_000), gigabytes(2_048)
    ('59.7 GB', '2.05 kB')
    """
    units = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "bytes"))
    size, unit = next((size, unit) for size, unit in units if count >= size or size == 1)
    return f"{count / size:.3g} {unit}"


def _source_bytes(store: Store, v: CopiedVariable) -> int:
    """Decoded bytes of the source's chunks that contain a variable's entries."""
    cells = 1
    for dim, entries in zip(v.info.dims, v.entries, strict=True):
        starts = store.starts(v.name, dim)
        touched = np.unique(np.searchsorted(starts, entries, side="right") - 1)
        cells *= int(np.diff(starts)[touched].sum())
    return cells * v.info.encoding["dtype"].itemsize


# Cells, block by block

Index = tuple[int, ...]
"""A chunk of a variable: its index along each dimension."""

CopyBlock = tuple[range, ...]
"""Chunks read at once: their range of indices along each dimension."""


def _blocks(v: CopiedVariable, sampled: Sequence[str]) -> Iterator[CopyBlock]:
    """All chunks of a variable in blocks, of whole source chunks where possible."""
    parts = []
    most = BLOCK_BYTES // max(1, _step_bytes(v, sampled))  # steps
    for dim, chunk, count, source in zip(
        v.info.dims, v.chunks, v.counts, v.info.chunks, strict=True
    ):
        length = count
        if dim in sampled:
            length = max(1, min(ceil(source / chunk), most // chunk)) if dim == sampled[0] else 1
        parts.append([range(a, min(count, a + length)) for a in range(0, count, length)])
    yield from product(*parts)


def _key(v: CopiedVariable, index: Index) -> str:
    return f"{v.name}/{'.'.join(map(str, index)) or '0'}"


def _cut(v: CopiedVariable, block: CopyBlock) -> list[Array]:
    """The source entries of a block along each dimension."""
    return [
        entries[part.start * chunk : part.stop * chunk]
        for part, chunk, entries in zip(block, v.chunks, v.entries, strict=True)
    ]


def _block_bytes(v: CopiedVariable, block: CopyBlock) -> int:
    return prod(len(entries) for entries in _cut(v, block)) * v.dtype.itemsize


def _chunk_bytes(v: CopiedVariable, index: Index) -> int:
    return _block_bytes(v, tuple(range(i, i + 1) for i in index))


def _fill(
    store: Store,
    copy: LocalCopy,
    missing: Sequence[tuple[CopiedVariable, CopyBlock, Sequence[Index]]],
    threads: int,
) -> None:
    """Download the missing chunks, several blocks in parallel."""
    total = sum(len(absent) for *_, absent in missing)
    largest = max(
        (max(_block_bytes(v, block), _source_chunk_bytes(v)) for v, block, _ in missing), default=1
    )
    at_once = max(1, min(threads, MOST_BYTES // largest))
    done = written = 0
    with (
        ThreadPoolExecutor(at_once, "jitkit-fetch") as pool,
        bar("fetching", total, unit="chunks") as progress,
    ):
        jobs = [pool.submit(_fetch_block, store, copy, *each) for each in missing]
        try:
            for job, (*_, absent) in zip(jobs, missing, strict=True):
                written += job.result()
                done += len(absent)
                progress(done, f"{gigabytes(written)} written")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _source_chunk_bytes(v: CopiedVariable) -> int:
    itemsize: int = v.info.encoding["dtype"].itemsize
    return prod(v.info.chunks) * itemsize


def _fetch_block(
    store: Store, copy: LocalCopy, v: CopiedVariable, block: CopyBlock, absent: Sequence[Index]
) -> int:
    """Read a block and write its absent chunks; returns the bytes written."""
    cells = _cells(store, v, block)
    written = 0
    for index in absent:
        chunk_slices = tuple(
            slice((i - part.start) * chunk, (i - part.start + 1) * chunk)
            for i, part, chunk in zip(index, block, v.chunks, strict=True)
        )
        data = encode_chunk(cells[chunk_slices], v.chunks)
        copy.write(_key(v, index), data)
        written += len(data)
    return written


def _cells(store: Store, v: CopiedVariable, block: CopyBlock) -> Array:
    """The cells of a block as the copy stores them."""
    cuts = [as_slices(entries) for entries in _cut(v, block)]
    read = store.read_raw if v.raw else store.read
    values = _gather(read, v.name, v.info.dims, cuts, ())
    return values.astype(v.dtype, copy=False)  # also restores the signedness in the file


def _gather(
    read: Callable[..., Array],
    name: str,
    dims: Sequence[str],
    cuts: Sequence[tuple[slice, ...]],
    selected: tuple[slice, ...],
) -> Array:
    """Cells of a variable by lists of slices along every dimension."""
    axis = len(selected)
    if axis == len(dims):
        return read(name, dict(zip(dims, selected, strict=True)))
    parts = [_gather(read, name, dims, cuts, (*selected, cut)) for cut in cuts[axis]]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=axis)


# Coordinates, attributes, metadata


def _write_metadata(
    request: DownloadRequest, variables: Sequence[CopiedVariable], folder: Path
) -> None:
    """Write everything except chunks: coordinates, non-numeric variables and metadata."""
    import zarr

    small = _small(request)
    small.to_zarr(folder, mode="w", zarr_format=2, consolidated=False)
    for v in variables:
        create_array(folder, v)
    zarr.consolidate_metadata(folder, zarr_format=2)


def _small(request: DownloadRequest) -> xarray.Dataset:
    """Coordinates restricted to the entries, and variables of text or times, in memory.

    A restricted dimension without coordinate gets one, the indices in the source, so that a recipe
    that selects by index selects the same entries.
    """
    import xarray

    store, entries = request.store, _entries(request)
    dims = {dim for name in request.variables for dim in store.variables[name].dims}
    unrelated = [name for name, c in store.coords.coords.items() if not set(c.dims) <= dims]
    small = store.coords.drop_vars(unrelated).copy()
    small = small.isel({dim: indices for dim, indices in entries.items() if dim in small.dims})
    small = small.assign_coords(
        {dim: (dim, indices) for dim, indices in entries.items() if dim not in small.variables}
    )
    for name in request.variables:
        d = store.variables[name]
        if not d.numeric:
            whole = xarray.Variable(d.dims, store.read_raw(name), d.attrs)
            small[name] = whole.isel({dim: entries[dim] for dim in d.dims if dim in entries})
    for variable in small.variables.values():
        kept = {key: value for key, value in variable.encoding.items() if key in KEPT_ENCODING}
        variable.encoding = kept
    return small.assign_attrs({**store.attrs, **request.attrs})
