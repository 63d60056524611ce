"""Data paths: home folders, and ``package:NAME/FOLDER`` for data in an installed package."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from jitkit.errors import DataError

PREFIX = "package:"


def resolve_path(path: str) -> Path:
    """The path of data; ``package:NAME/FOLDER`` is looked up without importing the package.

    Raises:
        DataError: the package is not installed.
    """
    if not path.startswith(PREFIX):
        return Path(path).expanduser()
    name, _, inside = path[len(PREFIX) :].partition("/")
    spec = find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"{path}: package {name!r} is not installed: pip install --no-deps {name}")
    return Path(next(iter(spec.submodule_search_locations))) / inside
