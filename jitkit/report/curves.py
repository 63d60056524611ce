"""Training curves: metrics of a run, read in one pass and downsampled for charts.

A long run has millions of lines. They go into 300 buckets of equal width in steps. When the steps
outgrow the buckets, these are merged in pairs. So memory does not grow with the run, and each
bucket has mean, minimum and maximum of its values.
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

BINS = 10  # of t, in the logged losses; as in `validation`, which would load torch
LOSSES = (
    *("loss", "gradient", "lr", "val_loss"),
    *(f"{name}/{k}" for name in ("loss_bins", "val_loss_bins") for k in range(BINS)),
)
SPEEDS = ("samples_per_second", "tflops", "peak_share", "waiting_share", "memory_gib")
BUCKETS = 300
CHUNK = 2048  # lines that are put into buckets at once
SMOOTHED = 0.02  # window of the moving average, as a fraction of the run
MAX_REASONS = 5  # skipped steps whose reason is kept


@dataclass(frozen=True)
class Curve:
    """One series over the buckets that hold any of its values, in order; all (N,)."""

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
    """Content of a metrics file, as read by `read_curves`."""

    curves: Buckets
    last_step: int = 0
    torn: int = 0
    """Unreadable lines, except the last one."""
    skipped: int = 0
    reasons: list[tuple[int, str]] = field(default_factory=list)
    """The first skipped steps, each with the reason for skipping it."""
    lowest: dict[str, Point] = field(default_factory=dict)
    final: dict[str, Point] = field(default_factory=dict)
    """Lowest and last value of each series."""


class Buckets:
    """Sums of several series over buckets of steps; the bucket width doubles as needed."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.width = 1
        shape = (BUCKETS, len(names))
        self._count, self._sum, self._step = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        self._low, self._high = np.full(shape, np.inf), np.full(shape, -np.inf)

    def add(self, steps: NDArray[np.int64], values: Floats) -> None:
        """Put lines into their buckets.

        Args:
            steps: (N,), not negative.
            values: (N, S) in the order of the names; values that are not finite are ignored.
        """
        while steps.max() // self.width >= BUCKETS:
            self._merge_pairs()
        bucket = steps // self.width
        order = np.argsort(bucket, kind="stable")
        filled, first = np.unique(bucket[order], return_index=True)
        values, steps = values[order], steps[order]
        finite = np.isfinite(values)
        self._count[filled] += np.add.reduceat(finite.astype(float), first)
        self._sum[filled] += np.add.reduceat(np.where(finite, values, 0), first)
        self._step[filled] += np.add.reduceat(finite * steps[:, None].astype(float), first)
        low = np.minimum.reduceat(np.where(finite, values, np.inf), first)
        high = np.maximum.reduceat(np.where(finite, values, -np.inf), first)
        self._low[filled] = np.minimum(self._low[filled], low)
        self._high[filled] = np.maximum(self._high[filled], high)

    def curve(self, name: str) -> Curve:
        """One series, without empty buckets."""
        k = self.names.index(name)
        full = self._count[:, k] > 0
        count = self._count[full, k]
        step, mean = self._step[full, k] / count, self._sum[full, k] / count
        return Curve(step, mean, self._low[full, k], self._high[full, k], count)

    def _merge_pairs(self) -> None:
        self.width *= 2
        for values, merge, empty in (
            (self._count, np.add, 0.0),
            (self._sum, np.add, 0.0),
            (self._step, np.add, 0.0),
            (self._low, np.minimum, np.inf),
            (self._high, np.maximum, -np.inf),
        ):
            merged = merge(values[::2], values[1::2])
            values[: BUCKETS // 2], values[BUCKETS // 2 :] = merged, empty


def read_curves(path: Path, names: Sequence[str], show: Show = lambda done: None) -> TrainingCurves:
    """Read ``metrics.jsonl`` or ``speed.jsonl``, also while it is being written.

    A missing file gives empty curves. Lines without an object with a step are skipped and counted,
    except the last, which may be half written.

    Args:
        names: of the series; ``loss_bins/3`` is the fourth number of list ``loss_bins``.
        show: called periodically with the number of bytes read.
    """
    history = TrainingCurves(Buckets(names))
    if not path.is_file():
        return history
    pairs = [(name, *_key_and_index(name)) for name in names]
    with path.open("rb") as file:
        torn = False
        while lines := list(islice(file, CHUNK)):
            steps, rows = [], []
            for line in lines:
                history.torn += torn
                parsed = _parse_line(line, pairs)
                torn = parsed is None
                if parsed is not None:
                    record, row = parsed
                    _add_record(history, record)
                    steps.append(record["step"])
                    rows.append(row)
            if rows:
                _add_values(
                    history, np.array(steps, dtype=np.int64), np.array(rows, dtype=np.float64)
                )
            show(file.tell())
    return history


def smooth(curve: Curve, steps: int) -> tuple[Floats, int]:
    """Moving average over a run's steps, (N,), and the window in steps.

    The window is `SMOOTHED` of the run, and at least 11 buckets if the run has that many. It is
    centred; towards the first step it shrinks on both sides, so that a steep start is not shifted,
    and at the last step it is cut.
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


def _key_and_index(name: str) -> tuple[str, int | None]:
    """Key of a record, and the index in its list if it has one."""
    key, _, index = name.partition("/")
    return key, int(index) if index else None


def _parse_line(
    line: bytes, pairs: Sequence[tuple[str, str, int | None]]
) -> tuple[Mapping[str, Any], list[float]] | None:
    """A line's object and the values of its series; None if it holds none."""
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
    for _, key, index in pairs:
        value = record.get(key)
        if index is not None:
            value = value[index] if isinstance(value, list) and index < len(value) else None
        yield float(value) if isinstance(value, int | float) else nan


def _add_record(history: TrainingCurves, record: Mapping[str, Any]) -> None:
    """Keep a record's step, and its reason if the step was skipped."""
    history.last_step = max(history.last_step, record["step"])
    if "skipped" in record:
        history.skipped += 1
        if len(history.reasons) < MAX_REASONS:
            history.reasons.append((record["step"], str(record["skipped"])))


def _add_values(history: TrainingCurves, steps: NDArray[np.int64], values: Floats) -> None:
    """Put values into the buckets, and keep the lowest and the last one of each series."""
    history.curves.add(steps, values)
    for k, name in enumerate(history.curves.names):
        finite = np.flatnonzero(np.isfinite(values[:, k]))
        if not len(finite):
            continue
        least = finite[np.argmin(values[finite, k])]
        lowest, last = (Point(int(steps[i]), float(values[i, k])) for i in (least, finite[-1]))
        before = history.lowest.get(name)
        if before is None or lowest.value < before.value:
            history.lowest[name] = lowest
        history.final[name] = last


def finite_number(value: Any) -> float | None:
    """A finite number, or None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and isfinite(value) else None


def get_mapping(record: Any, key: str) -> dict[str, Any]:
    """A record's value of a key if it is a mapping, else an empty one."""
    value = record.get(key)
    return value if isinstance(value, dict) else {}


def get_list(record: Any, key: str) -> list[Any]:
    """A record's value of a key if it is a list, else an empty one."""
    value = record.get(key)
    return value if isinstance(value, list) else []
