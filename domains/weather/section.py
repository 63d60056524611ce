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
    """A list of names as a mapping to no levels, which are all of them."""
    if isinstance(variables, list) and all(isinstance(name, str) for name in variables):
        return dict.fromkeys(variables)
    return variables


Variables = Annotated[dict[str, list[float] | None], BeforeValidator(_without_levels)]
"""Names, each with the levels that are wanted; None is all that it has."""


class CoarseSection(Section):
    """Key ``coarse``: what downscaling starts from."""

    factor: Count | None = None
    """Cells of the fine grid along each side of a coarse one, whose values are area-weighted means
    (conservative coarsening)."""
    path: str | None = None
    """A store of coarse fields, in place of ``factor``."""
    group: str | None = None
    """Group inside it."""
    options: dict[str, bool | int | float | str] = {}
    """For addresses, as ``domain.options``."""
    variables: Variables | None = None
    """Its variables; those of the fine grid where not given."""

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
    """How far each forecast goes."""
    members: Count = 8
    """Members of each ensemble."""
    inits: Count = 16
    """Initial times, evenly spread over the held-out split."""
    forecasts: str | None = None
    """A file of `jitkit forecast` that is scored in place of rolling out anew; starts, leads and
    members are then those in it."""
    learn_from: Count = 2_000
    """Training states that the baselines learn from, drawn at random where there are more."""

    @model_validator(mode="after")
    def _meant(self) -> VerifySection:
        duration(self.lead, "verify.lead")
        return self


class WeatherSection(DomainSection):
    """Section ``domain`` of a recipe for weather: `name: weather`.

    Fields on a grid that follow one another in time, as WeatherBench 2, ARCO-ERA5, anemoi-datasets
    and CF files hold them. Dimensions are found by their CF attributes or names.
    """

    free_to_change: ClassVar[tuple[str, ...]] = ("path", "threads", "verify")

    path: str | None = None
    """Zarr store (folder, .zip, gs://, s3://, https://), NetCDF file or a pattern of them."""
    group: str | None = None
    """Group inside a Zarr store or an HDF5 file."""
    options: dict[str, bool | int | float | str] = {}
    """For addresses: `anonymous: true`, endpoint, region, allow_http."""
    task: Task = "unconditional"
    """States of the split by themselves; `forecast`: the next state from those before;
    `downscaling`: a fine grid from a coarse one."""
    variables: Variables | None = None
    """What is predicted, by name, with levels: `{2m_temperature: null, temperature: [500, 850]}`,
    or a list of names with all their levels; every variable on the grid where not given."""
    accumulate: dict[str, str] = {}
    """Variables that are summed over a time that ends at the item's: `{total_precipitation: 24h}`
    where the store holds the amount of each step. Times before which one is missing are left
    out."""
    lead: str | None = None
    """Forecast: from one state to the next, `6h`; a step of the data where not given."""
    inputs: Count = 1
    """Forecast: states that are told, each a lead before the next."""
    target: Literal["state", "change"] = "change"
    """Forecast: what the model samples, the next state or its change from the last, each
    normalized by its own statistics. What is written are states either way."""
    coarse: CoarseSection | None = None
    """Downscaling: where the coarse grid comes from."""
    forcings: list[Forcing] = []
    """What is known of any time beforehand: cosine of the sun's zenith angle (0 at night) and
    radiation on top of the atmosphere (W/m2) as maps; sine and cosine of the day of the year and
    of the hour (UTC)."""
    static: list[str] = []
    """Variables or coordinates without time, as maps: orography, a land-sea mask, latitude."""
    every: str | None = None
    """Use the times of day that are multiples of this from midnight: `6h` of hourly data; what
    divides a day, or a number of steps, `8 steps`."""
    select: dict[str, Selection] = {}
    """Part of a dimension: `{latitude: {from: 30, to: 72}}`, or one member: `{number: [0]}`."""
    area_weights: bool = True
    """Cells count in the loss by their area on the sphere, where latitudes are known."""
    condition_drop: Drop | dict[str, Drop] = 0.0
    """Share of items whose condition is hidden in training, which guidance needs; one number, or
    one for each: past, static, grids (coarse fields and forcings that are maps), scalars (the other
    forcings)."""
    transforms: dict[str, str | dict[str, float]] = {}
    """What is done to a variable's or a channel's values first: none, sqrt, log1p, or
    `{log1p: 0.001}` for log(1 + x / 0.001)."""
    measure: Literal["auto", "all"] | Count = "auto"
    """Numbers of the training split that statistics are taken from; auto is all up to 2^33, of
    more as many, evenly spread."""
    missing: Literal["auto"] | bool = "auto"
    """Whether cells may be missing (NaN), as over land; auto is whether some are in training."""
    val: Annotated[float, Limit(ge=0, lt=1)] = 0.1
    """Share held out, at the end of time."""
    gap: Natural = 0
    """Steps left out between training and held-out ones."""
    splits: SplitsSection | None = None
    """Both splits by time, in place of `val`: `{train: {to: 2015}, val: {from: 2016}}`."""
    verify: VerifySection = VerifySection()
    """Forecast: what `jitkit evaluate` rolls out."""
    buffer: str = "1GiB"
    """Memory for decoded chunks, in each process that reads."""
    threads: Count | None = None
    """Threads that read in each process; 4 from disk, 16 from an address where not given."""

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
            raise RecipeError(f"{wrong[0]} is for task: {task}, and task is {self.task}")
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
        """How often a condition is hidden in training."""
        if isinstance(self.condition_drop, dict):
            return self.condition_drop.get(name, 0.0)
        return self.condition_drop


def _divides_the_day(every: Duration) -> None:
    """Times are counted from midnight, so that others would fall on other hours each day."""
    if every.unit != "steps" and DAY % every.seconds:
        raise RecipeError(
            f"every: {every} does not divide a day, and hours are counted from midnight; take 1h, "
            "2h, 3h, 4h, 6h, 8h, 12h or 24h, or a number of steps of the data such as '8 steps'"
        )


_TASKS: dict[str, Task] = {
    "lead": "forecast",
    "inputs": "forecast",
    "target": "forecast",
    "verify": "forecast",
    "coarse": "downscaling",
}
"""Keys that belong to one task alone."""


def _given(section: WeatherSection) -> list[str]:
    """Keys that say something else than their default."""
    fields = type(section).model_fields
    return [key for key in fields if getattr(section, key) != fields[key].get_default()]
