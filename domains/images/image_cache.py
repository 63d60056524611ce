"""Pictures packed into one file of 8-bit numbers: decoded and cropped once, then only copied.

The file is NumPy's own (``.npy``, version 1), so that anything reads it: (N, H, W, C) uint8. After
the array stands as JSON which pictures could not be read, and why; they are zeros in the array.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from jitkit.errors import BadItem, DataError
from jitkit.utils.console import bar, say, warn

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

BLOCK = 1024  # pictures that are decoded between two writes

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


class ImageCache:
    """Pictures of a packed file, mapped into memory. Safe for threads; pickles as the file's name.

    Attributes:
        unreadable: why a picture cannot be read, by its index.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            npy.read_magic(file)
            shape, *_ = npy.read_array_header_1_0(file)
            file.seek(prod(shape), os.SEEK_CUR)
            self.unreadable = {int(index): why for index, why in json.load(file).items()}

    def __reduce__(self) -> tuple[type[ImageCache], tuple[Path]]:
        return ImageCache, (self._path,)  # a map would be pickled as what it maps

    def __getitem__(self, index: int) -> Pixels:
        """(H, W, C), not to be written to; it is read when it is looked at."""
        return self._pixels[index]

    @cached_property
    def _pixels(self) -> Pixels:
        return np.load(self._path, mmap_mode="r").view(np.ndarray)


def pack(
    path: Path, shape: tuple[int, ...], read: Callable[[int], Pixels], *, threads: int
) -> ImageCache:
    """The packed file at ``path``; where it is not there it is made, and that is said before.

    It is written aside and renamed. A process that finds another one at it waits for that.

    Args:
        path: its name must say what is in it, since it is taken as it is found.
        shape: (N, H, W, C).
        read: picture i, (H, W, C); from so many threads at once. It may raise `BadItem`.
        threads: that decode.

    Raises:
        DataError: the disk has no room, or the file cannot be written.
    """
    if path.is_file():
        return ImageCache(path)
    aside = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _held(aside) as file:
            if path.is_file():  # another process has made it meanwhile
                aside.unlink(missing_ok=True)
            else:
                file.truncate(0)
                _check_room(path, prod(shape))
                try:
                    _fill(file, shape, read, threads, path)
                except BaseException:
                    os.ftruncate(file.fileno(), 0)  # it may be most of a disk
                    raise
                aside.replace(path)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written: {error.strerror}; domain.cache=FOLDER names another folder"
        ) from error
    return ImageCache(path)


@contextmanager
def _held(aside: Path) -> Iterator[IO[bytes]]:
    """A file that this process alone writes to; where another one does, after that."""
    with aside.open("ab") as file:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process packs pictures into {aside.parent}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks
        yield file


def _check_room(path: Path, size: int) -> None:
    """Say what is going to be written.

    Raises:
        DataError: there is no room for it.
    """
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise DataError(
            f"pictures packed into {path} take {size / 1e9:.3g} GB, and {free / 1e9:.3g} GB are "
            "free there; domain.cache=FOLDER names another disk, domain.cache=null does without"
        )
    say(f"packing pictures into {path}: {size / 1e9:.3g} GB of {free / 1e9:.3g} GB that are free")


def _fill(
    file: IO[bytes],
    shape: tuple[int, ...],
    read: Callable[[int], Pixels],
    threads: int,
    path: Path,
) -> None:
    """Write all of a packed file, and flush it to disk."""

    def one(index: int) -> Pixels | BadItem:
        try:
            return read(index)
        except BadItem as error:
            return error

    count, unreadable = shape[0], dict[int, str]()
    npy.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with ThreadPoolExecutor(threads) as pool, bar("packing", count, unit="pictures") as show:
        for first in range(0, count, BLOCK):
            block = range(first, min(first + BLOCK, count))
            for index, found in zip(block, list(pool.map(one, block)), strict=True):
                if isinstance(found, BadItem):
                    unreadable[index], found = found.why, np.zeros(shape[1:], np.uint8)
                file.write(np.ascontiguousarray(found).data)
            show(block.stop)
    file.write(json.dumps(unreadable).encode())
    file.flush()
    os.fsync(file.fileno())
    if unreadable:
        why = next(iter(unreadable.values()))
        warn(
            f"{len(unreadable)} of {count} pictures cannot be read and will be passed over "
            f"(the first: {why}); to have them tried again delete {path}"
        )
