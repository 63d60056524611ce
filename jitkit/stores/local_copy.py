"""A copy that is being made: files that are written aside and renamed, and a list of them.

FOLDER.part/            the copy until it is whole, then FOLDER
  .zgroup ...           a Zarr store (v2, consolidated)
  .fetch/asked.json     what it is a copy of
  .fetch/written.jsonl  a line for each file: its key, length and checksum
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
from jitkit.utils.atomic import written_aside
from jitkit.utils.console import bar
from jitkit.utils.types import Array

if TYPE_CHECKING:
    from jitkit.stores.variables import Described

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NOTES = ".fetch"
WRITTEN = f"{NOTES}/written.jsonl"
LAST = ".zmetadata"  # what xarray and zarr look for first, written when all that it names is there


@dataclass(frozen=True, eq=False)
class Copied:
    """A variable of a copy.

    Attributes:
        name: as in the source.
        described: the source's variable.
        entries: along each of its dimensions, those of the source that are copied.
        chunks: of the copy.
        dtype, encoding: how its numbers are stored; as in the source, where one way holds for all
            of its files, else as physical values in float32.
        raw: whether stored numbers are copied as they are.
    """

    name: str
    described: Described
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
        """Of its numbers before compression."""
        return prod(self.shape) * self.dtype.itemsize

    @property
    def counts(self) -> tuple[int, ...]:
        """Chunks along each dimension."""
        return tuple(ceil(n / chunk) for n, chunk in zip(self.shape, self.chunks, strict=True))


class Copy:
    """A copy in a folder, begun, going on or whole, to be used in a ``with`` block.

    `write` is safe for threads; another process that makes the same copy is refused.

    Attributes:
        place: where it lies now: ``FOLDER.part`` until it is whole.
    """

    def __init__(self, folder: Path, asked: Mapping[str, Any]) -> None:
        """Find a copy, or begin one.

        Args:
            folder: where it is to lie.
            asked: what it is a copy of, as JSON.

        Raises:
            DataError: the folder holds something else, or the copy of something else, or another
                process is at it.
        """
        self._folder = folder
        begun = folder.exists() and not _is_empty(folder)
        self.place = folder if begun else folder.with_name(f"{folder.name}.part")
        self._writing = threading.Lock()
        self._check(asked)
        (self.place / NOTES).mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self.place / NOTES / "lock")
        self._put(self.place / NOTES / "asked.json", json.dumps(asked, indent=1).encode())

    def __enter__(self) -> Copy:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()
        if self.place != self._folder and not (self.place / WRITTEN).exists():  # nothing has begun
            shutil.rmtree(self.place)

    def _check(self, asked: Mapping[str, Any]) -> None:
        if not self.place.exists() or _is_empty(self.place):
            return
        notes = self.place / NOTES / "asked.json"
        if not notes.is_file():
            raise DataError(
                f"{self.place} holds something that is no copy made here; choose a new folder"
            )
        try:
            found = json.loads(notes.read_text(encoding="utf-8"))
        except ValueError:
            found = {}
        other = [key for key in asked if found.get(key) != asked[key]]
        if other:
            changed = "has changed since it was begun" if other == ["data"] else "differs"
            raise DataError(
                f"{self.place} holds the copy of other data: its {listed(other)} {changed}; choose "
                "a new folder, or delete that one"
            )

    def sound(self, threads: int) -> set[str]:
        """Keys of the files that are as they were written; all of them are read."""
        noted = self._noted()
        found: set[str] = set()
        with (
            ThreadPoolExecutor(threads) as pool,
            bar(f"checking {self.place}", len(noted), unit="files") as shown,
        ):
            intact = pool.map(self._intact, noted, noted.values())
            for done, (key, whole) in enumerate(zip(noted, intact, strict=True), 1):
                if whole:
                    found.add(key)
                shown(done)
        return found

    def framed(self, sound: set[str]) -> bool:
        """Whether all is there but chunks: its last file was written, and all are sound."""
        frame = {key for key, (*_, frame) in self._noted().items() if frame}
        return LAST in frame and frame <= sound

    def _noted(self) -> dict[str, tuple[int, int, bool]]:
        """By key, the length and checksum that a file was written with, and whether it is of the
        frame."""
        try:
            lines = (self.place / WRITTEN).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return {}
        noted = {}
        for line in lines:
            try:
                key, length, checksum, frame = json.loads(line)
            except ValueError:  # torn by a kill
                continue
            noted[key] = (length, checksum, frame)
        return noted

    def _intact(self, key: str, noted: tuple[int, int, bool]) -> bool:
        try:
            data = (self.place / key).read_bytes()
        except OSError:
            return False
        return (len(data), zlib.crc32(data)) == noted[:2]

    def write(self, key: str, data: bytes, *, frame: bool = False) -> None:
        """Put a file in its place, and note it once it is there."""
        self._put(self.place / key, data)
        line = json.dumps([key, len(data), zlib.crc32(data), frame]) + "\n"
        with self._writing, open(self.place / WRITTEN, "ab", buffering=0) as file:
            file.write(line.encode())

    def _put(self, path: Path, data: bytes) -> None:
        with written_aside(path) as aside:
            aside.write_bytes(data)

    def frame(self, write: Callable[[Path], None]) -> None:
        """Everything but chunks, written by ``write`` into a folder that it is given."""
        aside = self.place / NOTES / "frame"
        shutil.rmtree(aside, ignore_errors=True)
        write(aside)
        files = [path for path in aside.rglob("*") if path.is_file()]
        for path in sorted(files, key=lambda path: (path.name == LAST, path)):
            self.write(path.relative_to(aside).as_posix(), path.read_bytes(), frame=True)
        shutil.rmtree(aside)

    def finish(self) -> None:
        """The copy is whole: give it its name."""
        if self.place != self._folder:
            if self._folder.exists():  # it was empty when this began
                self._folder.rmdir()
            self.place.rename(self._folder)
            self.place = self._folder


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _locked(path: Path) -> IO[bytes]:
    """A file that this process alone holds open; others are refused."""
    file = open(path, "wb")
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise DataError(f"another process is making the copy in {path.parents[1]}") from None
    except OSError:
        pass  # a file system without locks
    return file


def create(folder: Path, v: Copied) -> None:
    """The metadata of a variable in a Zarr v2 store."""
    import zarr

    attrs = {**v.described.attrs, **v.encoding}
    fill = attrs.pop("_FillValue", None)  # xarray takes it from the array's own fill value
    zarr.create_array(
        folder,
        name=v.name,
        shape=v.shape,
        chunks=v.chunks,
        dtype=v.dtype,
        compressors=_compressor(),
        fill_value=None if fill is None else v.dtype.type(fill),
        attributes={"_ARRAY_DIMENSIONS": list(v.described.dims), **dict(_plain(attrs))},
        zarr_format=2,
    )


def _plain(attrs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Attributes as JSON has them; a missing value of NaN says nothing: NaN is missing anyway."""
    for key, value in attrs.items():
        value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        if not (isinstance(value, float) and not np.isfinite(value)):
            yield key, value


def encoded(cells: Array, chunk: tuple[int, ...]) -> bytes:
    """A chunk of a Zarr v2 array, filled up with its last cells where the array ends inside it."""
    if cells.shape != chunk:
        widths = [(0, n - size) for n, size in zip(chunk, cells.shape, strict=True)]
        cells = np.pad(cells, widths, mode="edge")
    data: bytes = _compressor().encode(np.ascontiguousarray(cells))
    return bytes(data)


def _compressor() -> Any:
    from numcodecs import Blosc

    return Blosc(cname="zstd", clevel=3, shuffle=Blosc.SHUFFLE)
