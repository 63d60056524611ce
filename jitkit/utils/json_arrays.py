"""JSON-like metadata with numpy arrays: separate the arrays, insert them again, compare."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jitkit.utils.types import Array


def without_arrays(metadata: Any, at: str = "") -> tuple[Any, dict[str, Array]]:
    """Metadata as plain data, and its numpy arrays by their path.

    >>> without_arrays({"mean": np.zeros(2), "names": ["a"]})
    ({'mean': {'$array': '/mean'}, 'names': ['a']}, {'/mean': array([0., 0.])})
    """
    if isinstance(metadata, np.ndarray):
        return {"$array": at}, {at: np.array(metadata, order="C")}
    if not isinstance(metadata, Mapping | list | tuple):
        return metadata, {}
    entries = metadata.items() if isinstance(metadata, Mapping) else enumerate(metadata)
    parts = {key: without_arrays(value, f"{at}/{key}") for key, value in entries}
    arrays = {path: array for _, own in parts.values() for path, array in own.items()}
    plain = {key: value for key, (value, _) in parts.items()}
    return plain if isinstance(metadata, Mapping) else type(metadata)(plain.values()), arrays


def with_arrays(metadata: Any, arrays: Mapping[str, Array]) -> Any:
    """Undo `without_arrays`."""
    if isinstance(metadata, Mapping):
        if metadata.keys() == {"$array"}:
            return arrays[metadata["$array"]]
        return {key: with_arrays(value, arrays) for key, value in metadata.items()}
    return (
        [with_arrays(value, arrays) for value in metadata]
        if isinstance(metadata, list)
        else metadata
    )


def changes(old: Any, new: Any) -> list[str]:
    """Differences of two metadata, as ``"levels.0: 500 -> 850"``; arrays are shown by shape."""
    return [f"{path}: {_brief(a)} -> {_brief(b)}" for path, a, b in unequal(old, new)]


def _brief(value: Any) -> str:
    return f"array {value.shape}" if isinstance(value, np.ndarray) else json.dumps(value)


def unequal(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Differences of two metadata, as (path, old, new)."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict(old) | dict(new):
            inner = f"{path}.{key}" if path else str(key)
            yield from unequal(old.get(key), new.get(key), inner)
    elif isinstance(old, np.ndarray) or isinstance(new, np.ndarray):
        a, b = np.asarray(old), np.asarray(new)
        if a.dtype != b.dtype or not np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
            yield path, old, new
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from unequal(one, other, f"{path}.{i}")
    elif json.dumps(old) != json.dumps(new):
        yield path, old, new
