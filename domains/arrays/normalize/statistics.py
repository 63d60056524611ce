"""Normalization statistics: mean, standard deviation, range and quantiles in one streaming pass.

    blocks (n, C, X1..Xn) ─ ChannelMoments.add ─▶ count, mean, std, min, max ─▶ Statistics
    values, physical ─ transform ─ subtract center, divide by spread ─▶ values about 0, variance 1

The sums are in `jitkit.domains.arrays.normalize.moments`, the transforms in
`jitkit.domains.arrays.normalize.transforms`.
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
ROUNDING = 1e-12  # of fractions of counts


@dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of the channels of a data set, with `encode` and `decode` based on them.

    Statistics are float64, one per channel, over all cells and items. `encode` normalizes the
    transformed values y as (y - center) / spread. With ``normalize``:

    - ``standard``: center is the mean, spread the (population) standard deviation;
    - ``minmax``: the minimum becomes -1, the maximum 1;
    - ``robust``: center is the median, spread the interquartile range / 1.349, which is the
      standard deviation of Gaussian data. Quantiles of up to 2^18 values are exact; beyond that
      the rank of the median has a standard error of 0.1 % of the count
      (`jitkit.domains.arrays.normalize.quantiles`);
    - ``none``: 0 and 1.

    With statistics per cell, `encode` subtracts the cell's mean and divides by the cell's standard
    deviation. A cell that does not vary, or was observed once, is divided by the channel's
    standard deviation instead. A cell that was never observed is NaN, before and after.

    Attributes:
        channels: names, C of them.
        transforms: of each channel, applied before normalization.
        normalize: kind of normalization.
        count: observed values, int64.
        missing: fraction of missing values, 0 to 1.
        mean, std, min, max: of the observed values, in units of the data.
        center, spread: of the transformed values, (C,).
        observed: bool, (C, X1..Xn), True where a cell was ever observed; None if all were.
        cell_shift, cell_ratio: (mean of a cell - center) / spread and its standard deviation over
            spread, float32, (C, X1..Xn), NaN where never observed; None unless requested.
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
    observed: Array | None = None
    cell_shift: Array | None = None
    cell_ratio: Array | None = None

    def sometimes_missing(self) -> Array:
        """Channels, (C,) bool, with missing values in cells that are observed at other times."""
        never_observed = np.zeros(len(self.channels))
        if self.observed is not None:
            never_observed = 1 - self.observed.reshape(len(self.channels), -1).mean(axis=1)
        return np.asarray(self.missing - never_observed > ROUNDING)

    @classmethod
    def measure(
        cls,
        blocks: Iterable[Array],
        channels: Sequence[str],
        *,
        transforms: Mapping[str, TransformLike] | None = None,
        normalize: Normalize = "standard",
        per_cell: bool = False,
    ) -> Statistics:
        """Statistics of all blocks, each read once.

        Args:
            blocks: (n, C, X1..Xn) in physical units, NaN where missing; n may change between
                blocks, the grid may not.
            channels: names, C of them.
            transforms: by channel; none by default.
            normalize: see the class.
            per_cell: also measure mean and standard deviation of each cell.

        Raises:
            RecipeError: an invalid setting.
            DataError: a block of another shape, infinite values, values outside a transform's
                domain, a channel without values or variance. The text names the channel.
        """
        transforms = transforms or {}
        _check_settings(channels, transforms, normalize, per_cell)
        moments = [
            ChannelMoments(
                name,
                Transform.of(transforms.get(name, "none")),
                robust=normalize == "robust",
                per_cell=per_cell,
            )
            for name in channels
        ]
        for block in blocks:
            if block.ndim < 2 or block.shape[1] != len(channels):
                raise DataError(
                    f"a block of shape {block.shape} is not (n, {len(channels)}, X1..Xn) for the "
                    f"channels {listed(channels)}"
                )
            for c, channel in enumerate(moments):
                channel.add(block[:, c])
        return cls._of(moments, normalize, per_cell)

    @classmethod
    def _of(
        cls, moments: Sequence[ChannelMoments], normalize: Normalize, per_cell: bool
    ) -> Statistics:
        """The statistics of measured channels.

        Raises:
            DataError: channels without values or variance; all are named.
        """
        problems = [text for m in moments if (text := m.problem(normalize))]
        if problems:
            lines = "".join(f"\n  {text}" for text in problems)
            raise DataError(f"{len(problems)} of {len(moments)} channels cannot be used:{lines}")
        pairs = [m.center_and_spread(normalize) for m in moments]
        center, spread = (np.array(x, np.float64) for x in zip(*pairs, strict=True))
        shape = (len(moments), *(moments[0].grid or ()))
        observed = np.stack([m.observed for m in moments])
        cells = {} if observed.all() else {"observed": observed.reshape(shape)}
        if per_cell:
            scalings = [m.cell_scaling(center[i], spread[i]) for i, m in enumerate(moments)]
            shift, ratio = zip(*scalings, strict=True)
            cells["cell_shift"] = np.stack(shift).reshape(shape)
            cells["cell_ratio"] = np.stack(ratio).reshape(shape)
        return cls(
            channels=tuple(m.name for m in moments),
            transforms=tuple(m.transform for m in moments),
            normalize=normalize,
            count=np.array([int(m.physical.count) for m in moments], np.int64),
            missing=np.array([1 - int(m.physical.count) / m.total for m in moments]),
            mean=np.array([float(m.physical.mean) for m in moments]),
            std=np.array([float(m.physical.std) for m in moments]),
            min=np.array([m.low for m in moments]),
            max=np.array([m.high for m in moments]),
            center=center,
            spread=spread,
            **cells,
        )

    def encode(self, values: Array) -> Array:
        """Normalize physical values: float32 with about unit variance; NaN stays NaN.

        Args:
            values: (C, ..., X1..Xn), in units of the data. There may be axes between the channels
                and the grid, such as the steps of a window.

        Raises:
            DataError: a value outside the domain of its channel's transform.
        """
        self._check(values)
        out = np.empty(values.shape, np.float32)
        for c, (transform, x) in enumerate(zip(self.transforms, values, strict=True)):
            if transform.name != "none":
                check_allowed(self.channels[c], transform, _minimum(x))
            y = transform.forward(x.astype(np.float64))
            y = (y - self.center[c]) / self.spread[c]
            if self.cell_shift is not None and self.cell_ratio is not None:
                y = (y - self.cell_shift[c]) / self.cell_ratio[c]
            out[c] = y
        return out

    def decode(self, values: Array) -> Array:
        """Undo `encode`: float32, in units of the data; NaN stays NaN.

        Exact up to the rounding to float32 of the encoded values and of the result. Values outside
        the range of a transform are clipped: below 0 for log1p and sqrt (for log1p below the
        measured minimum, if that is negative), and beyond the range of float32.

        Args:
            values: (C, ..., X1..Xn), from `encode` or predicted by a network.
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
        """All attributes as plain JSON; arrays per cell are numpy arrays."""
        metadata: dict[str, Any] = {"format": STATISTICS_FORMAT}
        for field in fields(self):
            value = getattr(self, field.name)
            is_list = isinstance(value, np.ndarray) and field.name not in _CELL_FIELDS
            metadata[field.name] = value.tolist() if is_list else value
        metadata["channels"] = list(self.channels)
        metadata["transforms"] = [[t.name, t.scale] for t in self.transforms]
        return metadata

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Statistics:
        """Undo `metadata`.

        Raises:
            DataError: another format, or inconsistent values.
        """
        if metadata.get("format") != STATISTICS_FORMAT:
            raise DataError(
                f"statistics of format {metadata.get('format')!r}, but this version reads "
                f"{STATISTICS_FORMAT}; measure them again"
            )
        try:
            values = {field.name: metadata[field.name] for field in fields(cls)}
            values["channels"] = tuple(values["channels"])
            values["transforms"] = tuple(Transform(*pair) for pair in values["transforms"])
            for name in _CHANNEL_FIELDS:
                dtype = np.int64 if name == "count" else np.float64
                values[name] = np.asarray(values[name], dtype)
            for name, dtype in _CELL_FIELDS.items():
                if values[name] is not None:
                    values[name] = np.asarray(values[name], dtype)
            statistics = cls(**values)
            statistics._check_consistent()
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"inconsistent statistics: {error!r}") from error
        return statistics

    def _check(self, values: Array) -> None:
        if len(values) != len(self.channels):
            raise DataError(
                f"values of shape {values.shape}: the first axis has {len(values)} channels, the "
                f"statistics {len(self.channels)} ({listed(self.channels)})"
            )

    def _check_consistent(self) -> None:
        """Check the shapes of all attributes after reading them from a file."""
        num = len(self.channels)
        if self.normalize not in get_args(Normalize) or len(self.transforms) != num:
            raise ValueError(f"normalize {self.normalize!r}, transforms {self.transforms}")
        for name in _CHANNEL_FIELDS:
            value = getattr(self, name)
            if np.shape(value) != (num,):
                raise ValueError(f"{name} has shape {np.shape(value)}, not {(num,)}")
        cells = [x for name in _CELL_FIELDS if (x := getattr(self, name)) is not None]
        if any(x.shape != cells[0].shape or len(x) != num for x in cells):
            raise ValueError(f"arrays per cell have shapes {[x.shape for x in cells]}")
        if (self.cell_shift is None) != (self.cell_ratio is None):
            raise ValueError("only one of cell_shift and cell_ratio")


