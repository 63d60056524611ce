"""Fields of weather as a kind of data: states, forecasts, downscaling.

stores ── `opening`: dimensions, channels, forcings, a `View` of them ── domain arrays: statistics,
items, loader ── states or changes ── Field

domain: {name: weather, path: gs://weatherbench2/..., task: forecast, lead: 24h,
         variables: {2m_temperature: null, geopotential: [500, 850]}}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from jitkit.domain import Metric, Split
from jitkit.domains.arrays import ArrayItems, Arrays, Data, Sample, part_of_time, write_items
from jitkit.domains.weather.derived import sky
from jitkit.domains.weather.forecasts import Forecasts, recorded
from jitkit.domains.weather.metadata import WeatherMetadata, measure
from jitkit.domains.weather.open import OpenedWeather as Opened
from jitkit.domains.weather.open import open_weather
from jitkit.domains.weather.section import WeatherSection
from jitkit.domains.weather.states import States
from jitkit.domains.weather.timedelta import duration
from jitkit.errors import BadItem, DataError, RecipeError, listed
from jitkit.fields import Condition, Field, Layout
from jitkit.protocols import RollOutFunction
from jitkit.sections import DomainSection
from jitkit.utils.types import Array

if TYPE_CHECKING:
    from PIL.Image import Image

    from jitkit.domains.arrays import Read


class Weather:
    """Fields of weather and ocean: states, forecasts from past states, fine grids from coarse."""

    Section: ClassVar[type[DomainSection]] = WeatherSection

    def __init__(self, section: WeatherSection, metadata: Mapping[str, Any] | None = None) -> None:
        self.section = section
        self._opened: Opened | None = None
        self._cached: States | None = None
        self._known: WeatherMetadata | None = (
            None if metadata is None else WeatherMetadata(metadata)
        )
        if self._known is not None:
            self._known.check(section)
        arrays = None if metadata is None else metadata["arrays"]
        self._arrays = Arrays.of(section, self._data, section.drop, arrays)

    @property
    def layout(self) -> Layout:
        """Latitude and longitude, or what the grid's axes are; a channel for each level."""
        return self._arrays.layout

    @property
    def conditions(self) -> Mapping[str, Condition]:
        """static; past (forecast); grids: maps of forcings, coarse fields; scalars."""
        return self._arrays.conditions

    @property
    def weights(self) -> Array | None:
        """Areas of the cells with a mean of 1, (y, x); None where all count alike."""
        return self._learned().weights

    def metadata(self) -> dict[str, Any]:
        """Statistics, coordinates, areas, and what a roll-out must know."""
        return dict(self._learned().metadata)

    def items(self, split: Split) -> ArrayItems:
        """States in their order in time; for a forecast those to be predicted, the past in cond.

        Raises:
            DataError: where a model was loaded, and the data are not those of its recipe.
        """
        return self._arrays.items(split)

    def encode(self, item: Sample, rng: np.random.Generator | None = None) -> Field:
        """Normalized states, or changes from the last, a mask where cells may be missing.

        Raises:
            BadItem: cells are missing although the layout says that none are, or are infinite.
        """
        import torch

        field, change = self._arrays.encode(item, rng), self._learned().change
        if change is None:
            return field
        last = field.cond["past"][-len(field.values) :]
        values = torch.from_numpy(change.encode(field.values.numpy(), last.numpy()))
        known = values.isfinite()
        if field.mask is None and not known.all():
            lacking = int((~known).sum())
            raise BadItem(item.name, f"{lacking} cells of the state before it are missing")
        return Field(values, None if field.mask is None else known, field.cond)

    def decode(self, field: Field) -> Sample:
        """Undo `encode`: a state in physical units, float32, exact up to its rounding.

        Raises:
            DataError: a change without the state that it starts from.
        """
        import torch

        change = self._learned().change
        if change is None:
            return self._arrays.decode(field)
        values = field.values.detach().float().cpu().numpy()
        last = np.asarray(field.cond["past"], np.float32)[-len(values) :]
        if np.isnan(last).all():
            raise DataError(
                "this model samples changes, and no state is told that they start from; take one "
                "from the data: --cond-from val:0-15"
            )
        state = torch.from_numpy(change.decode(values, last))
        return self._arrays.decode(Field(state, field.mask, field.cond))

    def write(self, items: Iterable[Sample], path: Path) -> list[Path]:
        """Write ``samples.nc`` or .zarr, as the data came: dimensions sample, level, and the grid;
        NaN at levels that a variable was not asked for."""
        known = self._learned()
        parts = [*known.columns(), *self._arrays.known().columns()]
        return write_items(items, path, known.output(), parts)

    def preview(self, items: Sequence[Sample]) -> Image:
        """Real states on the left, where the data are at hand, and these on the right."""
        return self._arrays.preview(items)

    def scores(self) -> Mapping[str, Metric]:
        """Distributions, spectra and correlations of samples against the training items."""
        return self._arrays.scores()

    # What others read

    def states(self) -> States:
        """The states of the data in their order in time.

        Raises:
            DataError: the data are not there, or not those of the model.
        """
        self._arrays.data()
        if len(self.opened().data.plan.sample) > 1:
            raise DataError(
                f"the data have {listed(self.opened().data.plan.sample[1:])} beside time; choose "
                "one entry by domain.select, so that states follow one another"
            )
        inputs = self.section.inputs if self.section.task == "forecast" else 1
        return States(self.opened(), inputs=inputs)

    def start_name(self, position: int) -> str:
        """How `starts` names the state at a position."""
        return self._states().name(position)

    def reads(self) -> list[Read]:
        """What is read of the stores for both splits."""
        from jitkit.domains.weather.read_plan import reads

        self._arrays.data()
        return reads(self.opened())

    def fetch(self, folder: Path) -> list[str]:
        """Copy what the recipe reads into a folder; the overrides that point a recipe at it."""
        from jitkit.domains.arrays import copy_of

        return copy_of(self, folder, threads=self.items("train").threads)

    def verify(self, roll_out: RollOutFunction, folder: Path, *, seed: int) -> Mapping[str, Any]:
        """Roll out ensembles from held-out starts, score them and draw pictures."""
        from jitkit.domains.weather.verify import verify

        return verify(
            self.states(),
            self.section.verify,
            roll_out,
            folder,
            layout=self.layout,
            weights=self.weights,
            metadata=self.metadata(),
            seed=seed,
        )

    # A roll-out

    @property
    def is_sequence(self) -> bool:
        """Whether the task is to forecast."""
        return self.section.task == "forecast"

    def init_times(self, words: Sequence[str]) -> Sequence[str]:
        """Initial times by name, see `States.named`.

        Raises:
            JitkitError: words that cannot be meant, times that are not in the data.
        """
        return self._states().named(words)

    def steps(self, lead: str) -> int:
        """States of a forecast so long, as ``10d``.

        Raises:
            RecipeError: it is not a multiple of the model's step.
        """
        return duration(lead, "--lead").in_steps(self._learned().seconds, "--lead")

    def history(self, start: str) -> Sequence[Sample]:
        """The states up to an initial time, oldest first, as many as the model is told.

        Raises:
            DataError: cells are missing that never were in training.
        """
        states = self._states()
        position = states.position(start)
        back = [states.after(position, -k) for k in range(states.inputs - 1, -1, -1)]
        found = {states.name(at): states.read(at) for at in back if at is not None}
        for name, values in found.items():
            self._check_missing(name, values)
        return [Sample(values) for values in found.values()]

    def _check_missing(self, name: str, values: Array) -> None:
        arrays = self._arrays.known()
        new = ~np.isfinite(values)
        if arrays.never is not None:
            new &= ~arrays.never
        if arrays.layout.missing:
            new[arrays.statistics.sometimes_missing()] = False
        counts = {c: int(n) for c, n in zip(arrays.layout.channels, new.sum((1, 2)), strict=True)}
        if told := [f"{n} cell{'s' * (n > 1)} of {c}" for c, n in counts.items() if n]:
            raise DataError(
                f"in the state of {name} {listed(told)} lack values, which training never did; "
                "begin at another time, or fill them in the data"
            )

    def conditioning(self, start: str, step: int, states: Sequence[Sample]) -> Field:
        """Past states, forcings of the time that is predicted, static maps; where there are data.

        The mask leaves out cells that training never observed, such as land in a model of the sea.
        """
        import torch

        arrays, shape = self._arrays.known(), states[-1].values.shape
        time = self._states().time(self._states().position(start), step)
        cond: dict[str, Any] = {"past": np.concatenate([state.values for state in states])}
        cond |= self._forced(np.array([time]))
        mask = None
        if arrays.layout.missing:
            never = arrays.never
            mask = torch.ones(shape, dtype=torch.bool)
            if never is not None:
                mask &= torch.from_numpy(~never)
        told = arrays.encode_conditions(Sample(states[-1].values, cond))
        return Field(torch.zeros(shape), mask, told)

    def _forced(self, times: Array) -> dict[str, Any]:
        """Forcings at one time, as an item has them."""
        known = self._learned()
        found: dict[str, Any] = {}
        if known.metadata["maps"]:
            assert known.places is not None
            maps = [sky(name, times, *known.places)[0] for name in known.metadata["maps"]]
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
        states, known = self._states(), self._learned()
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
        """How the forecasts of a store were made; None where it is none.

        Raises:
            RecipeError: nothing is there yet, and the name is not that of a Zarr store.
        """
        if path.suffix not in ("", ".zarr") and not path.exists():
            raise RecipeError(
                f"{path}: forecasts are written as a Zarr store; name it {path.stem}.zarr (xarray "
                "makes NetCDF of it afterwards: open_zarr, then to_netcdf)"
            )
        return recorded(path)

    def _states(self) -> States:
        if self._cached is None:
            self._cached = self.states()
        return self._cached

    # The data

    def opened(self) -> Opened:
        """The data, opened.

        Raises:
            DataError: they are not there, or unlike what the section says.
        """
        if self._opened is None:
            opened = open_weather(self.section)
            if self._known is not None:
                self._known.check_data(opened)
            self._opened = opened
        return self._opened

    def _data(self) -> Data:
        return self.opened().data

    def _learned(self) -> WeatherMetadata:
        if self._known is None:
            arrays = self._arrays.known()
            self._known = WeatherMetadata(
                measure(self.opened(), self._arrays.metadata(), arrays.statistics)
            )
        return self._known
