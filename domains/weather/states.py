"""States in order of time: initial states of forecasts and verifying analyses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from jitkit.domain import Split
from jitkit.domains.arrays import (
    Indexer,
    extent,
    in_seconds,
    label,
    read_channels,
    segments,
    value_bounds,
)
from jitkit.domains.weather.open import OpenedWeather
from jitkit.domains.weather.timedelta import duration
from jitkit.errors import DataError, RecipeError
from jitkit.utils.types import Array


class States:
    """The states of opened data; a position is the index of a state in order of time.

    Attributes:
        times: of all used states, numpy or cftime, (n,).
        train, val: positions of each split.
        channels: names of the C channels.
        spacing: positions between consecutive states of a forecast.
        inputs: number of past states that condition a model.
    """

    def __init__(self, opened: OpenedWeather, *, inputs: int = 1) -> None:
        self._opened, self.inputs = opened, inputs
        data = opened.data
        self.times = opened.times
        self.train, self.val = data.splits["train"], data.splits["val"]
        self.channels = tuple(channel.name for channel in opened.channels)
        self.spacing = data.spacing
        self._run = segments(self.times)

    def __len__(self) -> int:
        return len(self.times)

    @property
    def step_seconds(self) -> float:
        """Length of one forecast step."""
        return self.spacing * self._opened.step

    @cached_property
    def units(self) -> dict[str, str]:
        """Units of the channels that have them."""
        channels = self._opened.channels
        found = {c.name: str(c.source.described.attrs.get("units", "")) for c in channels}
        return {name: unit for name, unit in found.items() if unit}

    @property
    def latitude(self) -> Array | None:
        """Of the rows, in degrees, (n,) float64; None where rows are not latitudes."""
        return self._degrees(0)

    @property
    def longitude(self) -> Array | None:
        """Of the columns, in degrees, (m,) float64; None where columns are not longitudes."""
        return self._degrees(1)

    def _degrees(self, axis: int) -> Array | None:
        if self._opened.areas() is None:
            return None
        found = self._opened.positions()
        return None if found is None else found[axis].ravel()

    @cached_property
    def _seconds(self) -> Array:
        """Times in seconds, comparable with `value_bounds`; cftime times unchanged."""
        return self.times.astype("M8[s]") if self.times.dtype.kind == "M" else self.times

    def read(self, position: int) -> Array:
        """A state, (C, y, x) float32 in physical units, NaN where missing. Safe for threads."""
        data = self._opened.data
        plan = data.plan
        others = {dim: int(plan.entries[dim][0]) for dim in plan.sample}
        cuts: dict[str, Indexer] = {**plan.indexers(), **others}
        cuts[plan.along] = int(plan.entries[plan.along][position])
        return read_channels(data.store, plan.variables, cuts, (), plan.axes)

    def after(self, position: int, steps: int) -> int | None:
        """The position ``steps`` forecast steps later (earlier if negative); None where there is no
        such state or a gap is between."""
        later = position + steps * self.spacing
        if not 0 <= later < len(self.times) or self._run[later] != self._run[position]:
            return None
        return later

    def starts(self, split: Split) -> Array:
        """Positions at which a forecast can start: the past states that condition the model and the
        first predicted state are in the same split."""
        members = self.val if split == "val" else self.train
        own = np.zeros(len(self.times), bool)
        own[members] = True
        offsets = (1, *range(0, -self.inputs, -1))
        found = [
            position
            for position in members.tolist()
            if all((at := self.after(position, k)) is not None and own[at] for k in offsets)
        ]
        return np.array(found, np.int64)

    def time(self, position: int, steps: int) -> Any:
        """Valid time ``steps`` forecast steps after a position, also beyond the data."""
        later = self.after(position, steps)
        if later is not None:
            return self.times[later]
        seconds = round(steps * self.step_seconds)
        if self.times.dtype.kind == "M":
            return self.times[position] + np.timedelta64(seconds, "s")
        from datetime import timedelta

        return self.times[position] + timedelta(seconds=seconds)

    # Names of initial times

    def name(self, position: int) -> str:
        """Name of an initial time, such as ``2020-01-01T00``."""
        text = label(self.times[position]).replace(" ", "T")
        text = text if "T" in text else f"{text}T00"
        return re.sub(r"(:00)+$", "", text)

    def position(self, name: str) -> int:
        """Position of an initial time.

        Raises:
            DataError: there is no state at that time.
        """
        low, _ = value_bounds(self.times, name, "--init")
        hit = np.flatnonzero(self._seconds == low)
        if not len(hit):
            raise DataError(f"--init: no state at {name}; {extent(self.times)}")
        return int(hit[0])

    def named(self, words: Sequence[str]) -> list[str]:
        """Initial times in order: one time, ``2020-01-01T00``; a range first/last/every,
        ``2020-01/2020-12/24h``; or a number of held-out ones, ``val:16``.

        Raises:
            DataError: a time that is not in the data, or without enough states before it.
            RecipeError: text that cannot be parsed.
        """
        found = sorted(at for word in words for at in self._parse(word))
        for at in found:
            if any(self.after(at, -k) is None for k in range(1, self.inputs)):
                raise DataError(
                    f"--init: the model needs {self.inputs} states up to {self.name(at)}, and some "
                    "are not in the data; start later"
                )
        return [self.name(at) for at in found]

    def _parse(self, word: str) -> list[int]:
        split, colon, count = word.partition(":")
        if colon and split in ("val", "train") and count.isdigit():
            return self._spread(split, int(count))  # type: ignore[arg-type]
        first, *rest = word.split("/")
        if not rest:
            return [self.position(word)]
        if len(rest) != 2:
            raise RecipeError(
                f"--init {word!r}: a range is first/last/every, such as 2020/2020/24h"
            )
        begin = value_bounds(self.times, first, "--init")[0]
        end = value_bounds(self.times, rest[0], "--init")[1]
        times = self._seconds
        inside = np.flatnonzero((times >= begin) & (times < end))
        if not len(inside):
            raise DataError(f"--init {word!r}: no state in this range; {extent(self.times)}")
        every = duration(rest[1], f"--init {word!r}")
        if every.unit == "steps":
            return inside[:: every.amount].tolist()
        every.in_steps(self._opened.step, f"--init {word!r}")
        apart = [round(in_seconds(times[i] - times[inside[0]])) for i in inside]
        return [int(i) for i, s in zip(inside, apart, strict=True) if s % every.seconds == 0]

    def _spread(self, split: Split, count: int) -> list[int]:
        known = self.starts(split)
        if not 1 <= count <= len(known):
            raise DataError(f"--init {split}:{count}: split {split} has {len(known)} starts")
        return [int(known[i * len(known) // count]) for i in range(count)]