_CELL_FIELDS: dict[str, Any] = {
    "observed": np.bool_,
    "cell_shift": np.float32,
    "cell_ratio": np.float32,
}
_CHANNEL_FIELDS = (
    "count",
    "missing",
    "mean",
    "std",
    "min",
    "max",
    "center",
    "spread",
)


def _check_settings(
    channels: Sequence[str],
    transforms: Mapping[str, TransformLike],
    normalize: Normalize,
    per_cell: bool,
) -> None:
    if len(set(channels)) != len(channels) or not channels:
        raise DataError(f"channels need distinct names: {listed(channels)}")
    for name in transforms:
        if name not in channels:
            raise RecipeError(
                f"a transform for {name!r}, which is not a channel; there are "
                f"{listed(channels)}{nearest(name, channels)}"
            )
    kinds = get_args(Normalize)
    if normalize not in kinds:
        near = nearest(str(normalize), kinds)
        raise RecipeError(f"normalize {normalize!r} is not {listed(kinds)}{near}")
    if per_cell and normalize != "standard":
        raise RecipeError(
            f"per_cell divides each cell by its standard deviation, which needs normalize "
            f"standard, not {normalize}"
        )


def _minimum(x: Array) -> float:
    """Minimum of all values that are not NaN; infinite if there are none."""
    return float(np.fmin.reduce(x, axis=None, initial=np.inf))


def load_or_measure(key: str, measure: Callable[[], Statistics]) -> Statistics:
    """Statistics from the cache, or measured and then cached.

    The cache is the folder ``statistics`` in $JITKIT_CACHE, or in ~/.cache/jitkit. If a file is
    damaged, has another key or another version, the statistics are measured again and the file is
    replaced. If the folder is not writable, nothing is cached. Files are written under a temporary
    name and renamed, so that several processes may measure at the same time.

    Args:
        key: hash of the data and all settings on which the statistics depend.
        measure: computes the statistics.
    """
    cached = cache.load_entry("statistics", key)
    if cached is not None:
        try:
            return Statistics.from_metadata(cached)
        except DataError:  # of another version: measure again
            pass
    statistics = measure()
    cache.save_entry("statistics", key, statistics.metadata())
    return statistics
