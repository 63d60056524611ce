"""Field metrics: Wasserstein distances, spectra, spread, correlations and copies of array samples.

    wasserstein.CHANNEL       Wasserstein-1 distance of all values, in units of the data
    relative_wasserstein      divided by the real standard deviation; mean and worst channel
    spread.CHANNEL            ratio of sampled to real standard deviation over items in a cell: 1
                              is ideal, 0 if all samples are the same
    spectrum.AXIS.CHANNEL     mean |log| of sampled over real power along an axis: 0 is ideal, 0.69
                              is a factor of two
    correlation_error         mean difference of the correlations between channels; and the worst
    sliced_wasserstein        of patches with all their channels, in standard deviations
    missing_error             mean difference of the fraction of items in which a cell is missing
    nearest_ratio             distance to the nearest real item, over that between real items
                              (medians): near 1 for new items, 0 for copies
    copied_share              fraction of samples nearer to a real item than a third of that

With more than eight channels (or channels times axes) only mean and worst are listed;
`scores_by_channel` has all. Missing cells are never filled: spectra use complete rows only,
distances use cells observed in both items. A score without such rows or cells is NaN.

For speed on data of any size, distributions use at most 1,000 real items (evenly spaced in order);
copies are searched among all. The parts of an item that are used, at positions drawn once with a
fixed seed, are limited by the constants of `summaries`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import is_
from typing import Any

import numpy as np

from jitkit.errors import DataError, listed
from jitkit.metrics.fields.spectra import Spectra
from jitkit.metrics.fields.summaries import (
    Correlations,
    Marginals,
    Nearest,
    Patches,
    Scale,
    Spread,
    linspace_indices,
    safe_divide,
)
from jitkit.metrics.metric import Metric, lower_is_better
from jitkit.utils.types import Array

FieldSummaries = dict[str, Array]

MAX_LISTED = 8  # lines per kind of score
MAX_REFERENCE_ITEMS = 1000  # real items in the reference distributions
BEST_AS_REAL = frozenset(
    {"spread", "nearest_ratio", "copied_share"}
)  # best is the value of real items
COPY_RATIO = 1 / 3  # Gu et al. 2023, arXiv:2310.02664: a third of the second nearest distance
BLOCK = 64  # items per batch of summaries
MAX_CACHED_ITEMS = 20_000  # items with cached summaries


def field_metrics(channels: Sequence[str], axes: Sequence[tuple[str, str]]) -> dict[str, Metric]:
    """Metrics for arrays (C, X1..Xn), by name; each maps samples and real items to a number.

    Items are objects with ``values`` (C, X1..Xn), physical units, NaN missing, of the same shape.
    An item is summarised once, and the metrics of one call share these summaries: get them all
    from one call, and do not modify items in between.

    Args:
        channels: C names.
        axes: name and kind (``"line"`` or ``"circle"``) of X1..Xn.

    Raises:
        DataError: (a metric) no items, or items of another shape.
    """
    scorer = _Scorer(channels, axes)
    metrics: dict[str, Metric] = {}

    def add(name: str, kind: str, reduce: Callable[[Array], float]) -> None:
        metric = partial(scorer.score, kind=kind, reduce=reduce)
        metrics[name] = metric if kind in BEST_AS_REAL else lower_is_better(metric)

    few = len(channels) <= MAX_LISTED
    if few:
        for i, channel in enumerate(channels):
            add(f"wasserstein.{channel}", "wasserstein", partial(_entry, i))
    _mean_and_worst(add, "relative_wasserstein", len(channels))
    if few:
        for i, channel in enumerate(channels):
            add(f"spread.{channel}", "spread", partial(_entry, i))
    else:
        _mean_and_worst(add, "spread_error", len(channels))
    for axis, _ in axes:
        if 1 < len(channels) and len(channels) * len(axes) <= MAX_LISTED:
            for i, channel in enumerate(channels):
                add(f"spectrum.{axis}.{channel}", f"spectrum.{axis}", partial(_entry, i))
        else:
            _mean_and_worst(add, f"spectrum.{axis}", len(channels))
    if len(channels) > 1:
        add("correlation_error", "correlation_error", _mean)
        add("correlation_error_worst", "correlation_error", _worst)
    for name in ("sliced_wasserstein", "missing_error", "nearest_ratio", "copied_share"):
        add(name, name, _mean)
    return metrics


def scores_by_channel(
    samples: Sequence[Any],
    reference: Sequence[Any],
    channels: Sequence[str],
    axes: Sequence[tuple[str, str]],
) -> dict[str, dict[str, float]]:
    """Scores of each channel, by channel and name, for a report or to find the worst channel.

    Also ``rows.AXIS``, the number of sample rows in the spectrum along an axis.
    """
    metrics = _Scorer(channels, axes).against(reference).metrics
    kinds = [f"{what}.{axis}" for axis, _ in axes for what in ("spectrum", "rows")]
    names = ["wasserstein", "relative_wasserstein", "spread", *kinds]
    scores = {name: metrics[name](samples) for name in names}
    return {
        channel: {name: float(values[i]) for name, values in scores.items()}
        for i, channel in enumerate(channels)
    }


def _entry(i: int, values: Array) -> float:
    return float(values[i])


def _mean(values: Array) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")


def _worst(values: Array) -> float:
    known = values[np.isfinite(values)]
    return float(known.max()) if known.size else float("nan")


def _mean_and_worst(
    add: Callable[[str, str, Callable[[Array], float]], None], name: str, channels: int
) -> None:
    """Add mean and worst as two metrics; for a single channel as one."""
    if channels == 1:
        return add(name, name, _mean)
    add(f"{name}_mean", name, _mean)
    return add(f"{name}_worst", name, _worst)


class _Scorer:
    """Scores against a reference, whose summaries are cached until the reference changes."""

    def __init__(self, channels: Sequence[str], axes: Sequence[tuple[str, str]]) -> None:
        self.channels, self.axes = tuple(channels), tuple(axes)
        self._source: Sequence[Any] | None = None
        self._items: list[Any] = []  # kept alive, so that ids stay unique
        self._cached: _Reference | None = None

    def score(
        self,
        samples: Sequence[Any],
        reference: Sequence[Any],
        *,
        kind: str,
        reduce: Callable[[Array], float],
    ) -> float:
        return reduce(self.against(reference).metrics[kind](samples))

    def against(self, reference: Sequence[Any]) -> _Reference:
        """Summaries of a reference, computed again if it is not the last one."""
        if self._cached is None or not self._same(reference):
            self._cached = None  # free memory before the next one is built
            self._source, self._items = reference, list(reference)
            self._cached = _Reference(self._items, self.channels, self.axes)
        return self._cached

    def _same(self, reference: Sequence[Any]) -> bool:
        if self._source is not reference:
            return False
        if not isinstance(reference, list):  # its items may be new objects at each access
            return True
        return len(reference) == len(self._items) and all(map(is_, reference, self._items))


class _Reference:
    """Summaries of one reference and of the samples scored against it."""

    def __init__(
        self, reference: list[Any], channels: tuple[str, ...], axes: tuple[tuple[str, str], ...]
    ) -> None:
        self.shape = _shape(reference, channels, axes)
        rng = np.random.default_rng(0)
        values = _values(reference, self.shape)
        real = [values[i] for i in linspace_indices(len(values), MAX_REFERENCE_ITEMS)]
        self.scale = scale = Scale(real, rng)
        num = len(channels)
        self.marginals = Marginals(scale.real, max(32, min(256, 2048 // num)))
        self.spread, self.correlations = Spread(num), Correlations(num, rng)
        self.spectra = {
            axis: Spectra(real, i, kind, scale, rng) for i, (axis, kind) in enumerate(axes)
        }
        self.patches = Patches(real, [kind for _, kind in axes], scale, rng, bins=64)
        self.nearest = Nearest(values, scale)
        self._rows: dict[int, int] = {}
        self._items: list[Any] = []
        self._summaries: FieldSummaries = {}
        sums = [self._summarise(block) for block in _blocks(real)]
        self.num_real = len(real)
        self._real = {k: np.sum([s[k].sum(axis=0) for s in sums], axis=0) for k in sums[0]}
        self.metrics: dict[str, Callable[[Sequence[Any]], Array]] = {
            "wasserstein": lambda samples: self._wasserstein(samples) * scale.divisor[:, 0],
            "relative_wasserstein": lambda samples: np.where(
                scale.std[:, 0] > 0, self._wasserstein(samples), np.nan
            ),
            "spread": self._spread,
            "spread_error": lambda samples: np.abs(_log(self._spread(samples))),
            "correlation_error": self._correlation_error,
            "sliced_wasserstein": self._sliced_wasserstein,
            "missing_error": self._missing_error,
            "nearest_ratio": self._nearest_ratio,
            "copied_share": self._copied_share,
        }
        for axis in self.spectra:
            self.metrics[f"spectrum.{axis}"] = partial(self._spectrum, axis)
            self.metrics[f"rows.{axis}"] = partial(self._num_rows, axis)

    def _wasserstein(self, samples: Sequence[Any]) -> Array:
        return self.marginals.distances(*self._totals("marginals", samples))

    def _spread(self, samples: Sequence[Any]) -> Array:
        return self.spread.ratios(*self._totals("spread", samples))

    def _spectrum(self, axis: str, samples: Sequence[Any]) -> Array:
        logs = self.spectra[axis].log_ratios(*self._totals(f"spectrum.{axis}", samples))
        known = np.isfinite(logs)
        return safe_divide(np.abs(np.where(known, logs, 0)).sum(axis=1), known.sum(axis=1))

    def _num_rows(self, axis: str, samples: Sequence[Any]) -> Array:
        return self.spectra[axis].num_rows(self._totals(f"spectrum.{axis}", samples)[0])

    def _correlation_error(self, samples: Sequence[Any]) -> Array:
        a, b = map(self.correlations.correlations, self._totals("correlations", samples))
        return np.abs(a - b)

    def _sliced_wasserstein(self, samples: Sequence[Any]) -> Array:
        return self.patches.marginals.distances(*self._totals("patches", samples))

    def _missing_error(self, samples: Sequence[Any]) -> Array:
        a, b = self._totals("spread", samples)
        return np.abs(self.spread.missing(a, len(samples)) - self.spread.missing(b, self.num_real))

    def _nearest_ratio(self, samples: Sequence[Any]) -> Array:
        return safe_divide(_median(self._distances(samples)), self.nearest.typical)

    def _copied_share(self, samples: Sequence[Any]) -> Array:
        distances = self._distances(samples)
        known = np.isfinite(distances)
        near = distances[known] < COPY_RATIO * self.nearest.typical
        return safe_divide(near.sum(), int(known.sum()) if np.isfinite(self.nearest.typical) else 0)

    def _distances(self, samples: Sequence[Any]) -> Array:
        rows = self._rows_of(samples)
        return self._summaries["nearest"][rows, 0]

    def _totals(self, name: str, samples: Sequence[Any]) -> tuple[Array, Array]:
        """Sums of a summary over the samples and over the real items."""
        rows = self._rows_of(samples)
        summaries = self._summaries[name]
        weights = np.bincount(rows, minlength=len(summaries)).astype(np.float32)
        return weights @ summaries, self._real[name]

    def _rows_of(self, samples: Sequence[Any]) -> Array:
        """Row indices of the samples' summaries; new samples are summarised first."""
        items = list(samples)
        if not items:
            raise DataError("no samples to score")
        new = {id(item): item for item in items if id(item) not in self._rows}
        if len(self._items) + len(new) > MAX_CACHED_ITEMS and self._items:
            self._rows, self._items, self._summaries = {}, [], {}
            new = {id(item): item for item in items}
        if new:
            self._append(list(new.values()))
        return np.array([self._rows[id(item)] for item in items], int)

    def _append(self, items: list[Any]) -> None:
        blocks = [self._summarise(block) for block in _blocks(_values(items, self.shape))]
        for name in blocks[0]:
            old = [self._summaries[name]] if name in self._summaries else []
            self._summaries[name] = np.concatenate([*old, *(block[name] for block in blocks)])
        self._rows |= {id(item): len(self._items) + i for i, item in enumerate(items)}
        self._items += items

    def _summarise(self, items: Sequence[Array]) -> FieldSummaries:
        cells = self.scale.cell_values(items)
        return {
            "marginals": self.marginals.summarise(cells),
            "spread": self.spread.summarise(cells),
            "correlations": self.correlations.summarise(cells),
            "patches": self.patches.summarise(items),
            "nearest": self.nearest.summarise(cells)[:, None],
        } | {f"spectrum.{axis}": spectra.summarise(items) for axis, spectra in self.spectra.items()}


