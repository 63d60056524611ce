"""What a model of weather needs when the data are gone, beside what the domain for arrays keeps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jitkit.domains.arrays import (
    MOST_VALUES,
    Column,
    Statistics,
    block_places,
    load_or_measure,
    read_blocks,
)
from jitkit.domains.weather import sphere
from jitkit.domains.weather.forecasts import ForecastField, ForecastFrame
from jitkit.domains.weather.open import MAPS, OpenedWeather
from jitkit.domains.weather.section import WeatherSection
from jitkit.domains.weather.timedelta import in_words
from jitkit.errors import DataError, RecipeError
from jitkit.utils.console import bar
from jitkit.utils.types import Array

WEATHER_FORMAT = 1
ASKED = ("task", "inputs", "target", "forcings", "static", "accumulate")
"""Keys of the section that a trained model cannot do otherwise."""


@dataclass(frozen=True, eq=False)
class Change:
    """The change from one normalized state to the next, brought to unit variance.

    Attributes:
        center, spread: mean and standard deviation of changes in training, (C,).
    """

    center: Array
    spread: Array

    def encode(self, state: Array, last: Array) -> Array:
        """Normalized states, (C, ...), as changes from others: float32."""
        center, spread = (_beside(x, state) for x in (self.center, self.spread))
        return ((state.astype(np.float64) - last - center) / spread).astype(np.float32)

    def decode(self, change: Array, last: Array) -> Array:
        """Undo `encode`."""
        center, spread = (_beside(x, change) for x in (self.center, self.spread))
        return (last + change.astype(np.float64) * spread + center).astype(np.float32)


def _beside(numbers: Array, values: Array) -> Array:
    """Numbers of channels, (C,), in the rank of values."""
    return numbers.reshape(-1, *[1] * (values.ndim - 1))


class WeatherMetadata:
    """What a model needs, made from metadata alone.

    Attributes:
        seconds: length of a lead.
        time: name of the dimension of time.
        change: where the model samples changes; None where states.
        weights: of the cells, (y, x) float32; None where all count alike.
        places: latitudes and longitudes of the cells, broadcasting to the grid; None: unknown.
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        if metadata.get("format") != WEATHER_FORMAT:
            raise DataError(
                f"metadata of format {metadata.get('format')!r}, but this version reads {WEATHER_FORMAT}; "
                "train again, or sample with the version that trained"
            )
        self.metadata = metadata
        self.seconds, self.time = float(metadata["seconds"]), str(metadata["time"])
        self.change: Change | None = None
        self.weights: Array | None = None
        self.places: tuple[Array, Array] | None = None
        if (change := metadata["change"]) is not None:
            center, spread = (np.asarray(change[key], np.float64) for key in ("center", "spread"))
            self.change = Change(center, spread)
        if metadata["weights"] is not None:
            self.weights = np.asarray(metadata["weights"])
        if (places := metadata["places"]) is not None:
            self.places = np.asarray(places["latitude"]), np.asarray(places["longitude"])

    def check(self, section: WeatherSection) -> None:
        """Whether a section asks for what the model does.

        Raises:
            RecipeError: it does not.
        """
        for key, trained in self.metadata["asked"].items():
            if getattr(section, key) != trained:
                raise RecipeError(
                    f"domain.{key} is {getattr(section, key)!r}, and the model was trained with "
                    f"{trained!r}"
                )

    def check_data(self, opened: OpenedWeather) -> None:
        """Whether opened data follow one another as those that the model was trained on.

        Raises:
            DataError: they do not.
        """
        seconds = opened.data.spacing * opened.step
        forecasts = self.metadata["asked"]["task"] == "forecast"
        if forecasts and abs(seconds - self.seconds) > 0.1 * self.seconds:  # months differ
            raise DataError(
                f"states of {opened.store.path} are {in_words(seconds)} apart, and the model's "
                f"{in_words(self.seconds)}; domain.lead says how far apart they are"
            )

    def frame(self) -> ForecastFrame:
        """What all states of a file of forecasts have in common."""
        arrays = self.metadata["arrays"]
        level = self.metadata["level"]
        return ForecastFrame(
            fields=[
                ForecastField(
                    v["name"],
                    v["channels"],
                    None if v["levels"] is None else self._places_of(v["levels"]),
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
        """The variables of a file of samples, levels together."""
        frame = self.frame()
        found = []
        for field in frame.fields:
            over = [] if field.levels is None or frame.level is None else [frame.level[0]]
            count = len(self._levels()) if over else 1
            levels = None if field.levels is None else tuple(field.levels)
            shape = (*([count] if over else []), *frame.grid.values())
            take = _Together(tuple(field.channels), levels, count)
            dims = (*over, *frame.grid)
            found.append(Column(field.name, dims, shape, "float32", field.attrs, take))
        return found

    def output(self) -> dict[str, Any]:
        """What `arrays.writing.write` is told of a file of samples."""
        arrays, level = self.metadata["arrays"], self.metadata["level"]
        coords = dict(arrays["output"]["coords"])
        if level is not None:
            name = level["name"]
            coords[name] = {"dims": [name], "values": self._levels(), "attrs": level["attrs"]}
        return {**arrays["output"], "axes": arrays["axes"], "missing": True, "coords": coords}

    def _levels(self) -> Array:
        return np.atleast_1d(np.asarray(self.metadata["level"]["values"]))

    def _places_of(self, levels: Sequence[float]) -> list[int]:
        return [int(i) for i in np.searchsorted(self._levels(), levels)]


@dataclass(frozen=True, eq=False)
class _Together:
    """A variable's part of an item; at levels that it has not, NaN."""

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


def measure(
    opened: OpenedWeather, arrays: Mapping[str, Any], statistics: Statistics
) -> dict[str, Any]:
    """The metadata of opened data; reads the training split where changes are sampled.

    Args:
        opened: the data.
        arrays: metadata of the domain for arrays.
        statistics: of the states.
    """
    section = opened.section
    places, areas = opened.places(), opened.areas()
    changes = section.task == "forecast" and section.target == "change"
    return {
        "format": WEATHER_FORMAT,
        "asked": {key: getattr(section, key) for key in ASKED},
        "arrays": dict(arrays),
        "seconds": opened.data.spacing * opened.step,
        "time": opened.dims.time,
        "places": None if places is None else {"latitude": places[0], "longitude": places[1]},
        "weights": None if areas is None or not section.area_weights else sphere.weights(areas),
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
    """The variables that channels belong to, and their attributes."""
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
    """Mean and standard deviation of changes of the normalized state, over the training items."""
    data = opened.data
    plan, spacing = data.plan, data.spacing
    items = data.items("train")
    positions = items.places.starts[plan.along]
    most = {"auto": MOST_VALUES, "all": None}.get(str(data.section.measure), data.section.measure)
    assert not isinstance(most, str)
    later = block_places(data.store, plan, plan.variables, positions, most)
    known = plan.entries[plan.along]
    earlier = [
        {**place, plan.along: known[np.searchsorted(known, place[plan.along]) - spacing]}
        for place in later
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

    asked = {
        "changes": WEATHER_FORMAT,
        "data": data.store.fingerprint(),
        "statistics": hashlib.sha256(_told(statistics)).hexdigest(),
        "positions": hashlib.sha256(positions.astype("<i8").tobytes()).hexdigest(),
        "spacing": spacing,
        "blocks": len(later),
    }
    key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    found = load_or_measure(key, lambda: Statistics.measure(blocks(), statistics.channels))
    return {"center": found.center.tolist(), "spread": found.spread.tolist()}


def _told(statistics: Statistics) -> bytes:
    numbers = {k: v for k, v in statistics.metadata().items() if not isinstance(v, np.ndarray)}
    return json.dumps(numbers, sort_keys=True).encode()
