"""On-disk cache of results computed from data: JSON and arrays, one file per key.

The cache is $JITKIT_CACHE, or ~/.cache/jitkit. It may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def load_entry(kind: str, key: str) -> dict[str, Any] | None:
    """The entry that `save_entry` stored under a key; None if absent, corrupt or of another key.

    Args:
        kind: a folder of the cache, such as ``"statistics"``.
        key: identifies the entry.
    """
    path = _file(kind, key)
    if path is None:
        return None
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        head = json.loads(str(arrays.pop("head")))
        return head["metadata"] | arrays if head["key"] == key else None
    except Exception:  # any defect of the file is repaired by computing the entry again
        return None


def save_entry(kind: str, key: str, metadata: Mapping[str, Any]) -> None:
    """Store metadata, JSON with numpy arrays among its values, for `load_entry`.

    Files are written under a temporary name and renamed, so several processes may save at once.
    If the cache cannot be written, nothing is stored.
    """
    path = _file(kind, key)
    if path is None:
        return
    arrays = {name: value for name, value in metadata.items() if isinstance(value, np.ndarray)}
    plain = {name: value for name, value in metadata.items() if name not in arrays}
    arrays["head"] = np.array(json.dumps({"key": key, "metadata": plain}))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    except OSError:
        return
    try:
        with open(descriptor, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        os.replace(temporary, path)
    except OSError:
        Path(temporary).unlink(missing_ok=True)


def _file(kind: str, key: str) -> Path | None:
    """The file of a key; None if the user has no home directory."""
    requested = os.environ.get("JITKIT_CACHE")
    try:
        folder = Path(requested).expanduser() if requested else Path.home() / ".cache" / "jitkit"
    except RuntimeError:
        return None
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", key):  # not usable as a file name
        key = hashlib.sha256(key.encode()).hexdigest()
    return folder / kind / f"{key}.npz"
