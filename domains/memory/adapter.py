"""Domain `memory`: arrays in memory or in a torch Dataset; made by `jitkit.from_arrays`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field as Limit

from jitkit.domain import MAX_PREVIEW_ITEMS, Domain, Metric, Split, write_npz
from jitkit.domains.arrays import Sample, Statistics, make_axes
from jitkit.domains.memory.sources import (
    ArraySource,
    DatasetSource,
    ItemSource,
    MemoryItems,
    blocks_of,
)
from jitkit.errors import BadItem, ConditionError, DataError, JitkitError, listed
from jitkit.fields import Category, Condition, Field, Grid, Kind, Layout, PerToken, Scalars
from jitkit.sections import DomainSection
from jitkit.utils.console import bar
from jitkit.utils.types import Array

if TYPE_CHECKING:
    from PIL.Image import Image

SPLIT_SEED = 0


class MemorySection(DomainSection):
    """Section ``domain`` of a run on arrays in memory, written by `jitkit.from_arrays`."""

    free_to_change: ClassVar[tuple[str, ...]] = ()

    axes: dict[str, Literal["line", "circle", "set"]] | None = None
    """Names and kinds of the axes."""
    channels: list[str] | None = None
    """Names of the channels; None without a channel axis."""
    val_fraction: Annotated[float, Limit(ge=0, lt=1)] = 0.1
    """Share of the items held out for validation."""
    shuffle: bool = True
    """Validation items are drawn at random with a fixed seed; else they are the last ones."""
    drop: Annotated[float, Limit(ge=0, lt=1)] = 0.1
    """Share of conditions dropped in training, as classifier-free guidance (CFG) needs."""


def from_arrays(
    x: Any,
    cond: Mapping[str, Any] | str | Sequence[str] | None = None,
    axes: Sequence[Kind] | Mapping[str, Kind] | None = None,
    *,
    channels: Sequence[str] | None = None,
    val_fraction: float = 0.1,
    shuffle: bool = True,
    drop: float = 0.1,
) -> MemoryArrays:
    """A domain of arrays in memory: ``jitkit.train(recipe, domain=from_arrays(x, axes=["line"]))``.

    Mean and standard deviation of each channel are measured on the training split. Cells that are
    NaN are missing. Samples have the units and the dtype of ``x``; they are written as
    ``samples.npz`` with the names used here. A trained model needs the arrays only to train on or
    to be scored.

    Args:
        x: items, numpy or torch, (N, X1..Xn) or with a channel axis (N, C, X1..Xn); or a
            `torch.utils.data.Dataset` of arrays, of pairs or tuples (array, condition, ...), or of
            mappings with the array as ``x``. A Dataset is read item by item and must return the
            same item each time.
        cond: conditions by name, each with N entries: integers or words (N,) are a category;
            floats (N,) or (N, K) are scalars, NaN where unknown; floats (N, C, X1..Xn) are maps;
            integers (N, X1..Xn) are a category in each cell. Of a Dataset: the names of the
            conditions in its tuples, ``"label"`` by default.
        axes: kind of each of X1..Xn, ``"line"``, ``"circle"`` (periodic) or ``"set"`` (without
            order), or a mapping from names to kinds; may be left out if x is (N, X1).
        channels: names of the channels.
        val_fraction: share of the items held out for validation.
        shuffle: whether these are drawn at random, with a fixed seed; for items in order of time
            set False, which takes the last ones.
        drop: share of each condition dropped in training, for classifier-free guidance.

    Raises:
        JitkitError: shapes that do not fit together, or values that are not real numbers.
    """
    is_dataset = not hasattr(x, "shape") and hasattr(x, "__getitem__") and hasattr(x, "__len__")
    if is_dataset:
        source: ItemSource = DatasetSource(x, cond)
    else:
        source = ArraySource(x, cond)
    shape = source[0][0].shape
    kinds = _named_axes(axes, shape)
    has_channels = len(shape) == len(kinds) + 1
    names = list(channels) if channels is not None else None
    if has_channels and names is None:
        names = [f"channel {i}" for i in range(shape[0])]
    if names is not None and (not has_channels or len(names) != shape[0]):
        raise JitkitError(f"channels: {len(names)} names for items of shape {shape}")
    section = MemorySection(
        name="memory",
        axes=kinds,
        channels=names,
        val_fraction=val_fraction,
        shuffle=shuffle,
        drop=drop,
    )
    domain = MemoryArrays(section)
    domain.source = source
    return domain


class MemoryArrays(Domain):
    """Arrays in memory, from `jitkit.from_arrays` in Python."""

    Section: ClassVar[type[DomainSection]] = MemorySection
    section: MemorySection
    in_memory = True

    def __init__(self, section: MemorySection) -> None:
        super().__init__(section)
        self.source: ItemSource | None = None

    def measure(self) -> dict[str, Any]:
        """Sizes, dtype and statistics of the values; kinds and statistics of the conditions.

        Raises:
            DataError: items differ in shape; infinite values, or a channel without variance.
        """
        items = self.items("train")
        assert self.source is not None
        gathered: dict[str, list[Array]] = {}

        def blocks() -> Iterator[Array]:
            with bar("measuring the training split", len(items), unit="items") as show:
                for count, block in blocks_of(items):
                    for item in block:
                        for name, value in item.cond.items():
                            gathered.setdefault(name, []).append(np.asarray(value))
                    show(count)
                    yield np.stack([item.values for item in block])

        channels = self.section.channels or ["value"]
        statistics = Statistics.measure(blocks(), channels)
        grid = items[0].values.shape[1:]
        return {
            "grid": list(grid),
            "dtype": str(items[0].values.dtype),
            "statistics": statistics.metadata(),
            "conditions": {
                name: _describe(name, self.source.all_of(name, values), grid)
                for name, values in gathered.items()
            },
        }

    @cached_property
    def statistics(self) -> Statistics:
        """Statistics of the channels."""
        return Statistics.from_metadata(self.metadata()["statistics"])

    @cached_property
    def _of_conditions(self) -> dict[str, Statistics]:
        """Statistics of scalars and maps by name."""
        return {
            name: Statistics.from_metadata(about["statistics"])
            for name, about in self.metadata()["conditions"].items()
            if "statistics" in about
        }

    @cached_property
    def layout(self) -> Layout:
        """The axes, with a patch for at most 512 tokens; masked if cells are missing."""
        assert self.section.axes is not None
        axes = make_axes(self.section.axes, self.metadata()["grid"], ("", 1))
        missing = bool((self.statistics.missing > 0).any())
        return Layout(tuple(axes), self.statistics.channels, missing)

    @cached_property
    def conditions(self) -> Mapping[str, Condition]:
        """The conditions by name, with their kind as found in the data."""
        found: dict[str, Condition] = {}
        for name, about in self.metadata()["conditions"].items():
            match about["kind"]:
                case "category":
                    found[name] = Category(len(about["classes"]), self.section.drop)
                case "scalars":
                    found[name] = Scalars(_channels(about), self.section.drop)
                case "grid":
                    found[name] = Grid(_channels(about), self.section.drop)
                case _:
                    found[name] = PerToken(about["n"], self.section.drop)
        return found

    def items(self, split: Split) -> Sequence[Sample]:
        """The items of a split in order; values (C, X1..Xn).

        Raises:
            DataError: the domain is that of a trained model, which has no data.
        """
        if self.source is None:
            raise DataError(
                "the data of this model were arrays in memory, which a run does not keep; give "
                "them again in Python: domain=jitkit.from_arrays(...)"
            )
        count = len(self.source)
        num_val = round(self.section.val_fraction * count)
        order = np.arange(count)
        if self.section.shuffle:
            order = np.random.default_rng(SPLIT_SEED).permutation(count)
        chosen = order[: count - num_val] if split == "train" else order[count - num_val :]
        return MemoryItems(self.source, np.sort(chosen), self.section.channels is not None)

    def encode(self, item: Sample, rng: np.random.Generator | None = None) -> Field:
        """Standardized values, a mask where cells may be missing, conditions.

        Raises:
            BadItem: infinite values, missing cells where the training split has none, a class that
                it does not have.
        """
        import torch

        values = self.statistics.encode(item.values)
        known = np.isfinite(values)
        if np.isinf(values).any():
            raise BadItem(item.name, "infinite values")
        if not known.all() and not self.layout.missing:
            raise BadItem(
                item.name,
                f"{(~known).sum()} of {known.size} cells are missing, but none are in the training "
                "split",
            )
        try:
            cond = {name: self._tensor(name, item.cond.get(name)) for name in self.conditions}
        except ConditionError as error:
            raise BadItem(item.name, str(error)) from error
        mask = torch.from_numpy(known) if self.layout.missing else None
        return Field(torch.from_numpy(values), mask, cond)

    def decode(self, field: Field) -> Sample:
        """Undo `encode`: the units and the dtype of the data; whole numbers are rounded."""
        values = self.statistics.decode(field.values.detach().float().cpu().numpy())
        if field.mask is not None:
            values[~np.broadcast_to(field.mask.cpu().numpy(), values.shape)] = np.nan
        cond = {name: self._decoded(name, value) for name, value in field.cond.items()}
        return Sample(_cast(values, np.dtype(self.metadata()["dtype"])), cond)

    def encode_condition(self, name: str, value: Any) -> Any:
        """A class by its name or number in the data as an index; numbers standardized."""
        about = self.metadata()["conditions"].get(name)
        if value is None or about is None or about["kind"] == "per_token":
            return value
        if about["kind"] == "category":
            classes = {str(label): i for i, label in enumerate(about["classes"])}
            if str(value) not in classes:
                raise ConditionError(
                    f"condition {name}={value!r}: no such class; classes are {listed(classes)}"
                )
            return classes[str(value)]
        return _by_channel(about, value, self._of_conditions[name].encode)

    def _tensor(self, name: str, value: Any) -> Any:
        """A condition of an item as the network gets it."""
        import torch

        return torch.as_tensor(self.encode_condition(name, value))

    def _decoded(self, name: str, value: Any) -> Any:
        """Undo `encode_condition`; None for the null class."""
        about = self.metadata()["conditions"][name]
        array = np.asarray(value.cpu() if hasattr(value, "cpu") else value)
        match about["kind"]:
            case "category":
                index = int(array)
                return about["classes"][index] if index < len(about["classes"]) else None
            case "per_token":
                return array
        decoded = _by_channel(about, array, self._of_conditions[name].decode)
        return float(decoded[0]) if about["single"] else decoded

    def write(self, items: Iterable[Sample], path: Path) -> list[Path]:
        """Write ``samples.npz``: ``x`` and the conditions, as they were given to `from_arrays`.

        A condition that some item lacks is left out.
        """
        items = list(items)
        names = [
            name
            for name in self.conditions
            if all(item.cond.get(name) is not None for item in items)
        ]
        without_channels = self.section.channels is None
        rows = (
            {"x": item.values[0] if without_channels else item.values}
            | {name: item.cond[name] for name in names}
            for item in items
        )
        return [write_npz(rows, path)]

    def preview(self, items: Sequence[Sample]) -> Image:
        """Real items (left, if the data are available) and these items (right)."""
        from jitkit.plots.panels import panels

        return panels(
            [item.values for item in items[:MAX_PREVIEW_ITEMS]],
            [item.values for item in self.real_items(len(items))],
            channels=self.layout.channels,
            axes=[(axis.name, axis.kind) for axis in self.layout.axes],
        )

    def scores(self) -> Mapping[str, Metric]:
        """Distributions, spectra and correlations of samples against the training items; none if an
        axis is a set."""
        from jitkit.metrics.fields.scores import field_metrics

        axes = [(axis.name, axis.kind) for axis in self.layout.axes]
        return {} if "set" in dict(axes).values() else field_metrics(self.layout.channels, axes)


def _named_axes(axes: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    """Names and kinds of the axes of an item of this shape."""
    if axes is None and len(shape) == 1:
        axes = ["line"]
    if axes is None:
        raise JitkitError(
            f"axes: items have shape {shape}; give the kind of each axis behind the channels, such "
            f"as axes={['line'] * (len(shape) - 1)} for {shape[0]} channels, or "
            f"{['line'] * len(shape)} for one"
        )
    kinds = dict(axes) if isinstance(axes, Mapping) else {}
    if not kinds:
        axes = [axes] if isinstance(axes, str) else list(axes)
        kinds = {f"axis {i}": kind for i, kind in enumerate(axes, 1)}
    if wrong := [kind for kind in kinds.values() if kind not in ("line", "circle", "set")]:
        raise JitkitError(f"axes: kind {wrong[0]!r} is not line, circle or set")
    if len(shape) - len(kinds) not in (0, 1):
        raise JitkitError(
            f"axes: {len(kinds)} kinds ({listed(kinds.values())}) for items of shape {shape}; give "
            f"{len(shape)}, or {len(shape) - 1} if the first is the channels"
        )
    return kinds


def _describe(name: str, values: Array, grid: tuple[int, ...]) -> dict[str, Any]:
    """Kind of a condition and what is needed to encode it, from its values (N, ...).

    Raises:
        JitkitError: no kind has this shape and type.
    """
    shape, kind = values.shape[1:], values.dtype.kind
    if kind in "iubUS" and shape == ():
        return {"kind": "category", "classes": np.unique(values).tolist()}
    if kind in "iu" and shape == grid:
        if values.min() < 0:
            raise JitkitError(f"cond {name!r}: a category in each cell counts from 0")
        return {"kind": "per_token", "n": int(values.max()) + 1}
    if kind == "f" and len(shape) <= 1:
        rows, what = values.reshape(len(values), -1, 1), "scalars"
    elif kind == "f" and shape[1:] == grid:
        rows, what = values, "grid"
    else:
        cells = ", ".join(map(str, grid))
        raise JitkitError(
            f"cond {name!r} has shape {values.shape} of {values.dtype}; expected integers or words "
            f"(N,), floats (N,) or (N, K), floats (N, C, {cells}), or integers (N, {cells})"
        )
    count = rows.shape[1]
    channels = [name] if count == 1 else [f"{name} {i}" for i in range(count)]
    statistics = Statistics.measure([rows], channels)
    return {
        "kind": what,
        "statistics": statistics.metadata(),
        "single": shape == (),
        "num_axes": len(grid),
    }


def _channels(about: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(about["statistics"]["channels"])


def _by_channel(about: Mapping[str, Any], value: Any, change: Callable[[Array], Array]) -> Array:
    """Encode or decode scalars (..., K) or maps (..., C, X1..Xn)."""
    axis = -1 if about["kind"] == "scalars" else -1 - about["num_axes"]
    array = np.moveaxis(np.atleast_1d(np.asarray(value, np.float64)), axis, 0)
    return np.moveaxis(change(array), 0, axis)


def _cast(values: Array, dtype: Any) -> Array:
    """Decoded values in the dtype of the data; whole numbers are rounded and clipped."""
    if dtype.kind == "b":
        return values > 0.5
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return np.rint(values).clip(limits.min, limits.max).astype(dtype)
    return values.astype(dtype)
