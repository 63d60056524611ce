"""Base class of a domain, the adapter of a kind of data.

Importing an adapter must not import torch, so that errors in a recipe are reported within a
second: import heavy libraries inside the methods that need them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from jitkit.errors import BadItem, DataError, JitkitError
from jitkit.fields import Condition, Field, Layout
from jitkit.metrics.metric import Best, Metric, lower_is_better
from jitkit.sections import DomainSection
from jitkit.utils.atomic import atomic_write

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

__all__ = ["Best", "Domain", "Metric", "Split", "lower_is_better"]

Split = Literal["train", "val"]

MAX_PREVIEW_ITEMS = 4


class Domain(ABC):
    """A kind of data; encapsulates its files, units and libraries.

    An item is one sample in the native form of its field, in physical units (an image, an xarray
    dataset, a structure). Required are `layout`, `items`, `encode` and `decode`; everything else
    has a default. Optional abilities are base classes in `jitkit.protocols`.

    A domain that a recipe names is created as ``cls(section)``, and for a trained model by
    `from_metadata`. A domain passed in Python may be constructed in any way. Domains must be
    picklable, because workers read and encode.
    """

    Section: ClassVar[type[DomainSection]] = DomainSection
    """The keys of the recipe's section ``domain``."""

    section: DomainSection | None = None
    """The section that this domain was created from; a run keeps it in its recipe."""

    in_memory: ClassVar[bool] = False
    """Whether the data are given in Python, so that the section alone cannot open them."""

    _metadata: dict[str, Any] | None = None

    def __init__(self, section: Any = None) -> None:
        """Keep the section, an instance of ``Section``; data are read later, by `items`."""
        self.section = section

    @classmethod
    def from_metadata(cls, section: Any, metadata: Mapping[str, Any]) -> Self:
        """The domain of a trained model, which decodes samples without the data.

        Args:
            section: an instance of ``Section``.
            metadata: result of `metadata` when the model was trained; `measure` is not called.
        """
        domain = cls(section)
        domain._metadata = dict(metadata)
        return domain

    @cached_property
    def layout(self) -> Layout:
        """Axes and channels of every sample."""
        raise JitkitError(
            f"{type(self).__name__} has no layout; set layout = Layout(axes, channels) in the "
            "class, or self.layout in __init__"
        )

    @cached_property
    def conditions(self) -> Mapping[str, Condition]:
        """Conditions of a model by name; empty for unconditional data."""
        return {}

    def metadata(self) -> dict[str, Any]:
        """What was measured on the training data and is needed to decode samples; see `measure`.

        Measured at the first call, unless the domain is that of a trained model.
        """
        if self._metadata is None:
            self._metadata = self.measure()
        return self._metadata

    def measure(self) -> dict[str, Any]:
        """Measure the metadata on the training data.

        Returns:
            JSON-compatible data that may contain numpy arrays anywhere; empty by default.
        """
        return {}

    @abstractmethod
    def items(self, split: Split) -> Sequence[Any]:
        """The items of a split in a fixed order, read on access.

        Indexing may raise `BadItem`; training skips the item and reports its name. For optional
        protocols of the sequence see `jitkit.protocols`.

        Raises:
            DataError: the data are missing or inconsistent with the section; the text names what
                to download and the key that sets the path.
        """

    @abstractmethod
    def encode(self, item: Any, rng: np.random.Generator | None = None) -> Field:
        """An item as values of about unit variance; with ``rng``, randomly augmented."""

    @abstractmethod
    def decode(self, field: Field) -> Any:
        """Invert `encode`, up to the rounding that the adapter documents.

        Values of a sample may be on a GPU. ``cond`` holds every condition; an unset condition is
        class ``n`` of a category, NaN for numbers.
        """

    def encode_condition(self, name: str, value: Any) -> Any:
        """A requested condition as in the result of `encode`; unchanged by default.

        Args:
            name: of the condition.
            value: a class as a number or a word, or numbers of any shape, in the domain's units.
        """
        return value

    def write(self, items: Iterable[Any], path: Path) -> list[Path]:
        """Write items into folder ``path`` in the file format of the field; return the files.

        Items are generated lazily, so files written early survive an interruption. By default one
        file ``samples.npz``: items are arrays (``x``), or mappings, dataclasses or named tuples of
        arrays (an array for each entry), stacked along a first axis.

        Raises:
            JitkitError: items are not of this kind, or their shapes differ.
        """
        return [write_npz(items, path)]

    def preview(self, items: Sequence[Any]) -> Image:
        """An image that shows items; by default encoded values, beside those of real items."""
        from jitkit.plots.panels import panels

        return panels(
            [_observed_values(self.encode(item)) for item in items[:MAX_PREVIEW_ITEMS]],
            [_observed_values(self.encode(item)) for item in self.real_items(len(items))],
            channels=self.layout.channels,
            axes=[(axis.name, axis.kind) for axis in self.layout.axes],
        )

    def scores(self) -> Mapping[str, Metric]:
        """The domain's metrics by name; none by default."""
        return {}

    def real_items(self, count: int) -> list[Any]:
        """A few evenly spaced validation items (training items if there are none) for a figure.

        Empty if the data are not available.
        """
        try:
            items = self.items("val")
            items = items if len(items) else self.items("train")
        except DataError:
            return []
        count = min(count, MAX_PREVIEW_ITEMS, len(items))
        real = []
        for i in range(count):
            with suppress(BadItem):
                real.append(items[i * len(items) // count])
        return real


def write_npz(items: Iterable[Any], path: Path) -> Path:
    """Write items into ``samples.npz`` in folder ``path``, see `Domain.write`."""
    import numpy as np

    columns: dict[str, list[Any]] = {}
    for item in items:
        for name, value in _entries(item).items():
            columns.setdefault(name, []).append(_plain(value))
    try:
        arrays: dict[str, Any] = {name: np.stack(values) for name, values in columns.items()}
        if wrong := [name for name, array in arrays.items() if array.dtype == object]:
            raise ValueError(f"{wrong[0]!r} is not an array")
    except ValueError as error:
        raise JitkitError(
            f"items cannot be stacked into samples.npz: {error}; define the method write of the "
            "domain"
        ) from None
    path.mkdir(parents=True, exist_ok=True)
    file = path / "samples.npz"
    with atomic_write(file) as aside, aside.open("wb") as out:
        np.savez(out, **arrays)
    return file


def _plain(value: Any) -> Any:
    """A value as a numpy array; a tensor may be on a GPU."""
    import numpy as np

    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)


def _observed_values(field: Field) -> Any:
    """Encoded values, NaN where there are no data, (C, X1..Xn)."""
    values = field.values.float()
    return (values if field.mask is None else values.where(field.mask, float("nan"))).numpy()


def _entries(item: Any) -> Mapping[str, Any]:
    """The arrays of an item by name."""
    if isinstance(item, Mapping):
        return {str(name): value for name, value in item.items()}
    if is_dataclass(item):
        return {field.name: getattr(item, field.name) for field in fields(item)}
    if isinstance(item, tuple) and hasattr(item, "_asdict"):
        return dict(item._asdict())
    return {"x": item}
