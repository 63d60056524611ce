"""What the numbers of a data set are like, measured in one pass, and their way to unit variance.

    blocks (n, C, X1..Xn) ─ Accumulator.add ─▶ count, mean, std, min, max ─ result ─▶ Statistics
    values, physical ─ transform ─ subtract center, divide by spread ─▶ values about 0, variance 1

How the numbers are gathered is in `jitkit.domains.arrays.moments`; what a transform is, in
`jitkit.domains.arrays.transforms`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, get_args

import numpy as np

from jitkit.domains.arrays.normalize.moments import ChannelMoments, Normalize, check_allowed
from jitkit.domains.arrays.normalize.transforms import GREATEST, Transform
from jitkit.errors import DataError, RecipeError, listed, nearest
from jitkit.utils import cache
from jitkit.utils.types import Array

TransformLike = Transform | str | Mapping[str, float]

STATISTICS_FORMAT = 1  # of metadata
EXACT = 1e-12  # shares of counts are no further apart by rounding


@dataclass(frozen=True, eq=False)
class Statistics:
    """What the channels of a data set are like, and `encode`, `decode` by it.

    Numbers are float64, one for each channel, over all cells and items. ``normalize`` says what
    `encode` does with transformed values y, as (y - center) / spread:

    - ``standard``: center is the mean, spread the standard deviation (of the population);
    - ``minmax``: the least value becomes -1, the greatest 1;
    - ``robust``: center is the median, spread the interquartile range / 1.349, which is the
      standard deviation of Gaussian data. Quantiles of up to 8,192 values are exact; for each
      doubling past that their rank may be off by 0.006 % of the count, 0.11 % for a billion
      (`jitkit.domains.arrays.quantiles`);
    - ``none``: 0 and 1.

    With statistics of each cell, `encode` subtracts the cell's own mean and divides by its own
    standard deviation. A cell that does not vary, or was observed once, is divided by the
    channel's standard deviation instead. A cell that was never observed is NaN, before and after.

    Attributes:
        channels: their names, C of them.
        transforms: what is done to each before it is normalized.
        normalize: how.
        count: observed values, int64.
        missing: share of values that are missing, 0 to 1.
        mean, std, min, max: of the observed values, in units of the data.
        center, spread: of the transformed values, (C,).
        differences: standard deviation of y[step + 1] - y[step] in a cell, y transformed; None
            where it was not measured, NaN where no two steps followed each other.
        observed: bool, (C, X1..Xn), True where a cell was ever observed; None where all were.
        cell_shift, cell_ratio: (mean of a cell - center) / spread and its standard deviation over
            spread, float32, (C, X1..Xn), NaN where never observed; None unless asked.
    """

    channels: tuple[str, ...]
    transforms: tuple[Transform, ...]
    normalize: Normalize
    count: Array
    missing: Array
    mean: Array
    std: Array
    min: Array
    max: Array
    center: Array
    spread: Array
    differences: Array | None = None
    observed: Array | None = None
    cell_shift: Array | None = None
    cell_ratio: Array | None = None

    def sometimes_missing(self) -> Array:
        """Channels, (C,) bool, that lack more values than those of cells never observed."""
        never = np.zeros(len(self.channels))
        if self.observed is not None:
            never = 1 - self.observed.reshape(len(self.channels), -1).mean(axis=1)
        return np.asarray(self.missing - never > EXACT)

    @classmethod
    def measure(
        cls,
        blocks: Iterable[Array],
        channels: Sequence[str],
        *,
        transforms: Mapping[str, TransformLike] | None = None,
        normalize: Normalize = "standard",
        per_cell: bool = False,
        differences: bool = False,
    ) -> Statistics:
        """Statistics of all blocks, each looked at once.

        Args:
            blocks: (n, C, X1..Xn) in physical units, NaN where missing; n may change between
                blocks, the grid may not. For ``differences`` they are consecutive in time.
            channels: their names, C of them.
            transforms: by channel; none where not given.
            normalize: see the class.
            per_cell: measure mean and standard deviation of each cell, too.
            differences: measure the differences between consecutive steps, too.

        Raises:
            RecipeError: a setting that cannot be meant.
            DataError: a block of another shape, infinite values, values that a transform does not
                take; a channel that has no values or no variance. The text names the channel.
        """
        accumulator = Accumulator(
            channels,
            transforms=transforms,
            normalize=normalize,
            per_cell=per_cell,
            differences=differences,
        )
        for block in blocks:
            accumulator.add(block)
        return accumulator.result()

    @property
    def cell_mean(self) -> Array | None:
        """Mean of the transformed values of each cell, float64, (C, X1..Xn); None unless asked."""
        if self.cell_shift is None:
            return None
        center, spread = (_beside(x, self.cell_shift) for x in (self.center, self.spread))
        return center + spread * self.cell_shift

    @property
    def cell_std(self) -> Array | None:
        """What `encode` divides each cell by, in transformed units, float64, (C, X1..Xn)."""
        if self.cell_ratio is None:
            return None
        return _beside(self.spread, self.cell_ratio) * self.cell_ratio

    def encode(self, values: Array) -> Array:
        """Physical values to float32 numbers of about unit variance; NaN stays NaN.

        Args:
            values: (C, ..., X1..Xn), in units of the data. Axes between the channels and the grid,
                such as steps of a window, are welcome.

        Raises:
            DataError: a value that its channel's transform does not take.
        """
        self._check(values)
        out = np.empty(values.shape, np.float32)
        for c, (transform, x) in enumerate(zip(self.transforms, values, strict=True)):
            if transform.name != "none":
                check_allowed(self.channels[c], transform, _least(x))
            y = transform.forward(x.astype(np.float64))
            y = (y - self.center[c]) / self.spread[c]
            if self.cell_shift is not None and self.cell_ratio is not None:
                y = (y - self.cell_shift[c]) / self.cell_ratio[c]
            out[c] = y
        return out

    def decode(self, values: Array) -> Array:
        """Undo `encode`: float32, in units of the data; NaN stays NaN.

        Exact up to the rounding of float32, of the encoded numbers and of the result. What a
        transform could not have made is clipped: below 0 for log1p and sqrt (or below the least
        value that was measured, where log1p met some under 0), and what float32 cannot hold.

        Args:
            values: (C, ..., X1..Xn), as `encode` gives them or a network guesses them.
        """
        self._check(values)
        out = np.empty(values.shape, np.float32)
        for c, (transform, x) in enumerate(zip(self.transforms, values, strict=True)):
            y = x.astype(np.float64)
            if self.cell_shift is not None and self.cell_ratio is not None:
                y = y * self.cell_ratio[c] + self.cell_shift[c]
            y = transform.backward(y * self.spread[c] + self.center[c], float(self.min[c]))
            out[c] = np.clip(y, -GREATEST, GREATEST)
        return out

    def metadata(self) -> dict[str, Any]:
        """Everything, as plain JSON; arrays of cells, where there are any, are numpy arrays."""
        metadata: dict[str, Any] = {"format": STATISTICS_FORMAT}
        for field in fields(self):
            value = getattr(self, field.name)
            is_list = isinstance(value, np.ndarray) and field.name not in _CELLS
            metadata[field.name] = value.tolist() if is_list else value
        metadata["channels"] = list(self.channels)
        metadata["transforms"] = [[t.name, t.scale] for t in self.transforms]
        return metadata

    @classmethod
    def from_facts(cls, metadata: Mapping[str, Any]) -> Statistics:
        """Undo `metadata`.

        Raises:
            DataError: they are of another format, or do not fit together.
        """
        if metadata.get("format") != STATISTICS_FORMAT:
            raise DataError(
                f"statistics of format {metadata.get('format')!r}, this version reads {STATISTICS_FORMAT}; "
                "measure them again"
            )
        try:
            given = {field.name: metadata[field.name] for field in fields(cls)}
            given["channels"] = tuple(given["channels"])
            given["transforms"] = tuple(Transform(*pair) for pair in given["transforms"])
            for name in _NUMBERS:
                if given[name] is not None:
                    dtype = np.int64 if name == "count" else np.float64
                    given[name] = np.asarray(given[name], dtype)
            for name, dtype in _CELLS.items():
                if given[name] is not None:
                    given[name] = np.asarray(given[name], dtype)
            statistics = cls(**given)
            statistics._check_whole()
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"statistics that do not fit together: {error!r}") from error
        return statistics

    def _check(self, values: Array) -> None:
        if len(values) != len(self.channels):
            raise DataError(
                f"values of shape {values.shape}: the first axis has {len(values)} channels, the "
                f"statistics {len(self.channels)} ({listed(self.channels)})"
            )

    def _check_whole(self) -> None:
        """All parts belong together; `from_facts` calls it on what came from a file."""
        num = len(self.channels)
        if self.normalize not in get_args(Normalize) or len(self.transforms) != num:
            raise ValueError(f"normalize {self.normalize!r}, transforms {self.transforms}")
        for name in _NUMBERS:
            value = getattr(self, name)
            if np.shape(value) != (num,) and (value is not None or name != "differences"):
                raise ValueError(f"{name} has shape {np.shape(value)}, not {(num,)}")
        cells = [x for name in _CELLS if (x := getattr(self, name)) is not None]
        if any(x.shape != cells[0].shape or len(x) != num for x in cells):
            raise ValueError(f"arrays of cells have shapes {[x.shape for x in cells]}")
        if (self.cell_shift is None) != (self.cell_ratio is None):
            raise ValueError("one of cell_shift and cell_ratio alone")


_CELLS: dict[str, Any] = {"observed": np.bool_, "cell_shift": np.float32, "cell_ratio": np.float32}
_NUMBERS = ("count", "missing", "mean", "std", "min", "max", "center", "spread", "differences")


class Accumulator:
    """Statistics of a stream, block by block; memory is bounded by the grid, not by the stream.

    Several threads may add at once where each adds other channels (`add_channel`). Accumulators of
    parts of the data can be merged.

    Args: as `Statistics.measure` has them.
    """

    def __init__(
        self,
        channels: Sequence[str],
        *,
        transforms: Mapping[str, TransformLike] | None = None,
        normalize: Normalize = "standard",
        per_cell: bool = False,
        differences: bool = False,
    ) -> None:
        self.channels = tuple(channels)
        self.normalize: Normalize = normalize
        self.per_cell = per_cell
        self.differences = differences
        self._check_settings(transforms or {})
        self._each = {
            name: ChannelMoments(
                name,
                Transform.of((transforms or {}).get(name, "none")),
                robust=normalize == "robust",
                per_cell=per_cell,
                differences=differences,
            )
            for name in self.channels
        }

    def add(self, block: Array, *, follows: bool = True) -> None:
        """Take in a block, (n, C, X1..Xn), physical, NaN where missing.

        Args:
            block: items or steps.
            follows: the first step comes right after the last of the block before; matters for
                differences alone.

        Raises:
            DataError: another number of channels or another grid, infinite values, or values that
                a transform does not take.
        """
        if block.ndim < 2 or block.shape[1] != len(self.channels):
            raise DataError(
                f"a block of shape {block.shape} is not (n, {len(self.channels)}, X1..Xn) for the "
                f"channels {listed(self.channels)}"
            )
        for c, name in enumerate(self.channels):
            self.add_channel(name, block[:, c], follows=follows)

    def add_channel(self, name: str, values: Array, *, follows: bool = True) -> None:
        """Take in values of one channel, (n, X1..Xn); else as `add`."""
        self._each[name].add(values, follows)

    def merge(self, other: Accumulator) -> None:
        """Take in all that another with the same settings has seen."""
        assert self.channels == other.channels and self.normalize == other.normalize
        for name, mine in self._each.items():
            mine.merge(other._each[name])

    def result(self) -> Statistics:
        """The statistics of all that was added.

        Raises:
            DataError: channels without values or variance, all of them named.
        """
        each = list(self._each.values())
        wrong = [text for channel in each if (text := channel.unusable(self.normalize))]
        if wrong:
            lines = "".join(f"\n  {text}" for text in wrong)
            raise DataError(f"{len(wrong)} of {len(each)} channels cannot be used:{lines}")
        places = [channel.center_and_spread(self.normalize) for channel in each]
        center, spread = (np.array(x, np.float64) for x in zip(*places, strict=True))
        steps = [float(c.steps.std) for c in each if c.steps is not None]
        return Statistics(
            channels=self.channels,
            transforms=tuple(c.transform for c in each),
            normalize=self.normalize,
            count=np.array([int(c.physical.count) for c in each], np.int64),
            missing=np.array([1 - int(c.physical.count) / c.total for c in each]),
            mean=np.array([float(c.physical.mean) for c in each]),
            std=np.array([float(c.physical.std) for c in each]),
            min=np.array([c.low for c in each]),
            max=np.array([c.high for c in each]),
            center=center,
            spread=spread,
            differences=np.array(steps) if self.differences else None,
            **self._cells(each, center, spread),
        )

    def _cells(
        self, each: Sequence[ChannelMoments], center: Array, spread: Array
    ) -> dict[str, Array]:
        """The arrays of cells, (C, X1..Xn)."""
        grids = {c.grid for c in each}
        if len(grids) > 1:
            raise DataError(f"channels lie on different grids: {sorted(map(str, grids))}")
        shape = (len(each), *(each[0].grid or ()))
        observed = np.stack([c.observed for c in each])
        found = {} if observed.all() else {"observed": observed.reshape(shape)}
        if self.per_cell:
            pairs = [c.cell_units(center[i], spread[i]) for i, c in enumerate(each)]
            shift, ratio = zip(*pairs, strict=True)
            found["cell_shift"] = np.stack(shift).reshape(shape)
            found["cell_ratio"] = np.stack(ratio).reshape(shape)
        return found

    def _check_settings(self, transforms: Mapping[str, TransformLike]) -> None:
        if len(set(self.channels)) != len(self.channels) or not self.channels:
            raise DataError(f"channels need different names: {listed(self.channels)}")
        for name in transforms:
            if name not in self.channels:
                raise RecipeError(
                    f"a transform for {name!r}, which is no channel; there are "
                    f"{listed(self.channels)}{nearest(name, self.channels)}"
                )
        known = get_args(Normalize)
        if self.normalize not in known:
            near = nearest(str(self.normalize), known)
            raise RecipeError(f"normalize {self.normalize!r} is not {listed(known)}{near}")
        if self.per_cell and self.normalize != "standard":
            raise RecipeError(
                f"per_cell divides each cell by its own standard deviation, which goes with "
                f"normalize standard, not {self.normalize}"
            )


def _least(x: Array) -> float:
    """The least of all values but NaN; infinite where there is none."""
    return float(np.fmin.reduce(x, axis=None, initial=np.inf))


def _beside(numbers: Array, cells: Array) -> Array:
    """Numbers of channels, (C,), in the rank of arrays of cells, (C, 1..1)."""
    return numbers.reshape(-1, *[1] * (cells.ndim - 1))


def load_or_measure(key: str, make: Callable[[], Statistics]) -> Statistics:
    """Statistics from the cache, or measured by ``make`` and kept there for the next time.

    The cache is the folder ``statistics`` in $JITKIT_CACHE, or in ~/.cache/jitkit. A file that is
    torn, of another key or of another version is measured again and replaced. Where the folder
    cannot be written nothing is kept. Files are written aside and renamed, so that several
    processes may measure at once.

    Args:
        key: says which data and which settings: a hash of all that the statistics depend on.
        make: measures them.
    """
    kept = cache.load("statistics", key)
    if kept is not None:
        try:
            return Statistics.from_facts(kept)
        except DataError:  # of another version, which measuring again mends
            pass
    found = make()
    cache.save("statistics", key, found.metadata())
    return found
