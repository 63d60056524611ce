"""Open an array file, a Zarr folder or an object store by path or URL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jitkit.errors import DataError
from jitkit.stores.formats import open_file, open_folder
from jitkit.stores.locations import File
from jitkit.stores.opened import Opened

CHECK_PATH = "check the path (in a recipe it is domain.path)"


@contextmanager
def open_path(path: str, group: str | None, options: Mapping[str, Any]) -> Iterator[Opened]:
    """Open one file or store.

    ``options`` apply to URLs and are ignored on disk, so that a recipe for a bucket reads a local
    copy when only its path is changed.

    Raises:
        DataError: no such path or group, an unknown format, a truncated file.
    """
    if "://" in path:
        from jitkit.stores.remote import open_remote

        with open_remote(path, group, options) as opened:
            yield opened
        return
    with _open_local(path, group) as opened:
        yield opened


@contextmanager
def _open_local(path: str, group: str | None) -> Iterator[Opened]:
    where = Path(path).expanduser()
    if not where.exists():
        raise DataError(f"{path}: no such file or folder; {CHECK_PATH}")
    if where.is_dir():
        with open_folder(where, group) as opened:
            yield opened
        return
    location = File(str(where.resolve()))
    with open_file(location, path, group) as opened:
        yield opened
