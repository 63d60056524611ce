"""Metadata of a weather model: what sampling and forecasting need when the data are gone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jitkit.domains.arrays import (
    MAX_VALUES,
    Column,
    Statistics,
    block_entries,
    load_or_measure,
    read_blocks,
)
from jitkit.domains.weather import sphere
from jitkit.domains.weather.forecasts import ForecastField, ForecastFrame
from jitkit.domains.weather.open import MAPS, OpenedWeather
from jitkit.domains.weather.section import WeatherSection
from jitkit.domains.weather.timedelta import format_duration
from jitkit.errors import DataError, RecipeError
from jitkit.utils.console import bar
from jitkit.utils.types import Array

WEATHER_FORMAT = 1
ASKED = ("task", "inputs", "target", "forcings", "static", "accumulate")
"""Keys of the section that are fixed once a model is trained."""


@dataclass(frozen=True, eq=False)
class Change:
    """Normalization of the change from one normalized state to the next.

    Attributes:
        center, spread: mean and standard deviation of changes in the training data, (C,).
    """

    center: Array
    spread: Array

    def encode(self, state: Array, last: Array) -> Array:
        """Changes of normalized states (C, ...) from the states before, float32."""
        center, spread = (_broadcast(x, state) for x in (self.center, self.spread))
        return ((state.astype(np.float64) - last - center) / spread).astype(np.float32)

    def decode(self, change: Array, last: Array) -> Array:
        """Undo `encode`."""
        center, spread = (_broadcast(x, change) for x in (self.center, self.spread))
        return (last + change.astype(np.float64) * spread + center).astype(np.float32)


def _broadcast(per_channel: Array, values: Array) -> Array:
    """One value per channel, (C,), with the rank of ``values``."""
    return per_channel.reshape(-1, *[1] * (values.ndim - 1))


class WeatherMetadata:
    """Metadata of a weather model in usable form.

    Attributes:
        seconds: length of one step.
        time: name of the time dimension.
        change: normalization of changes; None where the model samples states.
        weights: area weights of the cells, (y, x) float32; None where all are equal.
        positions: latitudes and longitudes of the cells, broadcasting to the grid; None: unknown.
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        if metadata.get("format") != WEATHER_FORMAT:
            raise DataError(
                f"metadata of format {metadata.get('format')!r}, but this version reads "
                f"{WEATHER_FORMAT}; train again, or sample with the version that trained"
            )
        self.metadata = metadata
        self.seconds, self.time = float(metadata["seconds"]), str(metadata["time"])
        self.change: Change | None = None
        self.weights: Array | None = None
        self.positions: tuple[Array, Array] | None = None
        if (change := metadata["change"]) is not None:
            center, spread = (np.asarray(change[key], np.float64) for key in ("center", "spread"))
            self.change = Change(center, spread)
        if metadata["weights"] is not None:
            self.weights = np.asarray(metadata["weights"])
        if (cells := metadata["places"]) is not None:
            self.positions = np.asarray(cells["latitude"]), np.asarray(cells["longitude"])

    def check(self, section: WeatherSection) -> None:
        """Check that a section agrees with how the model was trained.

        Raises:
            RecipeError: it does not.
        """
        for key, trained in self.metadata["asked"].items():
            if getattr(section, key) != trained:
                raise RecipeError(
                    f"domain.{key} is {getattr(section, key)!r}, but the model was trained with "
                    f"{trained!r}"
                )

    def check_data(self, opened: OpenedWeather) -> None:
        """Check that opened data have the time step that the model was trained on.

        Raises:
            DataError: they do not.
        """
        seconds = opened.data.spacing * opened.step
        forecasts = self.metadata["asked"]["task"] == "forecast"
        if forecasts and abs(seconds - self.seconds) > 0.1 * self.seconds:  # months differ
            raise DataError(
                f"states of {opened.store.path} are {format_duration(seconds)} apart, but the "
                f"model's step is {format_duration(self.seconds)}; set domain.lead"
            )

    def frame(self) -> ForecastFrame:
        """Variables, grid and coordinates of a forecast file."""
        arrays = self.metadata["arrays"]
        level = self.metadata["level"]
        return ForecastFrame(
            fields=[
                ForecastField(
                    v["name"],
                    v["channels"],
                    None if v["levels"] is None else self._level_indices(v["levels"]),
                    v["attrs"],
                )
                for v in self.metadata["variables"]
            ],
            grid={axis["name"]: axis["size"] for axis in arrays["axes"]},
            level=None if level is None else (level["name"], self._levels(), level["attrs"]),
            coords=arrays["output"]["coords"],
            attrs=arrays["output"]["attrs"],
        )

    def columns(self) -> list[Column]:
        """The variables of a file of samples, each with its levels as one dimension."""
        frame = self.frame()
        found = []
        for field in frame.fields:
            over = [] if field.levels is None or frame.level is None else [frame.level[0]]
            count = len(self._levels()) if over else 1
            levels = None if field.levels is None else tuple(field.levels)
            shape = (*([count] if over else []), *frame.grid.values())
            take = _WithLevels(tuple(field.channels), levels, count)
            dims = (*over, *frame.grid)
            found.append(Column(field.name, dims, shape, "float32", field.attrs, take))
        return found

    def output(self) -> dict[str, Any]:
        """Description of a file of samples for `arrays.write.write_items`."""
        arrays, level = self.metadata["arrays"], self.metadata["level"]
        coords = dict(arrays["output"]["coords"])
        if level is not None:
            name = level["name"]
            coords[name] = {"dims": [name], "values": self._levels(), "attrs": level["attrs"]}
        return {**arrays["output"], "axes": arrays["axes"], "missing": True, "coords": coords}

    def _levels(self) -> Array:
        return np.atleast_1d(np.asarray(self.metadata["level"]["values"]))

    def _level_indices(self, levels: Sequence[float]) -> list[int]:
        return [int(i) for i in np.searchsorted(self._levels(), levels)]


