"""Open a path or an address: `opened`, for files, folders and object stores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jitkit.errors import DataError
from jitkit.stores.formats import opened_file, opened_folder
from jitkit.stores.locations import File
from jitkit.stores.opened import Opened

CHECK_PATH = "check the path (in a recipe it is domain.path)"


@contextmanager
def opened(path: str, group: str | None, options: Mapping[str, Any]) -> Iterator[Opened]:
    """The contents of one file or store.

    ``options`` are for addresses; on disk they say nothing, so that a recipe for a bucket reads a
    copy of it when its path alone is changed.

    Raises:
        DataError: nothing there, an unknown format, a group that is not there, a file cut short.
    """
    if "://" in path:
        from jitkit.stores.remote import opened_remote

        with opened_remote(path, group, options) as found:
            yield found
        return
    with _opened_local(path, group) as found:
        yield found


@contextmanager
def _opened_local(path: str, group: str | None) -> Iterator[Opened]:
    where = Path(path).expanduser()
    if not where.exists():
        raise DataError(f"{path}: no such file or folder; {CHECK_PATH}")
    if where.is_dir():
        with opened_folder(where, group) as found:
            yield found
        return
    place = File(str(where.resolve()))
    with opened_file(place, path, group) as found:
        yield found
