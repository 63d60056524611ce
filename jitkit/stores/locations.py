"""Locations of a store's bytes on disk: folder, single file, zip archive.

A `Location` returns the bytes of a key. It holds no open file, so it survives fork and pickle;
files that are read repeatedly stay open in `open_descriptors`. Nothing is written.
"""

from __future__ import annotations

import os
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")


class Location(Protocol):
    """Bytes by key. Thread-safe and picklable."""

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes | None:
        """Bytes of a key from ``start`` (from the end if negative); None if the key does not exist.

        Raises:
            OSError, DataError: the bytes cannot be read.
        """

    def stamp(self, key: str) -> str:
        """Size and modification time or similar; ``""`` if the key does not exist."""


class Lazy(Generic[T]):
    """An object created at first use in each process; never shared through fork or pickle."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._made: tuple[int, T] | None = None  # with the id of the process

    def __call__(self) -> T:
        made = self._made
        if made is not None:
            if made[0] == os.getpid():
                return made[1]
            self._lock, self._made = threading.Lock(), None  # the parent may hold the lock
        with self._lock:
            if self._made is None:
                self._made = (os.getpid(), self._make())
            return self._made[1]

    def __getstate__(self) -> dict[str, Any]:
        return {"_make": self._make}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_make"])  # type: ignore[misc]


class OpenFiles(Generic[T]):
    """LRU cache of open files by key; an evicted one closes with its last reference."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._reset()

    def _reset(self) -> None:
        self._process, self._lock = os.getpid(), threading.Lock()
        self._open: OrderedDict[Hashable, T] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The open file of a key, opened by ``make`` at first use."""
        if self._process != os.getpid():
            self._reset()
        with self._lock:
            if key not in self._open:
                self._open[key] = make()
                if len(self._open) > self._most:
                    self._open.popitem(last=False)
            self._open.move_to_end(key)
            return self._open[key]


class _Descriptor:
    """A file descriptor open for reading, closed with its last reference."""

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # os may be unset
        if hasattr(self, "fd"):
            close(self.fd)


open_descriptors: OpenFiles[_Descriptor] = OpenFiles(64)
"""Shared by all stores of a process, so hundreds of files stay below the system's limit."""


class Folder:
    """A folder; keys are relative paths."""

    def __init__(self, path: str) -> None:
        self.path = path

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes | None:
        try:
            with open(os.path.join(self.path, key), "rb", buffering=0) as file:
                if start:
                    file.seek(start, os.SEEK_SET if start > 0 else os.SEEK_END)
                return file.read() if length is None else _exactly(file.read(length), length)
        except FileNotFoundError:
            return None

    def stamp(self, key: str) -> str:
        return stamp(os.path.join(self.path, key))


class File:
    """One file; its only key is ``""``. Threads read in parallel with positional reads."""

    def __init__(self, path: str) -> None:
        self.path = path
        stat = os.stat(path)
        # a new file of the same name must not be read through the old descriptor
        self._identity = (path, stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)

    def __repr__(self) -> str:
        return f"File{self._identity}"

    def read(self, key: str = "", start: int = 0, length: int | None = None) -> bytes:
        descriptor = open_descriptors.get(self._identity, partial(_Descriptor, self.path))
        fd = descriptor.fd
        if length is None or start < 0:
            size = os.fstat(fd).st_size
            start = start if start >= 0 else size + start
            length = size - start if length is None else length
        return _exactly(_pread(fd, length, start), length)

    def stamp(self, key: str = "") -> str:
        return stamp(self.path)


def _pread(fd: int, length: int, start: int) -> bytes:
    """``os.pread`` without its limit of 2 GiB per call."""
    data = os.pread(fd, length, start)
    while 0 < len(data) < length and (more := os.pread(fd, length - len(data), start + len(data))):
        data += more
    return data


def _exactly(data: bytes, length: int) -> bytes:
    if len(data) != length:
        raise OSError(f"the file is cut short: it has {len(data)} of {length} bytes")
    return data


def stamp(path: str) -> str:
    """Size and modification time of a file or folder; ``""`` if it does not exist."""
    try:
        stat = os.stat(path)
    except FileNotFoundError:
        return ""
    return f"{stat.st_size} {stat.st_mtime_ns}"


class Zip:
    """A zip archive; keys are entry names. Uncompressed entries are read in place."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = File(path)
        self._archive = Lazy(self._open)

    def _open(self) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo], threading.Lock]:
        archive = zipfile.ZipFile(Path(self.path))
        return archive, {info.filename: info for info in archive.infolist()}, threading.Lock()

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes | None:
        archive, names, lock = self._archive()
        if key not in names:
            return None
        size = names[key].file_size
        start = start if start >= 0 else size + start
        length = size - start if length is None else length
        begin = self.start(key)
        if begin is not None:
            return self._file.read(start=begin + start, length=length)
        with lock:
            data = archive.read(key)
        return _exactly(data[start : start + length], length)

    def names(self) -> list[str]:
        """Names of the entries, in order."""
        return list(self._archive()[1])

    def size(self, name: str) -> int:
        """Uncompressed size of an entry in bytes."""
        return self._archive()[1][name].file_size

    def start(self, name: str) -> int | None:
        """Byte offset of an entry in the file; None if it is compressed."""
        info = self._archive()[1][name]
        if info.compress_type != zipfile.ZIP_STORED:
            return None
        header = self._file.read(start=info.header_offset, length=30)
        # lengths of name and extra field in the local header, which may differ from the directory's
        return (
            info.header_offset
            + 30
            + int.from_bytes(header[26:28], "little")
            + int.from_bytes(header[28:30], "little")
        )

    def stamp(self, key: str) -> str:
        return stamp(self.path)