def _blocks(items: Sequence[Array]) -> Iterator[Sequence[Array]]:
    for i in range(0, len(items), BLOCK):
        yield items[i : i + BLOCK]


def _shape(
    items: Sequence[Any], channels: tuple[str, ...], axes: tuple[tuple[str, str], ...]
) -> tuple[int, ...]:
    """The shape of the items' values, checked against channels and axes."""
    if not items:
        raise DataError("no real items to compare samples with")
    shape: tuple[int, ...] = np.shape(items[0].values)
    if len(shape) != len(axes) + 1 or shape[0] != len(channels):
        raise DataError(
            f"values of shape {shape} are not {len(channels)} channels on {len(axes)} axes "
            f"({listed(name for name, _ in axes)})"
        )
    return shape


def _values(items: Sequence[Any], shape: tuple[int, ...]) -> list[Array]:
    values = [np.asarray(item.values) for item in items]
    for i, array in enumerate(values):
        if array.shape != shape:
            raise DataError(
                f"item {i} has values of shape {array.shape}, and the first real item {shape}; "
                f"scores compare items of the same shape"
            )
    return values


def _median(values: Array) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else float("nan")


def _log(ratios: Array) -> Array:
    """Log of ratios, clamped at log 1e-6; NaN stays NaN."""
    return np.log(np.fmax(ratios, 1e-6) + 0 * ratios)
