"""Open weather data for a recipe: dimensions, variables, levels, times, forcings, coarse fields.

store ── dimensions ── channels, forcings, static and coarse maps: a `DerivedStore` ── arrays' data
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jitkit.domains.arrays import (
    ArraysSection,
    ConditionsSection,
    Data,
    label,
    open_data,
    open_store,
    split,
)
from jitkit.domains.weather.anemoi import Anemoi, is_anemoi
from jitkit.domains.weather.channels import Channel, find_channels, others_of, summed
from jitkit.domains.weather.derived import Coarse, DerivedSource, DerivedStore, Plain, SolarForcing
from jitkit.domains.weather.geography import (
    Dims,
    cell_positions,
    coordinate_of,
    covers_globe,
    degrees_of,
    find_dims,
    grid_areas,
    level_dims,
    predicted_variables,
)
from jitkit.domains.weather.section import WeatherSection
from jitkit.domains.weather.sphere import BlockMeans, Interpolation, outside
from jitkit.domains.weather.timedelta import duration
from jitkit.domains.weather.times import (
    accumulation_steps,
    time_step,
    times_of,
    used_entries,
    warn_of_gaps,
    with_whole_window,
)
from jitkit.errors import DataError, RecipeError, listed, nearest
from jitkit.utils.types import Array

if TYPE_CHECKING:
    from jitkit.stores.store import Readable, Store

MAPS = ("cos_zenith", "toa_radiation")
COARSE = "coarse."


@dataclass(frozen=True, eq=False)
class OpenedWeather:
    """Opened data.

    Attributes:
        section: of the recipe.
        store: holds the fields.
        dims: its dimensions.
        view: the derived variables of items.
        channels: the predicted channels.
        level: name of the level dimension; None without levels.
        step: seconds between times of the view.
        data: the view as data of domain `arrays`.
    """

    section: WeatherSection
    store: Readable
    dims: Dims
    view: DerivedStore
    channels: Sequence[Channel]
    level: str | None
    step: float
    data: Data

    @property
    def times(self) -> Array:
        """Times that the recipe uses, (n,)."""
        return self.data.plan.values[self.dims.time]

    def positions(self) -> tuple[Array, Array] | None:
        """Latitudes and longitudes of the items' cells, broadcasting to the grid."""
        found = cell_positions(self.store, self.dims)
        if found is None:
            return None
        rows, columns = (self.data.plan.entries[dim] for dim in (self.dims.y, self.dims.x))
        grid = np.broadcast_shapes(*(x.shape for x in found))
        latitudes, longitudes = (
            x[rows if x.shape[0] == grid[0] else slice(None)][
                :, columns if x.shape[1] == grid[1] else slice(None)
            ]
            for x in found
        )
        return latitudes, longitudes

    def areas(self) -> Array | None:
        """Areas of the items' cells; None where rows and columns are not latitude and longitude."""
        found = grid_areas(self.store, self.dims)
        if found is None:
            return None
        rows, columns = (self.data.plan.entries[dim] for dim in (self.dims.y, self.dims.x))
        return found[np.ix_(rows, columns)]


def open_weather(section: WeatherSection) -> OpenedWeather:
    """Open the data that a section describes.

    Raises:
        DataError, RecipeError: something is missing; the text lists what exists.
    """
    real = open_store(_of_store(section))
    store: Readable = Anemoi(real) if is_anemoi(real) else real
    names = predicted_variables(store, section.variables)
    dims = find_dims(store, names)
    times = times_of(store, dims.time)
    sums = accumulation_steps(times, names, section)
    entries = used_entries(store, times, section)
    entries = with_whole_window(store, times, entries, max(sums.values(), default=1))
    coarse = _open_coarse(section)
    if coarse is not None:
        entries = entries[_shared(times[entries], coarse.times)]
    channels = find_channels(store, dims, names, section, entries)
    level = next((c for c in level_dims(store, dims, names)), None)
    sources = {c.name: summed(c, sums, time_step(times)) for c in channels}
    maps = _forcings(store, dims, times[entries], section)
    maps |= _coarse(store, coarse, dims, times[entries], sources, section)
    static = _static(store, dims, section, times, entries)
    view = DerivedStore(store, {**sources, **maps, **static}, dims.time, entries)
    step = time_step(times[entries])
    spacing = duration(section.lead).in_steps(step, "domain.lead") if section.lead else 1
    arrays_section = _as_arrays(section, store, dims, sources, list(maps))
    data = open_data(arrays_section, view, spacing=spacing)
    if coarse is not None:
        _check_covered(coarse, store, dims, data)
    warn_of_gaps(data, dims.time, section.path)
    return OpenedWeather(section, store, dims, view, channels, level, step, data)


