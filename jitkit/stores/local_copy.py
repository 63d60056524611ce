"""Local copy of a store: files written atomically, with a log of lengths and checksums to resume.

FOLDER.part/            the copy until it is complete, then FOLDER
  .zgroup ...           a Zarr store (v2, consolidated)
  .fetch/asked.json     the content of the copy
  .fetch/written.jsonl  one line per file: key, length, checksum, whether metadata
"""

from __future__ import annotations

import json
import shutil
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from jitkit.errors import DataError, listed
from jitkit.utils.atomic import atomic_write
from jitkit.utils.console import bar
from jitkit.utils.types import Array

if TYPE_CHECKING:
    from jitkit.stores.variables import VariableInfo

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NOTES = ".fetch"
WRITTEN = f"{NOTES}/written.jsonl"
LAST = ".zmetadata"  # read first by xarray and zarr, so written after everything it lists


@dataclass(frozen=True, eq=False)
class CopiedVariable:
    """A variable of a copy.

    Attributes:
        name: as in the source.
        info: metadata of the source variable.
        entries: source entries to copy, along each dimension.
        chunks: chunk sizes of the copy.
        dtype, encoding: as in the source if the same in all files, else physical values in
            float32.
        raw: whether stored values are copied unchanged.
    """

    name: str
    info: VariableInfo
    entries: tuple[Array, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]
    encoding: Mapping[str, Any]
    raw: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Cells along each dimension."""
        return tuple(len(entries) for entries in self.entries)

    @property
    def bytes(self) -> int:
        """Uncompressed size."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of chunks along each dimension."""
        return tuple(ceil(n / chunk) for n, chunk in zip(self.shape, self.chunks, strict=True))


