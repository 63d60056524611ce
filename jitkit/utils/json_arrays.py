"""What a domain found in its data: plain data in which numpy arrays may stand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jitkit.utils.types import Array


def without_arrays(metadata: Any, at: str = "") -> tuple[Any, dict[str, Array]]:
    """Facts as plain data, and the numpy arrays that stood in them, by the place they stood at.

    >>> without_arrays({"mean": np.zeros(2), "names": ["a"]})
    ({'mean': {'$array': '/mean'}, 'names': ['a']}, {'/mean': array([0., 0.])})
    """
    if isinstance(metadata, np.ndarray):
        return {"$array": at}, {at: np.array(metadata, order="C")}
    if not isinstance(metadata, Mapping | list | tuple):
        return metadata, {}
    entries = metadata.items() if isinstance(metadata, Mapping) else enumerate(metadata)
    found = {key: without_arrays(value, f"{at}/{key}") for key, value in entries}
    arrays = {place: array for _, own in found.values() for place, array in own.items()}
    plain = {key: value for key, (value, _) in found.items()}
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
    """Where two metadata differ, as ``"levels.0: 500 -> 850"``; of arrays the shapes are told."""
    return [f"{path}: {_brief(a)} -> {_brief(b)}" for path, a, b in unequal(old, new)]


def _brief(value: Any) -> str:
    return f"array {value.shape}" if isinstance(value, np.ndarray) else json.dumps(value)


def unequal(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two metadata differ, as (place, old, new)."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict(old) | dict(new):
            place = f"{path}.{key}" if path else str(key)
            yield from unequal(old.get(key), new.get(key), place)
    elif isinstance(old, np.ndarray) or isinstance(new, np.ndarray):
        a, b = np.asarray(old), np.asarray(new)
        if a.dtype != b.dtype or not np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
            yield path, old, new
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from unequal(one, other, f"{path}.{i}")
    elif json.dumps(old) != json.dumps(new):
        yield path, old, new