def _of_store(section: Any) -> ArraysSection:
    """The keys of a section that locate its data."""
    given = {key: getattr(section, key) for key in ("path", "group", "options")}
    buffer = {"buffer": section.buffer} if hasattr(section, "buffer") else {}
    return ArraysSection(name="weather", **given, **buffer)


def _as_arrays(
    section: WeatherSection,
    store: Readable,
    dims: Dims,
    predicted: Mapping[str, DerivedSource],
    maps: list[str],
) -> ArraysSection:
    """Section of domain `arrays` for the view."""
    circle = covers_globe(store, dims.x) and dims.x not in section.select
    numbers = [name for name in section.forcings if name not in MAPS]
    kept = dims.all
    every = dict.fromkeys(dim for source in predicted.values() for dim in source.described.dims)
    members = [dim for dim in every if dim not in kept]
    return ArraysSection(
        name=section.name,
        path=section.path,
        variables=list(predicted),
        axes={dims.y: "line", dims.x: "circle" if circle else "line"},
        sample=[dims.time, *members],
        along=dims.time,
        select={dim: chosen for dim, chosen in section.select.items() if dim in kept},
        conditions=ConditionsSection(
            static=section.static,
            grids=maps,
            past=section.inputs if section.task == "forecast" else 0,
            scalars=[f"{dims.time}.{name}" for name in numbers],
        ),
        transforms=_transforms(section, [*predicted, *maps]),
        measure=section.measure,
        missing=section.missing,
        val=section.val,
        gap=section.gap,
        splits=section.splits,
        buffer=section.buffer,
        threads=section.threads,
    )


def _transforms(section: WeatherSection, names: Sequence[str]) -> dict[str, Any]:
    """Transforms by channel; those of a variable hold for all its levels and its coarse field."""
    found, known = {}, set[str]()
    for name in names:
        channel = name.removeprefix(COARSE)
        variable = channel.rpartition(".")[0] or channel
        known |= {channel, variable}
        given = section.transforms.get(channel, section.transforms.get(variable))
        if given is not None:
            found[name] = given
    for name in section.transforms:
        if name not in known:
            raise RecipeError(
                f"domain.transforms: no variable or channel {name!r}; there are "
                f"{listed(sorted(known), 20)}{nearest(name, known)}"
            )
    return found


# Maps as conditions


def _forcings(
    store: Readable, dims: Dims, times: Array, section: WeatherSection
) -> dict[str, DerivedSource]:
    wanted = [name for name in section.forcings if name in MAPS]
    if not wanted:
        return {}
    found = cell_positions(store, dims)
    if found is None:
        raise DataError(
            f"domain.forcings: {wanted[0]} needs latitude and longitude, but {store.path} has no "
            f"such coordinates on {dims.y} and {dims.x}"
        )
    axes = (dims.time, dims.y, dims.x)
    return {name: SolarForcing(name, axes, times, *found) for name in wanted}


def _static(
    store: Readable, dims: Dims, section: WeatherSection, times: Array, entries: Array
) -> dict[str, DerivedSource]:
    """Static maps; of one with a time dimension, as in ARCO-ERA5, the first training time."""
    found: dict[str, DerivedSource] = {}
    for name in section.static:
        if name not in store.variables:
            if name not in store.coords.variables:
                known = [*store.variables, *map(str, store.coords.variables)]
                raise DataError(
                    f"{store.path}: no variable {name!r} (domain.static); it has "
                    f"{listed(known, 20)}{nearest(name, known)}"
                )
            continue
        fixed, over = others_of(store, dims, name, section)
        if over is not None:
            raise DataError(f"domain.static: {name!r} has levels, but a map has none")
        if dims.time in store.variables[name].dims:
            fixed[dims.time] = _first_trained(times, entries, section)
        found[name] = Plain(store, name, fixed, dims.time, None)
    return found


