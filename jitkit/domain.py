"""What the core asks of a kind of data, and how it finds the adapters that are installed.

An adapter is found by its entry point in the group ``jitkit.domains``; nothing is imported before
a recipe names it. Loading an adapter must not load torch, so that a mistake in a recipe is
answered in the first second: heavy libraries belong inside the methods that need them.
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
"""A score: samples and real items of the training split, in native form, to one number.

Which number is the best one, a measure may say by an attribute ``best`` (see `Best`).
"""

Best = Literal["low", "high", "real"]
"""Which value of a score is the best: the lowest, the highest, or that of real held-out items."""


class Domain(Protocol):
    """A kind of data: files, units and libraries stay behind it.

    An item is one datum in the form its field uses, in physical units (a picture, an xarray
    dataset, a structure). A domain must survive pickling, since workers read and encode.

    One that is given in Python may be made from anything; what a recipe names is an `Installed`.
    Where a domain has an attribute ``section``, the section that it was made from, a run keeps it
    in its recipe.
    """

    @property
    def layout(self) -> Layout:
        """Axes and channels of every sample."""

    @property
    def conditions(self) -> Mapping[str, Condition]:
        """What a model may be told, by name; empty for unconditional data."""

    def metadata(self) -> dict[str, Any]:
        """What was found in the data and is needed to decode samples.

        Plain data for JSON in which numpy arrays may stand anywhere; they are kept as tensors.
        """

    def items(self, split: Split) -> Sequence[Any]:
        """The items of a split, in an order that never changes, read when they are asked for.

        Asking for one may raise `BadItem`; training passes over it and reports its name. A sequence
        that is more than a list may say so, see `abilities`.
        """

    def encode(self, item: Any, rng: np.random.Generator | None = None) -> Field:
        """An item as numbers of about unit variance; with ``rng``, randomly augmented."""

    def decode(self, field: Field) -> Any:
        """Undo `encode`, up to the rounding that the adapter states.

        Values of a sample may lie on a GPU. Its ``cond`` holds every condition; one that it was not
        told is class ``n`` of a category, NaN of numbers.
        """

    def write(self, items: Iterable[Any], path: Path) -> list[Path]:
        """Write items into folder ``path`` in the files that the field uses; return the files.

        Items are made as they are asked for, so a file written early survives a stop.
        """

    def preview(self, items: Sequence[Any]) -> Image:
        """A picture of items, side by side."""

    def scores(self) -> Mapping[str, Metric]:
        """The domain's measures, by name."""


class Installed(Domain, Protocol):
    """A domain that an entry point leads to: it is made from section ``domain`` of a recipe."""

    Section: ClassVar[type[DomainSection]]
    """The keys of the recipe's section ``domain``."""

    def __init__(self, section: Any, metadata: Mapping[str, Any] | None = None) -> None:
        """Open the data that ``section`` names, or stand without them on ``metadata``.

        Args:
            section: an instance of ``Section``.
            metadata: what `metadata` returned when a model was trained; with it neither the data
                nor their path is needed until `items` is called.

        Raises:
            DataError: without metadata, where the data are missing or unlike what the section says;
                the text says what to fetch and which key points elsewhere.
        """


def installed() -> dict[str, EntryPoint]:
    """The adapters that are installed, by name, none of them imported."""
    found = sorted(entry_points(group="jitkit.domains"), key=lambda point: point.name)
    return {point.name: point for point in found}


def domain_class(name: str) -> type[Installed]:
    """The adapter of a name.

    Raises:
        RecipeError: no adapter of that name is installed.
    """
    points = installed()
    if name not in points:
        raise RecipeError(f"no domain {name!r}; installed: {listed(points)}{nearest(name, points)}")
    cls: type[Installed] = points[name].load()
    return cls


def is_installed(cls: type[Domain], name: str) -> bool:
    """Whether a class is the installed adapter of a name."""
    return name in installed() and domain_class(name) is cls


def open_domain(section: DomainSection) -> Domain:
    """The adapter that a recipe's section ``domain`` names, its data found.

    Raises:
        RecipeError: no adapter of that name is installed.
        DataError: the data are missing or unlike what the section says.
    """
    domain = domain_class(section.name)(section)
    check_has_items(domain, section.name)
    return domain


def check_has_items(domain: Domain, name: str) -> None:
    """Whether there is anything to train on.

    Raises:
        DataError: there is not.
    """
    if not len(domain.items("train")):
        raise DataError(f"domain {name!r}: the training split has no items")


def check_instance(domain: object) -> None:
    """Whether a domain that is given in Python was made, and is not the class of one.

    Raises:
        RecipeError: it is the class.
    """
    if isinstance(domain, type):
        raise RecipeError(
            f"domain={domain.__name__} is the class; give a domain that was made from it: "
            f"domain={domain.__name__}(...)"
        )


def section_of(domain: object) -> DomainSection | None:
    """The section that a domain says it was made from; None where it says none."""
    section = getattr(domain, "section", None)
    return section if isinstance(section, DomainSection) else None


def lower_is_better(measure: Metric) -> Metric:
    """Say of a measure that its lowest value is the best one, and not that of real items."""
    measure.best = "low"  # type: ignore[attr-defined]
    return measure
