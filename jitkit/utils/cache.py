"""What was found out about data and need not be found out again: JSON and arrays, a file for a key.

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


def load(kind: str, key: str) -> dict[str, Any] | None:
    """What `save` kept under a key; None where it is not there, torn, or another's.

    Args:
        kind: a folder of the cache, such as ``"statistics"``.
        key: says what it is about.
    """
    path = _file(kind, key)
    if path is None:
        return None
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        head = json.loads(str(arrays.pop("head")))
        return head["metadata"] | arrays if head["key"] == key else None
    except Exception:  # whatever is wrong with a file, finding out again mends it
        return None


def save(kind: str, key: str, metadata: Mapping[str, Any]) -> None:
    """Keep metadata, JSON with numpy arrays among its values, until `load` asks for them.

    Files are written aside and renamed, so that several processes may save at once. Where the
    cache cannot be written nothing is kept.
    """
    path = _file(kind, key)
    if path is None:
        return
    arrays = {name: value for name, value in metadata.items() if isinstance(value, np.ndarray)}
    plain = {name: value for name, value in metadata.items() if name not in arrays}
    arrays["head"] = np.array(json.dumps({"key": key, "metadata": plain}))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        number, aside = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    except OSError:
        return
    try:
        with open(number, "wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        os.replace(aside, path)
    except OSError:
        Path(aside).unlink(missing_ok=True)


def _file(kind: str, key: str) -> Path | None:
    """The file of a key; None for a user without a home."""
    asked = os.environ.get("JITKIT_CACHE")
    try:
        folder = Path(asked).expanduser() if asked else Path.home() / ".cache" / "jitkit"
    except RuntimeError:
        return None
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", key):  # no name for a file
        key = hashlib.sha256(key.encode()).hexdigest()
    return folder / kind / f"{key}.npz"
