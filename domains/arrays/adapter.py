"""Any array file or store as a kind of data: Zarr, NetCDF, HDF5, NumPy, without code.

store ── plan: axes, channels, sample dimensions ── splits ── Sample (C, X1..Xn), physical units
Sample ── statistics of the training split ── Field ── model ── Field ── Sample ── file

domain: {name: arrays, path: sst.nc, axes: {latitude: line, longitude: circle}}
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from jitkit.domain import Metric, Split
from jitkit.domains.arrays import conditions as told
from jitkit.domains.arrays import write as arraywrite
from jitkit.domains.arrays.data import ARRAYS_FORMAT, Data, check_transforms, measure, open_data
from jitkit.domains.arrays.grid_check import check_agreement
from jitkit.domains.arrays.items import ArrayItems, Sample
from jitkit.domains.arrays.normalize.statistics import Statistics
from jitkit.domains.arrays.output import Column, class_column, columns, number_column
from jitkit.domains.arrays.plan import make_axes
from jitkit.domains.arrays.section import ArraysSection
from jitkit.errors import BadItem, DataError, listed
from jitkit.fields import Category, Condition, Field, Grid, Layout, Scalars
from jitkit.sections import DomainSection
from jitkit.utils.types import Array

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

    from jitkit.stores.download import DownloadRequest

MOST_IN_PREVIEW = 4


class Arrays:
    """Arrays on a grid of one to four axes, from files that xarray, zarr or numpy can read."""

    Section: ClassVar[type[DomainSection]] = ArraysSection

    def __init__(self, section: ArraysSection, metadata: Mapping[str, Any] | None = None) -> None:
        self.section: DomainSection = section
        self._begin(partial(open_data, section), section.drop, metadata)

    @classmethod
    def of(
        cls,
        section: DomainSection,
        opened: Callable[[], Data],
        drop: Callable[[str], float],
        metadata: Mapping[str, Any] | None = None,
    ) -> Arrays:
        """Arrays that another adapter finds.

        Args:
            section: what a recipe says.
            opened: opens the data; must survive pickling.
            drop: how often a condition is hidden in training, by its name.
            metadata: of a trained model, with which the data are not needed at first.
        """
        arrays = cls.__new__(cls)
        arrays.section = section
        arrays._begin(opened, drop, metadata)
        return arrays

    def _begin(
        self,
        opened: Callable[[], Data],
        drop: Callable[[str], float],
        metadata: Mapping[str, Any] | None,
    ) -> None:
        self._opened, self._drop = opened, drop
        self._data: Data | None = None
        self._known: ArraysMetadata | None = None
        if metadata is None:
            self.data()
        else:
            self._known = ArraysMetadata(drop, metadata)

    @staticmethod
    def inspect(
        path: str, *, group: str | None = None, options: Mapping[str, Any] | None = None
    ) -> Any:
        """Look at data and propose a recipe for them, see `inspection.Proposal`."""
        from jitkit.domains.arrays.inspect.inspection import inspect

        return inspect(path, group=group, options=options)

    @property
    def layout(self) -> Layout:
        """Axes and channels, with a patch for at most 512 tokens; may measure the training split,
        since it says whether cells are missing."""
        return self.known().layout

    @property
    def conditions(self) -> Mapping[str, Condition]:
        """static, grids, past (maps), scalars, and the categories by name."""
        return self.known().conditions

    def metadata(self) -> dict[str, Any]:
        """Axes, statistics, coordinates, attributes: JSON, and numpy arrays as leaves."""
        return dict(self.known().metadata)

    def items(self, split: Split) -> ArrayItems:
        """Items in the order of the data, the last sample dimension fastest.

        Raises:
            DataError: where a model was loaded, and the data are not those of its recipe.
        """
        return self.data().items(split)

    def encode(self, item: Sample, rng: np.random.Generator | None = None) -> Field:
        """Transformed and normalized values, a mask where cells may be missing, conditions.

        Raises:
            BadItem: cells are missing although the layout says that none are, or are infinite.
        """
        import torch

        known = self.known()
        try:
            values = torch.from_numpy(known.statistics.encode(item.values))
        except DataError as error:  # a value that a transform does not take
            raise BadItem(item.name, str(error)) from error
        observed = values.isfinite()
        lacking = observed.numel() - int(observed.sum())
        if lacking and bool(values.isinf().any()):
            raise BadItem(item.name, "infinite values")
        if lacking and not known.layout.missing:
            raise BadItem(
                item.name,
                f"{lacking} of {observed.numel()} cells are missing, and none were where the data "
                "were measured; domain.missing: true is for such data",
            )
        mask = observed if known.layout.missing else None
        return Field(values, mask, known.encode_conditions(item))

    def decode(self, field: Field) -> Sample:
        """Undo `encode`: physical units, float32, exact up to its rounding.

        NaN where the mask says that there are no data, and where training never observed any.
        """
        known = self.known()
        values = known.statistics.decode(field.values.detach().float().cpu().numpy())
        if field.mask is not None:
            values[~np.broadcast_to(field.mask.cpu().numpy(), values.shape)] = np.nan
        if known.never is not None:
            values[np.broadcast_to(known.never, values.shape)] = np.nan
        return Sample(values, known.decode_conditions(field.cond))

    def write(self, items: Iterable[Sample], path: Path) -> list[Path]:
        """Write ``samples.nc``, .zarr, .h5, .npy or .npz, as the data came, with their coordinates,
        attributes and types; dimensions are ``sample`` and those of an item."""
        known = self.known()
        spec = {key: known.metadata[key] for key in ("axes", "missing")} | known.metadata["output"]
        return arraywrite.write_items(items, path, spec, columns(spec, known.columns()))

    def preview(self, items: Sequence[Sample]) -> Image:
        """Real items on the left, where the data are at hand, and these on the right."""
        from jitkit.plots.panels import panels

        known = self.known()
        coords, units = known.coordinates()
        return panels(
            [item.values for item in items[:MOST_IN_PREVIEW]],
            self._real(min(len(items), MOST_IN_PREVIEW)),
            channels=known.layout.channels,
            axes=[(axis.name, axis.kind) for axis in known.layout.axes],
            units=known.units(),
            coords=coords,
            coord_units=units,
            most_items=MOST_IN_PREVIEW,
        )

    def scores(self) -> Mapping[str, Metric]:
        """Distributions, spectra and correlations of samples against the training items."""
        from jitkit.metrics.fields.scores import measures

        layout = self.known().layout
        return measures(layout.channels, [(axis.name, axis.kind) for axis in layout.axes])

    def reads(self) -> list[DownloadRequest]:
        """What the recipe reads of its store."""
        from jitkit.domains.arrays.read_plan import reads

        return reads(self.data())

    def fetch(self, folder: Path) -> list[str]:
        """Copy what the recipe reads, see `jitkit.abilities.Fetchable`."""
        from jitkit.domains.arrays.read_plan import copy_of

        return copy_of(self, folder, threads=self.data().items("train").threads)

    def _real(self, count: int) -> list[Array]:
        """Held-out items for a picture, evenly spread; none where the data are not at hand."""
        try:
            items: Sequence[Sample] = self.items("val") or self.items("train")
        except DataError:
            return []
        found = []
        for i in range(min(count, len(items))):
            try:
                found.append(items[i * len(items) // count].values)
            except BadItem:
                continue
        return found

    def data(self) -> Data:
        """The data, opened.

        Raises:
            DataError: they are not there, or not those that the model was trained on.
        """
        if self._data is None:
            self._data = self._opened()
            check_transforms(self._data)
            if self._known is not None:
                self._known.check(self._data)
        return self._data

    def known(self) -> ArraysMetadata:
        """What a model needs of the data; may measure the training split."""
        if self._known is None:
            self._known = ArraysMetadata(self._drop, measure(self.data()))
        return self._known


class ArraysMetadata:
    """What a model needs, made from metadata alone."""

    def __init__(self, drop: Callable[[str], float], metadata: Mapping[str, Any]) -> None:
        if metadata.get("format") != ARRAYS_FORMAT:
            raise DataError(
                f"metadata of format {metadata.get('format')!r}, but this version reads {ARRAYS_FORMAT}; "
                "train again, or sample with the version that trained"
            )
        self.metadata = metadata
        self.statistics = Statistics.from_facts(metadata["statistics"])
        kinds = {axis["name"]: axis["kind"] for axis in metadata["axes"]}
        grid = [axis["size"] for axis in metadata["axes"]]
        axes = make_axes(kinds, grid, ("", 1))  # the window's is among them already
        self.layout = Layout(tuple(axes), tuple(metadata["channels"]), metadata["missing"])
        self.numbers, self.classes = told.from_facts(metadata)
        self.grids = None if metadata["grids"] is None else Statistics.from_facts(metadata["grids"])
        self.static, static_channels = self._static()
        maps: dict[str, Sequence[str]] = {
            "static": static_channels,
            "grids": () if self.grids is None else self.grids.channels,
            "past": told.past_channels(self.layout.channels, metadata["past"]),
        }
        conditions: dict[str, Condition] = {
            name: Grid(tuple(channels), drop(name)) for name, channels in maps.items() if channels
        }
        if self.numbers:
            names = tuple(name for number in self.numbers for name in number.names)
            conditions["scalars"] = Scalars(names, drop("scalars"))
        for c in self.classes:
            conditions[c.name] = Category(len(c.classes), drop(c.name))
        self.conditions: Mapping[str, Condition] = conditions
        self.never = self._never()

    def _static(self) -> tuple[Array | None, tuple[str, ...]]:
        """Static maps, encoded, the same all along a window."""
        metadata = self.metadata["static"]
        if metadata is None:
            return None, ()
        statistics = Statistics.from_facts(metadata["statistics"])
        values = statistics.encode(np.asarray(metadata["values"]))
        if self.metadata["window"] > 1:
            values = np.repeat(values[:, None], self.metadata["window"], axis=1)
        return values, statistics.channels

    def _never(self) -> Array | None:
        """Cells that training never observed, (C, X1..Xn), to be broadcast along a window."""
        observed = self.statistics.observed
        if observed is None:
            return None
        return ~(observed[:, None] if self.metadata["window"] > 1 else observed)

    def check(self, data: Data) -> None:
        """Whether opened data have the axes, channels, coordinates and units of these metadata.

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
        check_agreement(data, self.metadata)

    # Conditions

    def encode_conditions(self, item: Sample) -> dict[str, Any]:
        """What an item is told, as the network takes it; unknown where the item does not say."""
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
        if self.numbers:
            numbers = [n.encode(float(item.cond.get(n.name, np.nan))) for n in self.numbers]
            cond["scalars"] = torch.tensor(np.concatenate(numbers), dtype=torch.float32)
        for c in self.classes:
            cond[c.name] = torch.tensor(c.encode(item.cond.get(c.name)))
        return cond

    def decode_conditions(self, cond: Mapping[str, Any]) -> dict[str, Any]:
        """Undo `encode_conditions`, static maps left out."""
        found: dict[str, Any] = {}
        for name, statistics in self._maps():
            if name in cond:
                values = np.asarray(cond[name], np.float32)
                parts = np.split(values, len(values) // len(statistics.channels))
                found[name] = np.concatenate([statistics.decode(part) for part in parts])
        if "scalars" in cond and self.numbers:
            said = [float(x) for x in cond["scalars"]]
            for number in self.numbers:
                found[number.name] = number.decode(said[: len(number.names)])
                said = said[len(number.names) :]
        for c in self.classes:
            if c.name in cond:
                found[c.name] = c.decode(int(cond[c.name]))
        return found

    def _maps(self) -> list[tuple[str, Statistics]]:
        """Maps that items bring along, and by what they are encoded, step by step."""
        found = [] if self.grids is None else [("grids", self.grids)]
        return [*found, ("past", self.statistics)] if self.metadata["past"] else found

    # Files and pictures

    def columns(self) -> list[Column]:
        """Variables of a file for numbers and classes that samples were told."""
        return [number_column(n.name) for n in self.numbers] + [
            class_column(c.name, c.classes) for c in self.classes
        ]

    def units(self) -> dict[str, str]:
        """Units of the channels that have them."""
        return {
            channel: str(v["attrs"]["units"])
            for v in self.metadata["output"]["variables"]
            for channel in v["channels"]
            if "units" in v["attrs"]
        }

    def coordinates(self) -> tuple[dict[str, Array], dict[str, str]]:
        """Numeric coordinates of the axes, and two-dimensional ones, and their units."""
        names = [axis["name"] for axis in self.metadata["axes"]]
        coords, units = {}, {}
        for name, c in self.metadata["output"]["coords"].items():
            values, dims = np.asarray(c["values"]), list(c["dims"])
            if values.dtype.kind in "fiu" and (dims == [name] or dims == names[-2:]):
                if name in names or len(dims) == 2:
                    coords[name] = values
                    units[name] = str(c["attrs"].get("units", ""))
        return coords, units
