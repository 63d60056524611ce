"""Arrays domain: the adapter for Zarr, NetCDF, HDF5 and NumPy files, without code.

store ── plan: axes, channels, sample dimensions ── splits ── Sample (C, X1..Xn), physical units
Sample ── statistics of the training split ── Field ── model ── Field ── Sample ── file

domain: {name: arrays, path: sst.nc, axes: {latitude: line, longitude: circle}}
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from jitkit.domain import MAX_PREVIEW_ITEMS, Metric, Split
from jitkit.domains.arrays import conditions
from jitkit.domains.arrays.data import (
    ARRAYS_FORMAT,
    Data,
    check_transforms,
    measure_metadata,
    open_data,
)
from jitkit.domains.arrays.grid_check import check_grid_and_units
from jitkit.domains.arrays.items import ArrayItems, Sample
from jitkit.domains.arrays.normalize.statistics import Statistics
from jitkit.domains.arrays.output import Column, category_column, output_columns, scalar_column
from jitkit.domains.arrays.plan import make_axes
from jitkit.domains.arrays.section import ArraysSection
from jitkit.domains.arrays.write import write_items
from jitkit.errors import BadItem, DataError, listed
from jitkit.fields import Category, Condition, Field, Grid, Layout, Scalars
from jitkit.protocols import Fetchable, Inspects
from jitkit.sections import DomainSection
from jitkit.utils.types import Array

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

    from jitkit.stores.download import DownloadRequest


class Arrays(Fetchable, Inspects):
    """Arrays on a grid of one to four axes, from files that xarray, zarr or numpy can read."""

    Section: ClassVar[type[DomainSection]] = ArraysSection

    section: Any

    def __init__(self, section: Any, opener: Callable[[], Data] | None = None) -> None:
        """Keep the section; the data are opened when they are needed.

        Args:
            section: an `ArraysSection`, or that of another adapter that gives an ``opener``.
            opener: opens the data for another adapter; must be picklable.
        """
        super().__init__(section)
        self._opener = opener or partial(open_data, section)
        self._data: Data | None = None

    @classmethod
    def from_metadata(
        cls,
        section: Any,
        metadata: Mapping[str, Any],
        opener: Callable[[], Data] | None = None,
    ) -> Self:
        """The domain of a trained model; with an ``opener`` as in the constructor.

        Raises:
            DataError: metadata of another version.
        """
        domain = cls(section, opener)
        domain._metadata = dict(metadata)
        domain.fitted  # noqa: B018  # raises
        return domain

    @staticmethod
    def inspect(
        path: str, *, group: str | None = None, options: Mapping[str, Any] | None = None
    ) -> Any:
        """Scan data and propose a recipe for them, see `inspect.proposal.Proposal`."""
        from jitkit.domains.arrays.inspect.inspection import inspect_arrays

        return inspect_arrays(path, group=group, options=options)

    @cached_property
    def layout(self) -> Layout:
        """Axes and channels, with a patch for at most 512 tokens; measures the training split if
        needed, to know whether cells are missing."""
        return self.fitted.layout

    @cached_property
    def conditions(self) -> Mapping[str, Condition]:
        """static, grids, past (maps), scalars, and the categories by name."""
        return self.fitted.conditions

    def measure(self) -> dict[str, Any]:
        """Axes, statistics, coordinates, attributes; reads the training split once."""
        return measure_metadata(self.data())

    def items(self, split: Split) -> ArrayItems:
        """Items in the order of the data; the last sample dimension varies fastest.

        Raises:
            DataError: the data do not fit the loaded model's metadata.
        """
        return self.data().items(split)

    def encode(self, item: Sample, rng: np.random.Generator | None = None) -> Field:
        """Transformed and normalized values, a mask where cells may be missing, conditions.

        Raises:
            BadItem: cells are missing although the layout has none missing, or are infinite.
        """
        import torch

        fitted = self.fitted
        try:
            values = torch.from_numpy(fitted.statistics.encode(item.values))
        except DataError as error:  # a value outside the transform's domain
            raise BadItem(item.name, str(error)) from error
        observed = values.isfinite()
        missing = observed.numel() - int(observed.sum())
        if missing and bool(values.isinf().any()):
            raise BadItem(item.name, "infinite values")
        if missing and not fitted.layout.missing:
            raise BadItem(
                item.name,
                f"{missing} of {observed.numel()} cells are missing, but none were in the "
                "statistics of the training split; for such data set domain.missing: true",
            )
        mask = observed if fitted.layout.missing else None
        return Field(values, mask, fitted.encode_conditions(item))

    def decode(self, field: Field) -> Sample:
        """Undo `encode`: physical units, float32, exact up to its rounding.

        NaN where the mask is False, and in cells that were never observed in training.
        """
        fitted = self.fitted
        values = fitted.statistics.decode(field.values.detach().float().cpu().numpy())
        if field.mask is not None:
            values[~np.broadcast_to(field.mask.cpu().numpy(), values.shape)] = np.nan
        if fitted.never_observed is not None:
            values[np.broadcast_to(fitted.never_observed, values.shape)] = np.nan
        return Sample(values, fitted.decode_conditions(field.cond))

    def write(self, items: Iterable[Sample], path: Path) -> list[Path]:
        """Write ``samples.nc``, .zarr, .h5, .npy or .npz, in the format of the data, with their
        coordinates, attributes and types; dimensions are ``sample`` and those of an item."""
        fitted = self.fitted
        metadata = fitted.metadata
        spec = {key: metadata[key] for key in ("axes", "missing")} | metadata["output"]
        columns = output_columns(spec, fitted.condition_columns())
        return write_items(items, path, spec, columns)

    def preview(self, items: Sequence[Sample]) -> Image:
        """Figure of real items (left, if the data are available) and these items (right)."""
        from jitkit.plots.panels import panels

        fitted = self.fitted
        coords, units = fitted.coordinates()
        return panels(
            [item.values for item in items[:MAX_PREVIEW_ITEMS]],
            [item.values for item in self.real_items(len(items))],
            channels=fitted.layout.channels,
            axes=[(axis.name, axis.kind) for axis in fitted.layout.axes],
            units=fitted.units(),
            coords=coords,
            coord_units=units,
            most_items=MAX_PREVIEW_ITEMS,
        )

    def scores(self) -> Mapping[str, Metric]:
        """Distributions, spectra and correlations of samples against the training items."""
        from jitkit.metrics.fields.scores import field_metrics

        layout = self.fitted.layout
        return field_metrics(layout.channels, [(axis.name, axis.kind) for axis in layout.axes])

    def download_requests(self) -> list[DownloadRequest]:
        """The parts of its store that the recipe reads."""
        from jitkit.domains.arrays.read_plan import download_requests

        return download_requests(self.data())

    def fetch(self, folder: Path) -> list[str]:
        """Copy what the recipe reads, see `jitkit.protocols.Fetchable`."""
        from jitkit.domains.arrays.read_plan import copy_data

        return copy_data(self, folder, threads=self.data().items("train").threads)

    def data(self) -> Data:
        """The data, opened.

        Raises:
            DataError: they do not exist, or do not fit the model's metadata.
        """
        if self._data is None:
            data = self._opener()
            check_transforms(data)
            if self._metadata is not None:
                self.fitted.check(data)
            self._data = data
        return self._data

    @cached_property
    def fitted(self) -> ArraysMetadata:
        """Everything that a model needs from the data, made from `metadata`."""
        return ArraysMetadata(self.section.drop, self.metadata())


class ArraysMetadata:
    """Layout, conditions and statistics of a model, made from metadata without the data."""

    def __init__(self, drop: Callable[[str], float], metadata: Mapping[str, Any]) -> None:
        if metadata.get("format") != ARRAYS_FORMAT:
            raise DataError(
                f"metadata of format {metadata.get('format')!r}, but this version reads "
                f"{ARRAYS_FORMAT}; train again, or use the version that trained the model"
            )
        self.metadata = metadata
        self.statistics = Statistics.from_metadata(metadata["statistics"])
        kinds = {axis["name"]: axis["kind"] for axis in metadata["axes"]}
        grid = [axis["size"] for axis in metadata["axes"]]
        axes = make_axes(kinds, grid, ("", 1))  # they include the window's axis
        self.layout = Layout(tuple(axes), tuple(metadata["channels"]), metadata["missing"])
        self.scalars, self.categories = conditions.from_metadata(metadata)
        self.grids = (
            None if metadata["grids"] is None else Statistics.from_metadata(metadata["grids"])
        )
        self.static, static_channels = self._static()
        maps: dict[str, Sequence[str]] = {
            "static": static_channels,
            "grids": () if self.grids is None else self.grids.channels,
            "past": conditions.past_channels(self.layout.channels, metadata["past"]),
        }
        by_name: dict[str, Condition] = {
            name: Grid(tuple(channels), drop(name)) for name, channels in maps.items() if channels
        }
        if self.scalars:
            names = tuple(name for scalar in self.scalars for name in scalar.names)
            by_name["scalars"] = Scalars(names, drop("scalars"))
        for c in self.categories:
            by_name[c.name] = Category(len(c.classes), drop(c.name))
        self.conditions: Mapping[str, Condition] = by_name
        self.never_observed = self._never_observed()

    def _static(self) -> tuple[Array | None, tuple[str, ...]]:
        """Static maps, encoded, repeated along a window."""
        metadata = self.metadata["static"]
        if metadata is None:
            return None, ()
        statistics = Statistics.from_metadata(metadata["statistics"])
        values = statistics.encode(np.asarray(metadata["values"]))
        if self.metadata["window"] > 1:
            values = np.repeat(values[:, None], self.metadata["window"], axis=1)
        return values, statistics.channels

    def _never_observed(self) -> Array | None:
        """Cells never observed in training, (C, X1..Xn), broadcast along a window; None: none."""
        observed = self.statistics.observed
        if observed is None:
            return None
        return ~(observed[:, None] if self.metadata["window"] > 1 else observed)

    def check(self, data: Data) -> None:
        """Check that opened data have the axes, channels, coordinates and units of the metadata.

        Raises:
            DataError: they do not.
        """
        channels = [name for v in data.plan.variables for name in v.channels]
        grid = [axis["size"] for axis in self.metadata["axes"]][
            -len(data.plan.grid) or len(self.metadata["axes"]) :
        ]
        if channels != list(self.layout.channels) or grid != list(data.plan.grid):
            raise DataError(
                f"{data.store.path} has channels {listed(channels)} on a grid of "
                f"{list(data.plan.grid)}; the model was trained on {listed(self.layout.channels)} "
                f"on {grid}; domain.path points elsewhere"
            )
        check_grid_and_units(data, self.metadata)

    # Conditions

    def encode_conditions(self, item: Sample) -> dict[str, Any]:
        """Encoded conditions of an item; those it lacks are unknown (NaN, null class)."""
        import torch

        cond: dict[str, Any] = {}
        if self.static is not None:
            cond["static"] = torch.from_numpy(self.static)
        for name, statistics in self._maps():
            values = item.cond.get(name)
            if values is None:
                shape = (len(self.conditions[name].channels), *self.layout.grid)  # type: ignore[union-attr]
                cond[name] = torch.full(shape, torch.nan)
                continue
            parts = np.split(values, len(values) // len(statistics.channels))
            cond[name] = torch.from_numpy(np.concatenate([statistics.encode(p) for p in parts]))
        if self.scalars:
            scalars = [s.encode(float(item.cond.get(s.name, np.nan))) for s in self.scalars]
            cond["scalars"] = torch.tensor(np.concatenate(scalars), dtype=torch.float32)
        for c in self.categories:
            cond[c.name] = torch.tensor(c.encode(item.cond.get(c.name)))
        return cond

    def decode_conditions(self, cond: Mapping[str, Any]) -> dict[str, Any]:
        """Undo `encode_conditions`, without static maps."""
        decoded: dict[str, Any] = {}
        for name, statistics in self._maps():
            if name in cond:
                values = np.asarray(cond[name], np.float32)
                parts = np.split(values, len(values) // len(statistics.channels))
                decoded[name] = np.concatenate([statistics.decode(part) for part in parts])
        if "scalars" in cond and self.scalars:
            features = [float(x) for x in cond["scalars"]]
            for scalar in self.scalars:
                decoded[scalar.name] = scalar.decode(features[: len(scalar.names)])
                features = features[len(scalar.names) :]
        for c in self.categories:
            if c.name in cond:
                decoded[c.name] = c.decode(int(cond[c.name]))
        return decoded

    def _maps(self) -> list[tuple[str, Statistics]]:
        """Maps of an item, with the statistics that encode each step."""
        maps = [] if self.grids is None else [("grids", self.grids)]
        return [*maps, ("past", self.statistics)] if self.metadata["past"] else maps

    # Files and figures

    def condition_columns(self) -> list[Column]:
        """Variables of a sample file for scalar and categorical conditions."""
        return [scalar_column(s.name) for s in self.scalars] + [
            category_column(c.name, c.classes) for c in self.categories
        ]

    def units(self) -> dict[str, str]:
        """Units by channel, where known."""
        return {
            channel: str(v["attrs"]["units"])
            for v in self.metadata["output"]["variables"]
            for channel in v["channels"]
            if "units" in v["attrs"]
        }

    def coordinates(self) -> tuple[dict[str, Array], dict[str, str]]:
        """Numeric coordinates of the axes and two-dimensional ones, and the units of both."""
        names = [axis["name"] for axis in self.metadata["axes"]]
        coords, units = {}, {}
        for name, c in self.metadata["output"]["coords"].items():
            values, dims = np.asarray(c["values"]), list(c["dims"])
            if values.dtype.kind in "fiu" and (dims == [name] or dims == names[-2:]):
                if name in names or len(dims) == 2:
                    coords[name] = values
                    units[name] = str(c["attrs"].get("units", ""))
        return coords, units
