"""Image cache: all images decoded and cropped once into one memory-mapped uint8 file.

The file is a NumPy ``.npy`` (version 1), (N, H, W, C) uint8. After the array, a JSON object maps
the indices of unreadable images to the reason; they are zeros in the array.
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

BLOCK = 1024  # images decoded between two writes

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


class ImageCache:
    """Images of a cache file, memory-mapped. Thread-safe; pickled as the file's path.

    Attributes:
        unreadable: reason for each unreadable image, by index.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            npy.read_magic(file)
            shape, *_ = npy.read_array_header_1_0(file)
            file.seek(prod(shape), os.SEEK_CUR)
            self.unreadable = {int(index): why for index, why in json.load(file).items()}

    def __reduce__(self) -> tuple[type[ImageCache], tuple[Path]]:
        return ImageCache, (self._path,)  # a memory map would be pickled with its contents

    def __getitem__(self, index: int) -> Pixels:
        """(H, W, C), read-only; loaded from disk on access."""
        return self._pixels[index]

    @cached_property
    def _pixels(self) -> Pixels:
        return np.load(self._path, mmap_mode="r").view(np.ndarray)


def open_image_cache(
    path: Path, shape: tuple[int, ...], read: Callable[[int], Pixels], *, threads: int
) -> ImageCache:
    """Open the cache file at ``path``; if it is missing, announce and write it first.

    It is written to a temporary file and renamed. Concurrent processes wait for the first writer.

    Args:
        path: its name must identify the contents, because an existing file is used unchecked.
        shape: (N, H, W, C).
        read: returns image i, (H, W, C); called from several threads. It may raise `BadItem`.
        threads: number of decoding threads.

    Raises:
        DataError: the disk is too full, or the file cannot be written.
    """
    if path.is_file():
        return ImageCache(path)
    aside = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(aside) as file:
            if path.is_file():  # written meanwhile by another process
                aside.unlink(missing_ok=True)
            else:
                file.truncate(0)
                _check_disk_space(path, prod(shape))
                try:
                    _fill(file, shape, read, threads, path)
                except BaseException:
                    os.ftruncate(file.fileno(), 0)  # it may fill most of the disk
                    raise
                aside.replace(path)
    except OSError as error:
        raise DataError(
            f"{path} cannot be written: {error.strerror}; domain.cache=FOLDER names another folder"
        ) from error
    return ImageCache(path)


@contextmanager
def _locked(aside: Path) -> Iterator[IO[bytes]]:
    """A file opened under an exclusive lock; waits for another process that has it."""
    with aside.open("ab") as file:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process is writing the image cache in {aside.parent}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks
        yield file


def _check_disk_space(path: Path, size: int) -> None:
    """Announce what will be written, ``size`` bytes.

    Raises:
        DataError: the disk is too full.
    """
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise DataError(
            f"the image cache {path} takes {size / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free "
            "there; domain.cache=FOLDER names another disk, domain.cache=null disables the cache"
        )
    say(f"writing the image cache {path}: {size / 1e9:.3g} GB of {free / 1e9:.3g} GB free")


def _fill(
    file: IO[bytes],
    shape: tuple[int, ...],
    read: Callable[[int], Pixels],
    threads: int,
    path: Path,
) -> None:
    """Write the complete cache file and flush it to disk."""

    def read_or_error(index: int) -> Pixels | BadItem:
        try:
            return read(index)
        except BadItem as error:
            return error

    count, unreadable = shape[0], dict[int, str]()
    npy.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with ThreadPoolExecutor(threads) as pool, bar("image cache", count, unit="images") as show:
        for first in range(0, count, BLOCK):
            block = range(first, min(first + BLOCK, count))
            for index, image in zip(block, list(pool.map(read_or_error, block)), strict=True):
                if isinstance(image, BadItem):
                    unreadable[index], image = image.why, np.zeros(shape[1:], np.uint8)
                file.write(np.ascontiguousarray(image).data)
            show(block.stop)
    file.write(json.dumps(unreadable).encode())
    file.flush()
    os.fsync(file.fileno())
    if unreadable:
        why = next(iter(unreadable.values()))
        warn(
            f"{len(unreadable)} of {count} images cannot be read and will be skipped "
            f"(the first: {why}); delete {path} to try them again"
        )