@dataclass(frozen=True, eq=False)
class _WithLevels:
    """A variable's channels of an item on all levels of the file; NaN at levels it lacks."""

    channels: tuple[int, ...]
    levels: tuple[int, ...] | None
    count: int

    def __call__(self, item: Any) -> Array:
        values = item.values[list(self.channels)]
        if self.levels is None:
            return np.asarray(values[0])
        whole = np.full((self.count, *values.shape[1:]), np.nan, np.float32)
        whole[list(self.levels)] = values
        return whole


def measure_weather(
    opened: OpenedWeather, arrays: Mapping[str, Any], statistics: Statistics
) -> dict[str, Any]:
    """Metadata of opened data; reads the training split where the model samples changes.

    Args:
        opened: the data.
        arrays: metadata of domain `arrays`.
        statistics: of the states.
    """
    section = opened.section
    positions, areas = opened.positions(), opened.areas()
    changes = section.task == "forecast" and section.target == "change"
    return {
        "format": WEATHER_FORMAT,
        "asked": {key: getattr(section, key) for key in ASKED},
        "arrays": dict(arrays),
        "seconds": opened.data.spacing * opened.step,
        "time": opened.dims.time,
        "places": None
        if positions is None
        else {"latitude": positions[0], "longitude": positions[1]},
        "weights": None
        if areas is None or not section.area_weights
        else sphere.area_weights(areas),
        "change": _changes(opened, statistics) if changes else None,
        "level": _level(opened),
        "variables": _variables(opened, arrays),
        "maps": [name for name in section.forcings if name in MAPS],
        "numbers": [name for name in section.forcings if name not in MAPS],
    }


def _level(opened: OpenedWeather) -> dict[str, Any] | None:
    values = {c.level for c in opened.channels if c.level is not None}
    if not values:
        return None
    name = opened.level or "level"
    found = opened.store.coords.variables.get(name)
    attrs = {} if found is None else {str(k): v for k, v in found.attrs.items() if _plain(v)}
    whole = all(value == int(value) for value in values)
    return {
        "name": name,
        "values": np.array(sorted(values), np.int64 if whole else np.float64),
        "attrs": attrs,
    }


def _plain(value: Any) -> bool:
    return isinstance(value, str | int | float) and value == value


def _variables(opened: OpenedWeather, arrays: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The variables of the channels, with their attributes."""
    attrs = {v["name"]: v["attrs"] for v in arrays["output"]["variables"]}
    found: dict[str, dict[str, Any]] = {}
    for number, channel in enumerate(opened.channels):
        v = found.setdefault(
            channel.variable,
            {
                "name": channel.variable,
                "channels": [],
                "levels": None if channel.level is None else [],
                "attrs": attrs[channel.name],
            },
        )
        v["channels"].append(number)
        if channel.level is not None:
            v["levels"].append(channel.level)
    return list(found.values())


def _changes(opened: OpenedWeather, statistics: Statistics) -> dict[str, Any]:
    """Mean and standard deviation of changes of normalized states over the training items."""
    data = opened.data
    plan, spacing = data.plan, data.spacing
    items = data.items("train")
    positions = items.item_index.starts[plan.along]
    most = {"auto": MAX_VALUES, "all": None}.get(str(data.section.measure), data.section.measure)
    assert not isinstance(most, str)
    later = block_entries(data.store, plan, plan.variables, positions, most)
    known = plan.entries[plan.along]
    earlier = [
        {**entry, plan.along: known[np.searchsorted(known, entry[plan.along]) - spacing]}
        for entry in later
    ]

    def blocks() -> Iterator[Array]:
        with bar("measuring changes", len(later), unit="blocks") as done:
            pairs = (read_blocks(data.store, plan, plan.variables, p) for p in (later, earlier))
            for number, (new, old) in enumerate(zip(*pairs, strict=True), 1):
                after, before = (
                    statistics.encode(np.moveaxis(block, 1, 0)) for block in (new, old)
                )
                yield np.moveaxis(after - before, 0, 1)
                done(number)

    identity = {
        "changes": WEATHER_FORMAT,
        "data": data.store.fingerprint(),
        "statistics": hashlib.sha256(_plain_statistics(statistics)).hexdigest(),
        "positions": hashlib.sha256(positions.astype("<i8").tobytes()).hexdigest(),
        "spacing": spacing,
        "blocks": len(later),
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    found = load_or_measure(key, lambda: Statistics.measure(blocks(), statistics.channels))
    return {"center": found.center.tolist(), "spread": found.spread.tolist()}


def _plain_statistics(statistics: Statistics) -> bytes:
    plain = {k: v for k, v in statistics.metadata().items() if not isinstance(v, np.ndarray)}
    return json.dumps(plain, sort_keys=True).encode()
