"""Recipe section ``domain`` of arrays: files, axes, conditions, normalization and splits."""

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


def _without_null(value: Any) -> Any:
    """A mapping without its null entries: an override removes an entry by setting it to null."""
    if isinstance(value, dict):
        return {name: entry for name, entry in value.items() if entry is not None}
    return value


FillSetting = Annotated[Finite | dict[str, Finite], BeforeValidator(_without_null)]
AxesSetting = Annotated[dict[str, Literal["line", "circle"]], BeforeValidator(_without_null)]


class ArraysSection(DomainSection):
    """Section ``domain`` of a recipe: arrays in files and stores (`name: arrays`).

    A dimension is an axis of the grid, a sample dimension from which items are drawn, or unrolled
    (each entry becomes a channel). A dimension with one entry may be left out.
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
    """Predicted variables. By default every numeric variable with all axes and a sample dimension
    that is not a condition, in alphabetical order."""
    axes: AxesSetting | None = None
    """Grid of an item, one to four dimensions, each a line (with two ends) or a circle (periodic):
    `{latitude: line, longitude: circle}`. null removes an entry."""
    sample: list[str] | None = None
    """Dimensions from which items are drawn; by default all remaining ones. The first is split into
    training and validation."""
    along: str | None = None
    """Sample dimension of windows, strides and past steps; by default the first."""
    window: Count = 1
    """Steps per item; more than one add an axis in front of the others."""
    stride: Count = 1
    """Steps from the start of one item to the start of the next."""
    unroll: list[str] = []
    """Dimensions whose entries become channels: level gives `z.500`, `z.850`, ..."""
    select: dict[str, Selection] = {}
    """Entries of a dimension to use: a list of values, or `{from: ..., to: ...}` with both ends
    included; by coordinate (`to: 2015` means to the end of that year), else by index from 0."""
    conditions: ConditionsSection = ConditionsSection()
    """What the model is conditioned on."""
    condition_drop: Drop | dict[str, Drop] = 0.1
    """Fraction of training items whose condition is dropped, for classifier-free guidance (CFG):
    one number, or one per condition (static, grids, past, scalars, and the categories by name)."""
    transforms: dict[str, str | dict[str, float]] = {}
    """Transform of a variable or channel, applied before normalization: none, sqrt, log1p, or
    `{log1p: 0.001}` for log(1 + x / 0.001)."""
    normalize: Normalize = "standard"
    """Normalization of each channel: mean 0 and variance 1 (standard), range -1..1 (minmax), by
    median and interquartile range (robust), or none."""
    per_cell: bool = False
    """Normalize each cell by the mean and standard deviation of that cell."""
    measure: Literal["auto", "all"] | Count = "auto"
    """How many values of the training split the statistics use; auto is all, or about 2^33 evenly
    spread ones if there are more. Cells not observed in any of them are missing in samples."""
    missing: Literal["auto"] | bool = "auto"
    """Whether cells may be missing (NaN, fill values); auto: whether any are missing in the
    training split. false skips items with missing cells."""
    fill: FillSetting | None = None
    """Fill value that the file does not declare, as unpacked: one for all variables, or one per
    variable, `{rain: -999}`. null removes an entry."""
    val: Annotated[float, Limit(ge=0, lt=1)] = 0.1
    """Fraction for validation, at the end of the first sample dimension."""
    gap: Natural = 0
    """Steps left out between training and validation, because nearby steps are correlated."""
    splits: SplitsSection | None = None
    """Both splits by coordinate, instead of `val`: `{train: {to: 2015}, val: {from: 2016}}`."""
    buffer: str = "1GiB"
    """Memory for decoded chunks in each reading process."""
    threads: Count | None = None
    """Reading threads per process; by default 4 from disk, 16 from an address."""

    @model_validator(mode="after")
    def _validated(self) -> ArraysSection:
        self.buffer_bytes  # noqa: B018  # raises
        for name, transform in self.transforms.items():
            try:
                Transform.of(transform)
            except RecipeError as error:
                raise RecipeError(f"transforms.{name}: {error}") from error
        duplicates = [d for d in self.axes or () if d in (*self.unroll, *(self.sample or ()))]
        if duplicates:
            raise RecipeError(f"{duplicates[0]} is an axis; it cannot be unrolled or sampled too")
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
        kinds = ("static", "grids", "past", "scalars")
        return [k for k in kinds if getattr(self.conditions, k)] + self.conditions.categories

    @property
    def buffer_bytes(self) -> int:
        """``buffer`` in bytes."""
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?\s*", self.buffer.lower())
        if match is None or (match[3] and not match[2]):
            raise RecipeError(f"buffer: {self.buffer!r} is not a size; write 512MiB or 4GiB")
        return int(float(match[1]) * (BINARY if match[3] else UNITS)[match[2]])

    def drop(self, name: str) -> float:
        """Probability that a condition is dropped in training."""
        if isinstance(self.condition_drop, dict):
            return self.condition_drop.get(name, 0.1)
        return self.condition_drop
