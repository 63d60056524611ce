"""Protocol of a domain (a kind of data), and lookup of installed adapters by entry point.

Adapters are found by their entry points in the group ``jitkit.domains`` and imported only when a
recipe names them. Importing an adapter must not import torch, so that errors in a recipe are
reported within a second: import heavy libraries inside the methods that need them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from jitkit.errors import DataError, RecipeError, listed, nearest
from jitkit.fields import Condition, Field, Layout
from jitkit.sections import DomainSection

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

Split = Literal["train", "val"]

Metric = Callable[[Sequence[Any], Sequence[Any]], float]
"""A metric: samples and real items of the training split, in native form, to one value.

An optional attribute ``best`` states which value is best (see `Best`).
"""

Best = Literal["low", "high", "real"]
"""Which value of a metric is best: the lowest, the highest, or that of real held-out items."""


class Domain(Protocol):
    """A kind of data; encapsulates its files, units and libraries.

    An item is one sample in the native form of its field, in physical units (an image, an xarray
    dataset, a structure). Domains must be picklable, because workers read and encode.

    A domain passed in Python may be constructed in any way; a recipe names an `Installed` one.
    If a domain has an attribute ``section`` (the section it was created from), the run keeps it in
    its recipe.
    """

    @property
    def layout(self) -> Layout:
        """Axes and channels of every sample."""

    @property
    def conditions(self) -> Mapping[str, Condition]:
        """Conditions of a model by name; empty for unconditional data."""

    def metadata(self) -> dict[str, Any]:
        """What was measured on the data and is needed to decode samples.

        JSON-compatible data that may contain numpy arrays anywhere; these are stored as tensors.
        """

    def items(self, split: Split) -> Sequence[Any]:
        """The items of a split in a fixed order, read on access.

        Indexing may raise `BadItem`; training skips the item and reports its name. For optional
        protocols of the sequence see `jitkit.protocols`.
        """

    def encode(self, item: Any, rng: np.random.Generator | None = None) -> Field:
        """An item as values of about unit variance; with ``rng``, randomly augmented."""

    def decode(self, field: Field) -> Any:
        """Invert `encode`, up to the rounding that the adapter documents.

        Values of a sample may be on a GPU. ``cond`` holds every condition; an unset condition is
        class ``n`` of a category, NaN for numbers.
        """

    def write(self, items: Iterable[Any], path: Path) -> list[Path]:
        """Write items into folder ``path`` in the file format of the field; return the files.

        Items are generated lazily, so files written early survive an interruption.
        """

    def preview(self, items: Sequence[Any]) -> Image:
        """An image that shows items side by side."""

    def scores(self) -> Mapping[str, Metric]:
        """The domain's metrics by name."""


class Installed(Domain, Protocol):
    """A domain with an entry point, created from section ``domain`` of a recipe."""

    Section: ClassVar[type[DomainSection]]
    """The keys of the recipe's section ``domain``."""

    def __init__(self, section: Any, metadata: Mapping[str, Any] | None = None) -> None:
        """Open the data named by ``section``, or use ``metadata`` in their place.

        Args:
            section: an instance of ``Section``.
            metadata: result of `metadata` when a model was trained; with it neither the data nor
                their path is needed until `items` is called.

        Raises:
            DataError: without metadata, if the data are missing or inconsistent with the section;
                the text names what to download and the key that sets the path.
        """


def installed() -> dict[str, EntryPoint]:
    """Entry points of the installed adapters by name; none is imported."""
    points = sorted(entry_points(group="jitkit.domains"), key=lambda point: point.name)
    return {point.name: point for point in points}


def domain_class(name: str) -> type[Installed]:
    """The adapter class of a name.

    Raises:
        RecipeError: no adapter of that name is installed.
    """
    points = installed()
    if name not in points:
        raise RecipeError(f"no domain {name!r}; installed: {listed(points)}{nearest(name, points)}")
    cls: type[Installed] = points[name].load()
    return cls


def is_installed(cls: type[Domain], name: str) -> bool:
    """Whether a class is the installed adapter of that name."""
    return name in installed() and domain_class(name) is cls


def open_domain(section: DomainSection) -> Domain:
    """Create the domain of a recipe's section ``domain`` and open its data.

    Raises:
        RecipeError: no adapter of that name is installed.
        DataError: the data are missing or inconsistent with the section.
    """
    domain = domain_class(section.name)(section)
    check_has_items(domain, section.name)
    return domain


def check_has_items(domain: Domain, name: str) -> None:
    """Check that the training split has items.

    Raises:
        DataError: it has none.
    """
    if not len(domain.items("train")):
        raise DataError(f"domain {name!r}: the training split has no items")


def check_instance(domain: object) -> None:
    """Check that a domain passed in Python is an instance, not a class.

    Raises:
        RecipeError: it is a class.
    """
    if isinstance(domain, type):
        raise RecipeError(
            f"domain={domain.__name__} is a class; pass an instance of it: "
            f"domain={domain.__name__}(...)"
        )


def section_of(domain: object) -> DomainSection | None:
    """The section that a domain was created from; None if it has none."""
    section = getattr(domain, "section", None)
    return section if isinstance(section, DomainSection) else None


def lower_is_better(metric: Metric) -> Metric:
    """Mark a metric whose best value is the lowest one, rather than that of real items."""
    metric.best = "low"  # type: ignore[attr-defined]
    return metric
