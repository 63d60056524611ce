"""Section ``domain`` of a recipe for arrays."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, model_validator
from pydantic import Field as Limit

from jitkit.domains.arrays.conditions import ConditionsSection
from jitkit.domains.arrays.coordinates import Selection
from jitkit.domains.arrays.normalize.moments import Normalize
from jitkit.domains.arrays.normalize.transforms import Transform
from jitkit.domains.arrays.splits import SplitsSection
from jitkit.errors import RecipeError
from jitkit.sections import Count, DomainSection, Finite, Natural

Drop = Annotated[float, Limit(ge=0, lt=1)]
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
BINARY = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def _without_null(given: Any) -> Any:
    """A mapping without what is null: an override can take an entry out that way."""
    if isinstance(given, dict):
        return {name: value for name, value in given.items() if value is not None}
    return given


FillSetting = Annotated[Finite | dict[str, Finite], BeforeValidator(_without_null)]
AxesSetting = Annotated[dict[str, Literal["line", "circle"]], BeforeValidator(_without_null)]


class ArraysSection(DomainSection):
    """Section ``domain`` of a recipe for arrays: `name: arrays`.

    What a dimension may be: an axis of the grid, a sample dimension that items are drawn from, or
    unrolled, each of its entries a channel. A dimension of one entry need not be any.
    """

    free_to_change: ClassVar[tuple[str, ...]] = ("path", "threads")

    path: str | None = None
    """Zarr store (folder, .zip, s3://, gs://, https://), NetCDF file or a pattern of them
    (`data/*.nc`), HDF5, .npy or .npz file."""
    group: str | None = None
    """Group inside a Zarr store or an HDF5 file."""
    options: dict[str, bool | int | float | str] = {}
    """For addresses: `anonymous: true`, endpoint, region, allow_http."""
    variables: list[str] | None = None
    """What is predicted; every numeric variable that has all axes and a sample dimension, and is
    no condition, where not given, in the order of their names."""
    axes: AxesSetting | None = None
    """The grid of an item, one to four dimensions, each a line with two ends or a circle that
    closes on itself: `{latitude: line, longitude: circle}`. null takes one out again."""
    sample: list[str] | None = None
    """Dimensions that items are drawn from; all that are left where not given. The first is the
    one that is split."""
    along: str | None = None
    """The sample dimension that windows, strides and past steps go along; the first where not
    given."""
    window: Count = 1
    """Steps of an item; more than one make an axis in front of the others."""
    stride: Count = 1
    """Steps from the beginning of one item to the next."""
    unroll: list[str] = []
    """Dimensions whose entries become channels: level makes `z.500`, `z.850`, ..."""
    select: dict[str, Selection] = {}
    """Entries of a dimension that are used: a list of values, or `{from: ..., to: ...}` with both
    ends included; by coordinate (`to: 2015` is to the end of that year), or by index from 0."""
    conditions: ConditionsSection = ConditionsSection()
    """What the model is told."""
    condition_drop: Drop | dict[str, Drop] = 0.1
    """Share of items whose condition is hidden in training, which guidance needs; one number, or
    one for each condition: static, grids, past, scalars and the categories by name."""
    transforms: dict[str, str | dict[str, float]] = {}
    """What is done to a variable's or a channel's values first: none, sqrt, log1p, or
    `{log1p: 0.001}` for log(1 + x / 0.001)."""
    normalize: Normalize = "standard"
    """Then: to mean 0 and variance 1 (standard), to -1..1 (minmax), by median and quartiles
    (robust), or none."""
    per_cell: bool = False
    """Normalize each cell by its own mean and deviation."""
    measure: Literal["auto", "all"] | Count = "auto"
    """Numbers of the training split that statistics are taken from; auto is all up to 2^33, of
    more as many, evenly spread. A cell that none of them observes comes back as missing."""
    missing: Literal["auto"] | bool = "auto"
    """Whether cells may be missing (NaN, fill values); auto is whether some are in the training
    split. false passes over items with missing cells."""
    fill: FillSetting | None = None
    """A value that means "missing" though the file does not declare it, as it is read (unpacked):
    one for all variables, or one for each, `{rain: -999}`. null takes one out again."""
    val: Annotated[float, Limit(ge=0, lt=1)] = 0.1
    """Share held out, at the end of the first sample dimension."""
    gap: Natural = 0
    """Steps left out between training and held-out ones, which resemble each other where near."""
    splits: SplitsSection | None = None
    """Both splits by value, in place of `val`: `{train: {to: 2015}, val: {from: 2016}}`."""
    buffer: str = "1GiB"
    """Memory for decoded chunks, in each process that reads."""
    threads: Count | None = None
    """Threads that read in each process; 4 from disk, 16 from an address where not given."""

    @model_validator(mode="after")
    def _meant(self) -> ArraysSection:
        self.buffer_bytes  # noqa: B018  # raises
        for name, transform in self.transforms.items():
            try:
                Transform.of(transform)
            except RecipeError as error:
                raise RecipeError(f"transforms.{name}: {error}") from error
        twice = [dim for dim in self.axes or () if dim in (*self.unroll, *(self.sample or ()))]
        if twice:
            raise RecipeError(f"{twice[0]} is an axis; it cannot be unrolled or sampled as well")
        if isinstance(self.condition_drop, dict):
            unknown = set(self.condition_drop) - set(self.condition_names)
            if unknown:
                known = ", ".join(self.condition_names) or "none"
                raise RecipeError(
                    f"condition_drop: no condition {sorted(unknown)[0]!r}; there are: {known}"
                )
        return self

    @property
    def condition_names(self) -> list[str]:
        """Names of the conditions, in order."""
        given = self.conditions
        kinds = ("static", "grids", "past", "scalars")
        return [kind for kind in kinds if getattr(given, kind)] + given.categories

    @property
    def buffer_bytes(self) -> int:
        """``buffer`` in bytes."""
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", self.buffer.lower())
        if match is None or (match[3] and not match[2]):
            raise RecipeError(f"buffer: {self.buffer!r} is no size; write 512MiB or 4GiB")
        return int(float(match[1]) * (BINARY if match[3] else UNITS)[match[2]])

    def drop(self, name: str) -> float:
        """How often a condition is hidden in training."""
        if isinstance(self.condition_drop, dict):
            return self.condition_drop.get(name, 0.1)
        return self.condition_drop
