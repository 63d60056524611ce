"""Files that are never half there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A place beside ``path`` to write a file to; it takes its name when the block ends well.

    The folder is made where it is not there. What a block that fails has written is left beside.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    yield aside
    aside.replace(path)


def flush(path: Path) -> None:
    """Bring a file or a folder's entries to the disk itself."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
