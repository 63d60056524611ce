"""The numbers that a run logged, read in one pass and thinned to what a chart can show.

A long run has millions of lines. They go into a few hundred buckets of equal width in steps, and
where the steps outgrow the buckets these are joined in pairs: memory does not grow with the run,
and each bucket knows mean, least and greatest of all that fell into it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import isfinite, nan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from jitkit.utils.types import Floats

Show = Callable[[int], None]

BINS = 10  # of t, in the logged losses (`validation`, which loads torch, has the same)
LOSSES = (
    *("loss", "gradient", "lr", "val_loss"),
    *(f"{name}/{k}" for name in ("loss_bins", "val_loss_bins") for k in range(BINS)),
)
SPEEDS = ("samples_per_second", "tflops", "peak_share", "waiting_share", "memory_gib")
BUCKETS = 300
CHUNK = 2048  # lines that are put into buckets at once
SMOOTHED = 0.02  # of a run, that a smoothed value is the mean of
NAMED = 5  # steps that were passed over, of those whose reason is kept


@dataclass(frozen=True)
class Curve:
    """One series: for each bucket that holds any of its values, in order; all (N,)."""

    step: Floats
    mean: Floats
    low: Floats
    high: Floats
    count: Floats


class Point(NamedTuple):
    """A value, and the step that it belongs to."""

    step: int
    value: float


@dataclass
class TrainingCurves:
    """What a file of one JSON object a line says, as `read` leaves it."""

    curves: Buckets
    last_step: int = 0
    torn: int = 0
    """Lines, but for the last, that hold no such object."""
    skipped: int = 0
    reasons: list[tuple[int, str]] = field(default_factory=list)
    """Steps that were passed over, the first of them, each with its reason."""
    lowest: dict[str, Point] = field(default_factory=dict)
    final: dict[str, Point] = field(default_factory=dict)
    """The least and the last value of each series."""


class Buckets:
    """Sums of several series over buckets of steps; the width doubles as steps outgrow them."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.width = 1
        shape = (BUCKETS, len(names))
        self._count, self._sum, self._step = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        self._low, self._high = np.full(shape, np.inf), np.full(shape, -np.inf)

    def add(self, steps: NDArray[np.int64], values: Floats) -> None:
        """Put lines into their buckets.

        Args:
            steps: (N,), none below 0.
            values: (N, S) in the order of the names; what is no finite number is left out.
        """
        while steps.max() // self.width >= BUCKETS:
            self._join_pairs()
        place = steps // self.width
        order = np.argsort(place, kind="stable")
        at, first = np.unique(place[order], return_index=True)
        values, steps = values[order], steps[order]
        there = np.isfinite(values)
        self._count[at] += np.add.reduceat(there.astype(float), first)
        self._sum[at] += np.add.reduceat(np.where(there, values, 0), first)
        self._step[at] += np.add.reduceat(there * steps[:, None].astype(float), first)
        low = np.minimum.reduceat(np.where(there, values, np.inf), first)
        high = np.maximum.reduceat(np.where(there, values, -np.inf), first)
        self._low[at] = np.minimum(self._low[at], low)
        self._high[at] = np.maximum(self._high[at], high)

    def curve(self, name: str) -> Curve:
        """One series, without the buckets that hold none of it."""
        k = self.names.index(name)
        full = self._count[:, k] > 0
        count = self._count[full, k]
        step, mean = self._step[full, k] / count, self._sum[full, k] / count
        return Curve(step, mean, self._low[full, k], self._high[full, k], count)

    def _join_pairs(self) -> None:
        self.width *= 2
        for values, join, empty in (
            (self._count, np.add, 0.0),
            (self._sum, np.add, 0.0),
            (self._step, np.add, 0.0),
            (self._low, np.minimum, np.inf),
            (self._high, np.maximum, -np.inf),
        ):
            joined = join(values[::2], values[1::2])
            values[: BUCKETS // 2], values[BUCKETS // 2 :] = joined, empty


def read(path: Path, names: Sequence[str], show: Show = lambda done: None) -> TrainingCurves:
    """Read ``metrics.jsonl`` or ``speed.jsonl``, also while it is being written.

    A missing file is an empty one. Lines that hold no object with a step are passed over and
    counted, but for the last, which a kill or a run that goes on may have left half written.

    Args:
        names: of the series; ``loss_bins/3`` is the fourth number of list ``loss_bins``.
        show: is told now and then how many bytes have been read.
    """
    history = TrainingCurves(Buckets(names))
    if not path.is_file():
        return history
    pairs = [(name, *_place(name)) for name in names]
    with path.open("rb") as file:
        torn = False
        while lines := list(islice(file, CHUNK)):
            steps, rows = [], []
            for line in lines:
                history.torn += torn
                parsed = _parsed(line, pairs)
                torn = parsed is None
                if parsed is not None:
                    record, row = parsed
                    _note(history, record)
                    steps.append(record["step"])
                    rows.append(row)
            if rows:
                _take(history, np.array(steps, dtype=np.int64), np.array(rows, dtype=np.float64))
            show(file.tell())
    return history


def smoothed(curve: Curve, steps: int) -> tuple[Floats, int]:
    """Means over a window of a run's steps, and how many steps that are.

    The window holds `SMOOTHED` of the run, and at least 11 buckets where the run has so many. It is
    centred; towards the first step it shrinks on both sides, so that a steep start stays where it
    is, and at the last it is cut.
    """
    n = len(curve.step)
    if n < 3:
        return curve.mean, 1
    width = max(1.0, steps / n)
    half = max(min(5, n // 8), round(SMOOTHED * steps / width / 2))
    i = np.arange(n)
    reach = np.minimum(half, i)
    first, last = i - reach, np.minimum(n - 1, i + reach)
    sums = np.concatenate([[0], np.cumsum(curve.mean * curve.count)])
    counts = np.concatenate([[0], np.cumsum(curve.count)])
    means = (sums[last + 1] - sums[first]) / (counts[last + 1] - counts[first])
    return means, round((2 * half + 1) * width)


def _place(name: str) -> tuple[str, int | None]:
    """Key of a record, and the place in its list where it holds one."""
    key, _, place = name.partition("/")
    return key, int(place) if place else None


def _parsed(
    line: bytes, pairs: Sequence[tuple[str, str, int | None]]
) -> tuple[Mapping[str, Any], list[float]] | None:
    """A line's object and its series; None where it holds none."""
    try:
        record = json.loads(line)
        step = record["step"]
        if not isinstance(step, int) or not 0 <= step < 2**53:
            return None
        return record, list(_row(record, pairs))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _row(
    record: Mapping[str, Any], pairs: Sequence[tuple[str, str, int | None]]
) -> Iterator[float]:
    for _, key, place in pairs:
        value = record.get(key)
        if place is not None:
            value = value[place] if isinstance(value, list) and place < len(value) else None
        yield float(value) if isinstance(value, int | float) else nan


def _note(history: TrainingCurves, record: Mapping[str, Any]) -> None:
    """Keep what is said of a line as a whole: its step, and that it was passed over."""
    history.last_step = max(history.last_step, record["step"])
    if "skipped" in record:
        history.skipped += 1
        if len(history.reasons) < NAMED:
            history.reasons.append((record["step"], str(record["skipped"])))


def _take(history: TrainingCurves, steps: NDArray[np.int64], values: Floats) -> None:
    """Put lines into the buckets, and keep the least and the last value of each series."""
    history.curves.add(steps, values)
    for k, name in enumerate(history.curves.names):
        found = np.flatnonzero(np.isfinite(values[:, k]))
        if not len(found):
            continue
        least = found[np.argmin(values[found, k])]
        points = [Point(int(steps[i]), float(values[i, k])) for i in (least, found[-1])]
        known = history.lowest.get(name)
        if known is None or points[0].value < known.value:
            history.lowest[name] = points[0]
        history.final[name] = points[1]


def finite(value: Any) -> float | None:
    """A number that is one, or None."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    return float(value) if good else None


def mapping(record: Any, key: str) -> dict[str, Any]:
    """What a record has under a key, where that is a mapping."""
    found = record.get(key)
    return found if isinstance(found, dict) else {}


def sequence(record: Any, key: str) -> list[Any]:
    """What a record has under a key, where that is a list."""
    found = record.get(key)
    return found if isinstance(found, list) else []
