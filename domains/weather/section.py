"""Section ``domain`` of a recipe for weather."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, model_validator
from pydantic import Field as Limit

from jitkit.domains.arrays import Drop, Selection, SplitsSection
from jitkit.domains.weather.timedelta import SECONDS, Duration, duration
from jitkit.errors import RecipeError, listed
from jitkit.sections import Count, DomainSection, Natural, Section

Task = Literal["unconditional", "forecast", "downscaling"]
DAY = SECONDS["d"]
Forcing = Literal["cos_zenith", "toa_radiation", "dayofyear", "hour"]


def _without_levels(variables: object) -> object:
    """A list of names as a mapping to None, which means all levels."""
    if isinstance(variables, list) and all(isinstance(name, str) for name in variables):
        return dict.fromkeys(variables)
    return variables


Variables = Annotated[dict[str, list[float] | None], BeforeValidator(_without_levels)]
"""Names, each with the requested levels; None means all levels."""


class CoarseSection(Section):
    """Key ``coarse``: the coarse fields that downscaling is conditioned on."""

    factor: Count | None = None
    """Fine cells along each side of a coarse cell, whose value is their area-weighted mean
    (conservative coarsening)."""
    path: str | None = None
    """A store of coarse fields, in place of ``factor``."""
    group: str | None = None
    """Group inside it."""
    options: dict[str, bool | int | float | str] = {}
    """For object stores, as ``domain.options``."""
    variables: Variables | None = None
    """Its variables; those of the fine grid by default."""

    @model_validator(mode="after")
    def _one_source(self) -> CoarseSection:
        if (self.factor is None) == (self.path is None):
            raise RecipeError("give coarse.factor to coarsen the fine grid, or coarse.path")
        if self.factor == 1:
            raise RecipeError("coarse.factor 1 coarsens nothing; take 2 or more")
        return self


class VerifySection(Section):
    """Key ``verify``: the forecasts that `jitkit evaluate` makes and scores."""

    lead: str = "10d"
    """Lead time of each forecast."""
    members: Count = 8
    """Ensemble members."""
    inits: Count = 16
    """Initial times, evenly spread over the held-out split."""
    forecasts: str | None = None
    """A file of `jitkit forecast` to score instead of new forecasts; its initial times, lead times
    and members are used."""
    learn_from: Count = 2_000
    """Training states that the baselines are fitted on, a random subset where there are more."""

    @model_validator(mode="after")
    def _meant(self) -> VerifySection:
        duration(self.lead, "verify.lead")
        return self


class WeatherSection(DomainSection):
    """Section ``domain`` of a recipe: weather (`name: weather`).

    Fields on a grid as a sequence in time, from WeatherBench 2, ARCO-ERA5, anemoi-datasets and CF
    files. Dimensions are recognised by their CF attributes or names.
    """

    free_to_change: ClassVar[tuple[str, ...]] = ("path", "threads", "verify")

    path: str | None = None
    """Zarr store (folder, .zip, gs://, s3://, https://), NetCDF file or a glob of files."""
    group: str | None = None
    """Group inside a Zarr store or an HDF5 file."""
    options: dict[str, bool | int | float | str] = {}
    """For object stores: `anonymous: true`, endpoint, region, allow_http."""
    task: Task = "unconditional"
    """`unconditional`: single states; `forecast`: the next state from past states, autoregressive;
    `downscaling`: a fine grid from a coarse one."""
    variables: Variables | None = None
    """Predicted variables with levels: `{2m_temperature: null, temperature: [500, 850]}`, or a list
    of names with all their levels; every variable on the grid by default."""
    accumulate: dict[str, str] = {}
    """Variables summed over a window that ends at the item's time: `{total_precipitation: 24h}`
    where the store has the amount of each step. Times with an incomplete window are left out."""
    lead: str | None = None
    """Forecast: time from one state to the next, `6h`; one step of the data by default."""
    inputs: Count = 1
    """Forecast: number of past states the model is conditioned on, one lead apart."""
    target: Literal["state", "change"] = "change"
    """Forecast: what the model samples, the next state or its change from the last state, each
    normalized by its own statistics. Files contain states in both cases."""
    coarse: CoarseSection | None = None
    """Downscaling: the coarse fields."""
    forcings: list[Forcing] = []
    """Forcings known for any time: maps of the cosine of the solar zenith angle (0 at night) and of
    top-of-atmosphere radiation (W/m2); sine and cosine of the day of the year and of the hour
    (UTC)."""
    static: list[str] = []
    """Static maps, variables or coordinates without time: orography, a land-sea mask, latitude."""
    every: str | None = None
    """Use only times of day that are multiples of this from midnight: `6h` of hourly data; a
    divisor of a day, or a number of steps, `8 steps`."""
    select: dict[str, Selection] = {}
    """Part of a dimension: `{latitude: {from: 30, to: 72}}`, or one member: `{number: [0]}`."""
    area_weights: bool = True
    """Weight cells in the loss by their area on the sphere, where latitudes are known."""
    condition_drop: Drop | dict[str, Drop] = 0.0
    """Probability of dropping a condition in training, which classifier-free guidance needs; one
    number, or one for each: past, static, grids (coarse fields and forcing maps), scalars (the
    other forcings)."""
    transforms: dict[str, str | dict[str, float]] = {}
    """Transform of a variable's or channel's values before normalization: none, sqrt, log1p, or
    `{log1p: 0.001}` for log(1 + x / 0.001)."""
    measure: Literal["auto", "all"] | Count = "auto"
    """Values of the training split used for statistics; auto is at most 2^33, evenly spread."""
    missing: Literal["auto"] | bool = "auto"
    """Whether cells may be missing (NaN), as over land; auto checks the training split."""
    val: Annotated[float, Limit(ge=0, lt=1)] = 0.1
    """Share held out for validation, at the end of the time axis."""
    gap: Natural = 0
    """Steps left out between training and validation."""
    splits: SplitsSection | None = None
    """Both splits by time, in place of `val`: `{train: {to: 2015}, val: {from: 2016}}`."""
    verify: VerifySection = VerifySection()
    """Forecast: the forecasts that `jitkit evaluate` scores."""
    buffer: str = "1GiB"
    """Memory for decoded chunks, in each reading process."""
    threads: Count | None = None
    """Reading threads in each process; by default 4 from disk, 16 from object stores."""

    @model_validator(mode="after")
    def _meant(self) -> WeatherSection:
        for key in ("lead", "every"):
            if (text := getattr(self, key)) is not None:
                duration(text, key)
        if self.every is not None:
            _divides_the_day(duration(self.every, "every"))
        for name, text in self.accumulate.items():
            duration(text, f"accumulate.{name}")
        if self.task == "downscaling" and self.coarse is None:
            raise RecipeError("task downscaling needs coarse.factor or coarse.path")
        if isinstance(self.condition_drop, dict):
            unknown = sorted(set(self.condition_drop) - set(self.condition_names))
            if unknown:
                raise RecipeError(
                    f"condition_drop: no condition {unknown[0]!r}; there are: "
                    f"{listed(self.condition_names) or 'none'}"
                )
        wrong = [key for key in _given(self) if _TASKS.get(key, self.task) != self.task]
        if wrong:
            task = _TASKS[wrong[0]]
            raise RecipeError(f"{wrong[0]} is for task: {task}, but task is {self.task}")
        return self

    @property
    def condition_names(self) -> list[str]:
        """Names of the conditions, in order."""
        maps = {"cos_zenith", "toa_radiation"} & set(self.forcings)
        there = {
            "static": bool(self.static),
            "grids": bool(maps) or self.coarse is not None,
            "past": self.task == "forecast",
            "scalars": bool(set(self.forcings) - maps),
        }
        return [name for name, is_there in there.items() if is_there]

    def drop(self, name: str) -> float:
        """Probability of dropping a condition in training."""
        if isinstance(self.condition_drop, dict):
            return self.condition_drop.get(name, 0.0)
        return self.condition_drop


def _divides_the_day(every: Duration) -> None:
    """Times are counted from midnight, so other lengths would select other hours each day."""
    if every.unit != "steps" and DAY % every.seconds:
        raise RecipeError(
            f"every: {every} does not divide a day; hours are counted from midnight: use 1h, "
            "2h, 3h, 4h, 6h, 8h, 12h or 24h, or a number of steps of the data such as '8 steps'"
        )


_TASKS: dict[str, Task] = {
    "lead": "forecast",
    "inputs": "forecast",
    "target": "forecast",
    "verify": "forecast",
    "coarse": "downscaling",
}
"""Keys of one task only."""


def _given(section: WeatherSection) -> list[str]:
    """Keys that differ from their default."""
    fields = type(section).model_fields
    return [key for key in fields if getattr(section, key) != fields[key].get_default()]