def _first_trained(times: Array, entries: Array, section: WeatherSection) -> int:
    used = times[entries]
    parts = split(used, dim="time", share=section.val, gap=0, explicit=section.splits)
    return int(entries[parts["train"][0]])


@dataclass(frozen=True, eq=False)
class _CoarseStore:
    """A store of coarse fields.

    Attributes:
        store, dims: as for the fine fields.
        names: conditioning variables with the requested levels.
        times: of the store, (n,).
    """

    store: Readable
    dims: Dims
    names: Mapping[str, list[float] | None]
    times: Array


def _open_coarse(section: WeatherSection) -> _CoarseStore | None:
    """The store of coarse fields; None where the fine fields are coarsened."""
    if section.coarse is None or section.coarse.path is None:
        return None
    try:
        real: Store = open_store(_of_store(section.coarse))
    except DataError as error:
        raise DataError(f"domain.coarse.path: {error}") from error
    store = Anemoi(real) if is_anemoi(real) else real
    names = predicted_variables(store, section.coarse.variables or section.variables)
    dims = find_dims(store, names)
    return _CoarseStore(store, dims, names, times_of(store, dims.time))


def _shared(times: Array, others: Array) -> Array:
    """Positions of the times that others contain as well."""
    known = np.isin(times, others)
    if not known.any():
        raise DataError(
            f"domain.coarse: none of its {len(others)} times is among those of the fine grid: "
            f"{label(others[0])} to {label(others[-1])} and {label(times[0])} to "
            f"{label(times[-1])}"
        )
    return np.flatnonzero(known)


def _coarse(
    store: Readable,
    coarse: _CoarseStore | None,
    dims: Dims,
    times: Array,
    fine: Mapping[str, DerivedSource],
    section: WeatherSection,
) -> dict[str, DerivedSource]:
    """Coarse fields on the fine grid."""
    if section.coarse is None:
        return {}
    shape = tuple(coordinate_of(store, dim).size for dim in (dims.y, dims.x))
    assert len(shape) == 2
    if coarse is None:
        cells, own = grid_areas(store, dims), (dims.y, dims.x)
        factor = section.coarse.factor
        assert factor is not None
        blocks = BlockMeans(np.ones(shape) if cells is None else cells, factor)
        return {f"{COARSE}{n}": Coarse(s, blocks, (own, own), shape) for n, s in fine.items()}
    theirs = coarse.dims
    regrid = Interpolation.grids(_latlon(coarse.store, theirs), _latlon(store, dims))
    entries = np.searchsorted(coarse.times, times)
    if theirs.time != dims.time:
        raise DataError(
            f"domain.coarse: time is {theirs.time!r} there and {dims.time!r} in the fine data; "
            "rename one"
        )
    channels = find_channels(coarse.store, theirs, coarse.names, section, entries)
    grid = ((theirs.y, theirs.x), (dims.y, dims.x))
    return {f"{COARSE}{c.name}": Coarse(c.source, regrid, grid, shape) for c in channels}


def _check_covered(coarse: _CoarseStore, store: Readable, dims: Dims, data: Data) -> None:
    """Check that the cells of the recipe are inside the coarse grid."""
    rows, columns = _latlon(store, dims)
    fine = rows[data.plan.entries[dims.y]], columns[data.plan.entries[dims.x]]
    source = _latlon(coarse.store, coarse.dims)
    kinds = zip((dims.y, dims.x), fine, source, outside(source, fine), strict=True)
    beyond = [
        f"{int(far.sum())} of {len(far)} entries of {dim} ({x[far].min():g} to {x[far].max():g}) "
        f"are outside of {s.min():g} to {s.max():g}"
        for dim, x, s, far in kinds
        if far.any()
    ]
    if beyond:
        raise DataError(
            f"domain.coarse: {coarse.store.path} does not cover the fine grid: {'; '.join(beyond)} "
            "by more than half a coarse cell; select a part of the fine grid with domain.select"
        )


def _latlon(store: Readable, dims: Dims) -> tuple[Array, Array]:
    rows, columns = degrees_of(store, dims.y, "lat"), degrees_of(store, dims.x, "lon")
    if rows is None or columns is None:
        raise DataError(
            f"{store.path}: {dims.y} and {dims.x} are not latitude and longitude in degrees, "
            "which the interpolation of coarse fields needs"
        )
    return rows, columns
