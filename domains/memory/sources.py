"""Items in memory or in a torch Dataset, by index, with their conditions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any, Protocol

import numpy as np

from jitkit.domains.arrays import Sample
from jitkit.errors import DataError, JitkitError, listed
from jitkit.utils.types import Array

BLOCK_VALUES = 2**22  # values per block when measuring


class ItemSource(Protocol):
    """Items by index, as an array in the shape in which it was given and its conditions."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Array, dict[str, Any]]: ...

    def all_of(self, name: str, training: Sequence[Array]) -> Array:
        """All values of a condition that are known without reading, (N, ...)."""


class ArraySource:
    def __init__(self, x: Any, cond: Any) -> None:
        self._x = real_numbers("x", x)
        if self._x.ndim < 2 or not len(self._x):
            raise JitkitError(
                f"x has shape {self._x.shape}; expected items along a first axis: (N, X1..Xn) or "
                "(N, C, X1..Xn)"
            )
        if cond is not None and not isinstance(cond, Mapping):
            raise JitkitError('cond of arrays is a mapping from names to values: {"label": y}')
        self._cond = {name: to_numpy(value) for name, value in (cond or {}).items()}
        for name, value in self._cond.items():
            if len(np.shape(value)) < 1 or len(value) != len(self._x):
                raise JitkitError(
                    f"cond {name!r} has shape {np.shape(value)}, but there are {len(self._x)} items"
                )

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, index: int) -> tuple[Array, dict[str, Any]]:
        return self._x[index], {name: value[index] for name, value in self._cond.items()}

    def all_of(self, name: str, training: Sequence[Array]) -> Array:
        return self._cond[name]


class DatasetSource:
    def __init__(self, dataset: Any, names: Any) -> None:
        if isinstance(names, Mapping):
            raise JitkitError(
                "a Dataset returns its conditions with each item; give their names: "
                f"cond={list(names)}"
            )
        self._dataset = dataset
        self._names = [names] if isinstance(names, str) else list(names or ["label"])
        if not len(dataset):
            raise JitkitError("the Dataset has no items")

    def __len__(self) -> int:
        return len(self._dataset)

    def _item(self, index: int) -> dict[str, Any]:
        item = self._dataset[index]
        if isinstance(item, Mapping):
            if "x" not in item:
                raise JitkitError(
                    f"the Dataset returns mappings with {listed(map(str, item))}; the array must "
                    "be named 'x'"
                )
            return dict(item)
        if not isinstance(item, tuple | list):
            return {"x": item}
        if len(item) - 1 != len(self._names):
            raise JitkitError(
                f"the Dataset returns {len(item) - 1} conditions beside the array, but cond names "
                f"{len(self._names)}: {listed(self._names)}"
            )
        return {"x": item[0]} | dict(zip(self._names, item[1:], strict=True))

    def __getitem__(self, index: int) -> tuple[Array, dict[str, Any]]:
        item = self._item(index)
        x = real_numbers("x", item.pop("x"))
        return x, {name: to_numpy(value) for name, value in item.items()}

    def all_of(self, name: str, training: Sequence[Array]) -> Array:
        return np.stack(training)


class MemoryItems(Sequence[Sample]):
    """The items of a split."""

    def __init__(self, source: ItemSource, indices: Array, has_channels: bool) -> None:
        self._source, self._indices, self._has_channels = source, indices, has_channels

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        at = int(self._indices[index])
        values, cond = self._source[at]
        return Sample(values if self._has_channels else values[None], cond, name=str(at))


def blocks_of(items: Sequence[Sample]) -> Iterator[tuple[int, list[Sample]]]:
    """The items in blocks of at most `BLOCK_VALUES` values, and how many are in them so far.

    Raises:
        DataError: items differ in shape.
    """
    first = items[0].values.shape
    size = max(1, BLOCK_VALUES // prod(first))
    for start in range(0, len(items), size):
        block = [items[i] for i in range(start, min(start + size, len(items)))]
        for item in block:
            if item.values.shape != first:
                raise DataError(
                    f"item {item.name} has shape {item.values.shape}, the first has {first}; all "
                    "items must have one shape"
                )
        yield start + len(block), block


def real_numbers(what: str, value: Any) -> Array:
    array = to_numpy(value)
    if array.dtype.kind not in "fiub":
        remedy = "split it into real and imaginary channels" if array.dtype.kind == "c" else (
            "give an array of numbers of one shape"
        )  # fmt: skip
        raise JitkitError(f"{what} is {array.dtype}, not real numbers; {remedy}")
    return array


def to_numpy(value: Any) -> Array:
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
