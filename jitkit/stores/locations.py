"""Where bytes lie: folders, single files and zip archives on disk.

A `Location` hands out the bytes of a key. It holds no open file of its own, so that it crosses forks
and pickles; files that are read again and again stay open in `descriptors`. Nothing is written.
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
    """Bytes by key. Safe for threads; pickles."""

    def read(self, key: str, start: int = 0, length: int | None = None) -> bytes | None:
        """Bytes of a key from ``start`` (from the end if negative); None where there is no key.

        Raises:
            OSError, DataError: they cannot be read.
        """

    def stamp(self, key: str) -> str:
        """Size and time of change, or the like; ``""`` where there is no key."""


class Lazy(Generic[T]):
    """Something opened at its first use in each process; it crosses neither fork nor pickle."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._made: tuple[int, T] | None = None  # with the process that made it

    def __call__(self) -> T:
        made = self._made
        if made is not None:
            if made[0] == os.getpid():
                return made[1]
            self._lock, self._made = threading.Lock(), None  # a thread of the parent may hold it
        with self._lock:
            if self._made is None:
                self._made = (os.getpid(), self._make())
            return self._made[1]

    def __getstate__(self) -> dict[str, Any]:
        return {"_make": self._make}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_make"])  # type: ignore[misc]


class KeptOpen(Generic[T]):
    """The things opened last, by key; one that is dropped closes when its last reader lets go."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._forget()

    def _forget(self) -> None:
        self._process, self._lock = os.getpid(), threading.Lock()
        self._open: OrderedDict[Hashable, T] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """What ``make`` opened for a key."""
        if self._process != os.getpid():
            self._forget()
        with self._lock:
            if key not in self._open:
                self._open[key] = make()
                if len(self._open) > self._most:
                    self._open.popitem(last=False)
            self._open.move_to_end(key)
            return self._open[key]


class _Descriptor:
    """A file open for reading, closed with its last reference."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # os may be gone by then
        if hasattr(self, "number"):
            close(self.number)


descriptors: KeptOpen[_Descriptor] = KeptOpen(64)
"""Of all stores of a process: hundreds of files joined must not use up what the system allows."""


class Folder:
    """A folder; keys are paths below it."""

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
    """One file; its only key is ``""``. Threads read it at once, none moves another's position."""

    def __init__(self, path: str) -> None:
        self.path = path
        found = os.stat(path)
        # another file that took this one's name must not be read through an old descriptor
        self._identity = (path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)

    def __repr__(self) -> str:
        return f"File{self._identity}"

    def read(self, key: str = "", start: int = 0, length: int | None = None) -> bytes:
        opened = descriptors.get(self._identity, partial(_Descriptor, self.path))
        file = opened.number
        if length is None or start < 0:
            size = os.fstat(file).st_size
            start = start if start >= 0 else size + start
            length = size - start if length is None else length
        return _exactly(_pread(file, length, start), length)

    def stamp(self, key: str = "") -> str:
        return stamp(self.path)


def _pread(file: int, length: int, start: int) -> bytes:
    """``os.pread``, which gives at most 2 GiB at once."""
    data = os.pread(file, length, start)
    while 0 < len(data) < length and (
        more := os.pread(file, length - len(data), start + len(data))
    ):
        data += more
    return data


def _exactly(data: bytes, length: int) -> bytes:
    if len(data) != length:
        raise OSError(f"the file is cut short: {len(data)} of {length} bytes are there")
    return data


def stamp(path: str) -> str:
    """Size and time of change of a file or folder; ``""`` where there is none."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return ""
    return f"{found.st_size} {found.st_mtime_ns}"


class Zip:
    """A zip archive; keys are the names in it. What is stored uncompressed is read in place."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = File(path)
        self._archive = Lazy(self._list)

    def _list(self) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo], threading.Lock]:
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
        """The entries, in their order."""
        return list(self._archive()[1])

    def size(self, name: str) -> int:
        """Bytes of an entry, uncompressed."""
        return self._archive()[1][name].file_size

    def start(self, name: str) -> int | None:
        """Where an entry's bytes begin in the file; None where they are compressed."""
        info = self._archive()[1][name]
        if info.compress_type != zipfile.ZIP_STORED:
            return None
        header = self._file.read(start=info.header_offset, length=30)
        # the lengths of name and extra field in the local header, which may differ from the list's
        return (
            info.header_offset
            + 30
            + int.from_bytes(header[26:28], "little")
            + int.from_bytes(header[28:30], "little")
        )

    def stamp(self, key: str) -> str:
        return stamp(self.path)
