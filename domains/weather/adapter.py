"""Domain `weather`: states, autoregressive forecasts and downscaling of fields on the globe.

stores ── `open`: dimensions, channels, forcings as a `DerivedStore` ── domain `arrays`: statistics,
items, loader ── states or changes ── Field

domain: {name: weather, path: gs://weatherbench2/..., task: forecast, lead: 24h,
         variables: {2m_temperature: null, geopotential: [500, 850]}}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from jitkit.domain import Metric, Split
from jitkit.domains.arrays import ArrayItems, Arrays, Data, Sample, part_of_time, write_items
from jitkit.domains.weather.derived import solar_forcing
from jitkit.domains.weather.forecasts import Forecasts, recorded
from jitkit.domains.weather.metadata import WeatherMetadata, measure_weather
from jitkit.domains.weather.open import OpenedWeather as Opened
from jitkit.domains.weather.open import open_weather
from jitkit.domains.weather.section import WeatherSection
from jitkit.domains.weather.states import States
from jitkit.domains.weather.timedelta import duration
from jitkit.errors import BadItem, DataError, RecipeError, listed
from jitkit.fields import Condition, Field, Layout
from jitkit.protocols import Autoregressive, Fetchable, RolloutFunction, VerifiesForecasts, Weighted
from jitkit.sections import DomainSection
from jitkit.utils.types import Array

if TYPE_CHECKING:
    from PIL.Image import Image

    from jitkit.domains.arrays import DownloadRequest


class Weather(Weighted, Autoregressive, VerifiesForecasts, Fetchable):
    """Weather and ocean fields: states, forecasts from past states, downscaling."""

    Section: ClassVar[type[DomainSection]] = WeatherSection
    section: WeatherSection

    def __init__(self, section: WeatherSection) -> None:
        super().__init__(section)
        self._opened: Opened | None = None

    @classmethod
    def from_metadata(cls, section: WeatherSection, metadata: Mapping[str, Any]) -> Self:
        """The domain of a trained model.

        Raises:
            RecipeError: the section contradicts the metadata.
            DataError: metadata of another version.
        """
        domain = super().from_metadata(section, metadata)
        domain.fitted.check(section)
        domain._arrays.fitted  # noqa: B018  # raises
        return domain

    @cached_property
    def _arrays(self) -> Arrays:
        """Domain `arrays` on the derived store: statistics, items, files."""
        if self._metadata is None:
            return Arrays(self.section, self._data)
        return Arrays.from_metadata(self.section, self._metadata["arrays"], self._data)

    @cached_property
    def fitted(self) -> WeatherMetadata:
        """Everything that a model needs from the data, made from `metadata`."""
        return WeatherMetadata(self.metadata())

    @cached_property
    def layout(self) -> Layout:
        """Latitude and longitude, or the grid's own axes; one channel for each level."""
        return self._arrays.layout

    @cached_property
    def conditions(self) -> Mapping[str, Condition]:
        """static; past (forecast); grids: maps of forcings, coarse fields; scalars."""
        return self._arrays.conditions

    @cached_property
    def weights(self) -> Array | None:
        """Area weights of the cells with a mean of 1, (y, x); None where all are equal."""
        return self.fitted.weights

    def measure(self) -> dict[str, Any]:
        """Statistics, coordinates, areas, and what an autoregressive forecast needs."""
        arrays = self._arrays
        return measure_weather(self.opened(), arrays.metadata(), arrays.fitted.statistics)

    def items(self, split: Split) -> ArrayItems:
        """States in order of time; for a forecast the states to predict, with past states in cond.

        Raises:
            DataError: a model was loaded and the data are not those of its recipe.
        """
        return self._arrays.items(split)

    def encode(self, item: Sample, rng: np.random.Generator | None = None) -> Field:
        """Normalized states, or changes from the last state; a mask where cells may be missing.

        Raises:
            BadItem: cells are infinite, or missing although the layout has no missing cells.
        """
        import torch

        field, change = self._arrays.encode(item, rng), self.fitted.change
        if change is None:
            return field
        last = field.cond["past"][-len(field.values) :]
        values = torch.from_numpy(change.encode(field.values.numpy(), last.numpy()))
        known = values.isfinite()
        if field.mask is None and not known.all():
            missing = int((~known).sum())
            raise BadItem(item.name, f"{missing} cells of the state before it are missing")
        return Field(values, None if field.mask is None else known, field.cond)

    def decode(self, field: Field) -> Sample:
        """Undo `encode`: a state in physical units, float32, exact up to rounding.

        Raises:
            DataError: a change without the state it is relative to.
        """
        import torch

        change = self.fitted.change
        if change is None:
            return self._arrays.decode(field)
        values = field.values.detach().float().cpu().numpy()
        last = np.asarray(field.cond["past"], np.float32)[-len(values) :]
        if np.isnan(last).all():
            raise DataError(
                "this model samples changes and needs the state before as a condition; take one "
                "from the data: --cond-from val:0-15"
            )
        state = torch.from_numpy(change.decode(values, last))
        return self._arrays.decode(Field(state, field.mask, field.cond))

    def write(self, items: Iterable[Sample], path: Path) -> list[Path]:
        """Write ``samples.nc`` or .zarr, in the format of the data: dimensions sample, level, grid;
        NaN at levels of a variable that the recipe does not use."""
        known = self.fitted
        parts = [*known.columns(), *self._arrays.fitted.condition_columns()]
        return write_items(items, path, known.output(), parts)

    def preview(self, items: Sequence[Sample]) -> Image:
        """Real states on the left, where the data are available, and these items on the right."""
        return self._arrays.preview(items)

    def scores(self) -> Mapping[str, Metric]:
        """Distributions, spectra and correlations of samples against the training items."""
        return self._arrays.scores()

    # What others read

    def states(self) -> States:
        """The states of the data in order of time.

        Raises:
            DataError: the data are missing, or not those of the model.
        """
        self._arrays.data()
        if len(self.opened().data.plan.sample) > 1:
            raise DataError(
                f"the data have {listed(self.opened().data.plan.sample[1:])} besides time; choose "
                "one entry with domain.select, so that states are a sequence in time"
            )
        inputs = self.section.inputs if self.section.task == "forecast" else 1
        return States(self.opened(), inputs=inputs)

    def start_name(self, position: int) -> str:
        """The name that `init_times` uses for the state at a position."""
        return self._states.name(position)

    def download_requests(self) -> list[DownloadRequest]:
        """The entries of each store that both splits read."""
        from jitkit.domains.weather.read_plan import weather_reads

        self._arrays.data()
        return weather_reads(self.opened())

    def fetch(self, folder: Path) -> list[str]:
        """Copy what the recipe reads into a folder; returns overrides that point a recipe to it."""
        from jitkit.domains.arrays import copy_data

        return copy_data(self, folder, threads=self.items("train").threads)

    def verify(self, roll_out: RolloutFunction, folder: Path, *, seed: int) -> Mapping[str, Any]:
        """Forecast ensembles from held-out initial times, score and plot them."""
        from jitkit.domains.weather.verify import verify_model

        return verify_model(
            self.states(),
            self.section.verify,
            roll_out,
            folder,
            layout=self.layout,
            weights=self.weights,
            metadata=self.metadata(),
            seed=seed,
        )

    # Autoregressive forecasts

    @property
    def is_sequence(self) -> bool:
        """Whether the task is to forecast."""
        return self.section.task == "forecast"

    def init_times(self, words: Sequence[str]) -> Sequence[str]:
        """Initial times by name, see `States.named`.

        Raises:
            JitkitError: text that is no time, or times that are not in the data.
        """
        return self._states.named(words)

    def steps(self, lead: str) -> int:
        """Number of states of a forecast of this length, such as ``10d``.

        Raises:
            RecipeError: it is not a multiple of the model's step.
        """
        return duration(lead, "--lead").in_steps(self.fitted.seconds, "--lead")

    def history(self, start: str) -> Sequence[Sample]:
        """The states up to an initial time, oldest first, as many as condition the model.

        Raises:
            DataError: cells are missing that never were missing in training.
        """
        states = self._states
        position = states.position(start)
        back = [states.after(position, -k) for k in range(states.inputs - 1, -1, -1)]
        found = {states.name(at): states.read(at) for at in back if at is not None}
        for name, values in found.items():
            self._check_missing(name, values)
        return [Sample(values) for values in found.values()]

    def _check_missing(self, name: str, values: Array) -> None:
        arrays = self._arrays.fitted
        new = ~np.isfinite(values)
        if arrays.never_observed is not None:
            new &= ~arrays.never_observed
        if arrays.layout.missing:
            new[arrays.statistics.sometimes_missing()] = False
        counts = {c: int(n) for c, n in zip(arrays.layout.channels, new.sum((1, 2)), strict=True)}
        if missing := [f"{n} cell{'s' * (n > 1)} of {c}" for c, n in counts.items() if n]:
            raise DataError(
                f"in the state of {name} {listed(missing)} have no value, which never happened in "
                "training; start at another time, or fill them in the data"
            )

    def conditioning(self, start: str, step: int, states: Sequence[Sample]) -> Field:
        """Past states, forcings at the predicted time, static maps, and the mask of data.

        Cells that training never observed are masked, such as land in a model of the sea.
        """
        import torch

        arrays, shape = self._arrays.fitted, states[-1].values.shape
        time = self._states.time(self._states.position(start), step)
        cond: dict[str, Any] = {"past": np.concatenate([state.values for state in states])}
        cond |= self._forced(np.array([time]))
        mask = None
        if arrays.layout.missing:
            never = arrays.never_observed
            mask = torch.ones(shape, dtype=torch.bool)
            if never is not None:
                mask &= torch.from_numpy(~never)
        encoded = arrays.encode_conditions(Sample(states[-1].values, cond))
        return Field(torch.zeros(shape), mask, encoded)

    def _forced(self, times: Array) -> dict[str, Any]:
        """Forcings at one time, in the form of an item."""
        known = self.fitted
        found: dict[str, Any] = {}
        if known.metadata["maps"]:
            assert known.positions is not None
            maps = [
                solar_forcing(name, times, *known.positions)[0] for name in known.metadata["maps"]
            ]
            found["grids"] = np.stack(maps)
        for part in known.metadata["numbers"]:
            found[f"{known.time}.{part}"] = float(part_of_time(times, part)[0])
        return found

    def forecasts(
        self,
        path: Path,
        starts: Sequence[str],
        members: int,
        steps: int,
        record: Mapping[str, Any],
    ) -> Forecasts:
        """A Zarr store of forecasts, see `forecasts`."""
        states, known = self._states, self.fitted
        positions = [states.position(name) for name in starts]
        valid = [[states.time(at, step) for step in range(1, steps + 1)] for at in positions]
        return Forecasts(
            path,
            known.frame(),
            dict(zip(starts, states.times[positions], strict=True)),
            np.array(valid),
            np.arange(1, steps + 1) * known.seconds,
            members,
            record,
        )

    def recorded(self, path: Path) -> Mapping[str, Any] | None:
        """How the forecasts of a store were made; None where there are none.

        Raises:
            RecipeError: the path does not exist and is no name of a Zarr store.
        """
        if path.suffix not in ("", ".zarr") and not path.exists():
            raise RecipeError(
                f"{path}: forecasts are written as a Zarr store; name it {path.stem}.zarr "
                "(xarray converts it to NetCDF: open_zarr, then to_netcdf)"
            )
        return recorded(path)

    @cached_property
    def _states(self) -> States:
        return self.states()

    # The data

    def opened(self) -> Opened:
        """The data, opened.

        Raises:
            DataError: they are missing, or differ from what the section describes.
        """
        if self._opened is None:
            opened = open_weather(self.section)
            if self._metadata is not None:
                self.fitted.check_data(opened)
            self._opened = opened
        return self._opened

    def _data(self) -> Data:
        return self.opened().data