class LocalCopy:
    """A copy in a folder, new, partial or complete, as a context manager.

    `write` is thread-safe; another process that makes the same copy is refused.

    Attributes:
        path: current folder: ``FOLDER.part`` until it is complete.
    """

    def __init__(self, folder: Path, description: Mapping[str, Any]) -> None:
        """Open an existing copy or start one.

        Args:
            folder: folder of the complete copy.
            description: the content of the copy, as JSON.

        Raises:
            DataError: the folder has other content, or another process is writing it.
        """
        self._folder = folder
        complete = folder.exists() and not _is_empty(folder)
        self.path = folder if complete else folder.with_name(f"{folder.name}.part")
        self._log_lock = threading.Lock()
        self._check(description)
        (self.path / NOTES).mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self.path / NOTES / "lock")
        self._put(self.path / NOTES / "asked.json", json.dumps(description, indent=1).encode())

    def __enter__(self) -> LocalCopy:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()
        if self.path != self._folder and not (self.path / WRITTEN).exists():  # nothing was written
            shutil.rmtree(self.path)

    def _check(self, description: Mapping[str, Any]) -> None:
        if not self.path.exists() or _is_empty(self.path):
            return
        notes = self.path / NOTES / "asked.json"
        if not notes.is_file():
            raise DataError(
                f"{self.path} has files that `jitkit fetch` did not write; choose a new folder"
            )
        try:
            existing = json.loads(notes.read_text(encoding="utf-8"))
        except ValueError:
            existing = {}
        different = [key for key in description if existing.get(key) != description[key]]
        if different:
            how = "has changed since the copy started" if different == ["data"] else "differs"
            raise DataError(
                f"{self.path} has a copy of other data: its {listed(different)} {how}; choose "
                "a new folder, or delete that one"
            )

    def intact_files(self, threads: int) -> set[str]:
        """Keys of the files with correct length and checksum; reads all files."""
        logged = self._read_log()
        intact: set[str] = set()
        with (
            ThreadPoolExecutor(threads) as pool,
            bar(f"checking {self.path}", len(logged), unit="files") as progress,
        ):
            results = pool.map(self._is_intact, logged, logged.values())
            for done, (key, is_intact) in enumerate(zip(logged, results, strict=True), 1):
                if is_intact:
                    intact.add(key)
                progress(done)
        return intact

    def metadata_complete(self, intact: set[str]) -> bool:
        """Whether all files other than chunks are written and intact."""
        metadata = {key for key, (*_, is_metadata) in self._read_log().items() if is_metadata}
        return LAST in metadata and metadata <= intact

    def _read_log(self) -> dict[str, tuple[int, int, bool]]:
        """For each key: length, checksum, and whether it is a metadata file."""
        try:
            lines = (self.path / WRITTEN).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return {}
        logged = {}
        for line in lines:
            try:
                key, length, checksum, is_metadata = json.loads(line)
            except ValueError:  # truncated by a kill
                continue
            logged[key] = (length, checksum, is_metadata)
        return logged

    def _is_intact(self, key: str, logged: tuple[int, int, bool]) -> bool:
        try:
            data = (self.path / key).read_bytes()
        except OSError:
            return False
        return (len(data), zlib.crc32(data)) == logged[:2]

    def write(self, key: str, data: bytes, *, is_metadata: bool = False) -> None:
        """Write a file, then add it to the log."""
        self._put(self.path / key, data)
        line = json.dumps([key, len(data), zlib.crc32(data), is_metadata]) + "\n"
        with self._log_lock, open(self.path / WRITTEN, "ab", buffering=0) as file:
            file.write(line.encode())

    def _put(self, path: Path, data: bytes) -> None:
        with atomic_write(path) as aside:
            aside.write_bytes(data)

    def write_metadata(self, write: Callable[[Path], None]) -> None:
        """Add all files other than chunks; ``write`` writes them into a given folder."""
        aside = self.path / NOTES / "frame"
        shutil.rmtree(aside, ignore_errors=True)
        write(aside)
        files = [path for path in aside.rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda path: (path.name == LAST, path)):
            self.write(path.relative_to(aside).as_posix(), path.read_bytes(), is_metadata=True)
        shutil.rmtree(aside)

    def finish(self) -> None:
        """Rename the complete copy to its final folder."""
        if self.path != self._folder:
            if self._folder.exists():  # empty at the start
                self._folder.rmdir()
            self.path.rename(self._folder)
            self.path = self._folder


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _locked(path: Path) -> IO[bytes]:
    """Open a file with an exclusive lock.

    Raises:
        DataError: another process has the lock.
    """
    file = open(path, "wb")
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise DataError(f"another process is making the copy in {path.parents[1]}") from None
    except OSError:
        pass  # the file system has no locks
    return file


def create_array(folder: Path, v: CopiedVariable) -> None:
    """Write the metadata of a variable in a Zarr v2 store."""
    import zarr

    attrs = {**v.info.attrs, **v.encoding}
    fill = attrs.pop("_FillValue", None)  # xarray reads it from the array's fill_value
    zarr.create_array(
        folder,
        name=v.name,
        shape=v.shape,
        chunks=v.chunks,
        dtype=v.dtype,
        compressors=_compressor(),
        fill_value=None if fill is None else v.dtype.type(fill),
        attributes={"_ARRAY_DIMENSIONS": list(v.info.dims), **dict(_plain(attrs))},
        zarr_format=2,
    )


def _plain(attrs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Attributes as JSON types; NaN values are dropped, since NaN is always missing."""
    for key, value in attrs.items():
        value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        if not (isinstance(value, float) and not np.isfinite(value)):
            yield key, value


def encode_chunk(cells: Array, chunk: tuple[int, ...]) -> bytes:
    """Encode a chunk of a Zarr v2 array; a partial one is padded with its last cells."""
    if cells.shape != chunk:
        widths = [(0, n - size) for n, size in zip(chunk, cells.shape, strict=True)]
        cells = np.pad(cells, widths, mode="edge")
    data: bytes = _compressor().encode(np.ascontiguousarray(cells))
    return bytes(data)


def _compressor() -> Any:
    from numcodecs import Blosc

    return Blosc(cname="zstd", clevel=3, shuffle=Blosc.SHUFFLE)
