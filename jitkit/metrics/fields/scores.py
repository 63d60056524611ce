"""Scores for arrays of any kind: samples against real items, numbers in, numbers out.

    wasserstein.CHANNEL       Wasserstein-1 distance of all values, in units of the data
    relative_wasserstein      the same over the real standard deviation; mean and worst channel
    spread.CHANNEL            standard deviation over items in a cell, sampled over real: 1 is
                              right, 0 is a model that always says the same
    spectrum.AXIS.CHANNEL     mean |log| of sampled over real power along an axis: 0 is right, 0.69
                              is a factor of two
    correlation_error         mean difference of the correlations between channels; and the worst
    sliced_wasserstein        of patches with all their channels, in standard deviations
    missing_error             mean difference of the share of items in which a cell is missing
    nearest_ratio             distance to the nearest real item, over that of real items to the
                              others (medians): near 1 for new items, 0 for copies
    copied_share              share of samples nearer to a real item than a third of that distance

Of more than eight channels (or channels and axes) only mean and worst stand in the list;
`by_channel` has them all. Missing cells are never filled in: spectra are taken along complete rows
alone, distances over cells that both items know. A score without any such rows or cells is NaN.

Limits, so that a score takes seconds whatever the size of the data: distributions are compared with
at most 1,000 real items (evenly spaced in their order), copies looked for among all that are given.
How much of an item is looked at, in places drawn once with a fixed seed, stands at the head of
`fieldsummaries`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import is_
from typing import Any

import numpy as np

from jitkit.domain import Metric, lower_is_better
from jitkit.errors import DataError, listed
from jitkit.metrics.fields.spectra import Spectra
from jitkit.metrics.fields.summaries import (
    Correlations,
    Marginals,
    Nearest,
    Patches,
    Scale,
    Spread,
    divided,
    spaced,
)
from jitkit.utils.types import Array

FieldSummaries = dict[str, Array]

LISTED = 8  # lines of one kind of score that a table can show
REFERENCE = 1000  # real items that make up the reference's distributions
LIKE_REAL = frozenset({"spread", "nearest_ratio", "copied_share"})  # best is what real items have
COPY = 1 / 3  # Gu et al. 2023, arXiv:2310.02664, have a third of the second nearest distance
BLOCK = 64  # items summarised at once
REMEMBERED = 20_000  # items whose summaries are kept


def measures(channels: Sequence[str], axes: Sequence[tuple[str, str]]) -> dict[str, Metric]:
    """The measures of arrays (C, X1..Xn), by name; each takes samples and real items to a number.

    Items are anything with ``values`` (C, X1..Xn), physical units, NaN missing; those of one call
    must have one shape. An item is summarised once, when it is first seen, and what the measures of
    one call have found they share; so take them all from one call. Change no item in between.

    Args:
        channels: C names.
        axes: name and kind (``"line"`` or ``"circle"``) of X1..Xn.

    Raises:
        DataError: (a measure) there are no items, or items of another shape.
    """
    scorer = _Scorer(channels, axes)
    found: dict[str, Metric] = {}

    def add(name: str, number: str, reduce: Callable[[Array], float]) -> None:
        measure = partial(scorer.score, number=number, reduce=reduce)
        found[name] = measure if number in LIKE_REAL else lower_is_better(measure)

    few = len(channels) <= LISTED
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
        if 1 < len(channels) and len(channels) * len(axes) <= LISTED:
            for i, channel in enumerate(channels):
                add(f"spectrum.{axis}.{channel}", f"spectrum.{axis}", partial(_entry, i))
        else:
            _mean_and_worst(add, f"spectrum.{axis}", len(channels))
    if len(channels) > 1:
        add("correlation_error", "correlation_error", _mean)
        add("correlation_error_worst", "correlation_error", _worst)
    for name in ("sliced_wasserstein", "missing_error", "nearest_ratio", "copied_share"):
        add(name, name, _mean)
    return found


def by_channel(
    samples: Sequence[Any],
    reference: Sequence[Any],
    channels: Sequence[str],
    axes: Sequence[tuple[str, str]],
) -> dict[str, dict[str, float]]:
    """The numbers behind `measures` that belong to a channel, by channel and name.

    For a report, or to find the worst channel; besides, ``rows.AXIS``, how many rows of samples
    went into the spectrum along an axis.
    """
    numbers = _Scorer(channels, axes).against(reference).numbers
    kinds = [f"{what}.{axis}" for axis, _ in axes for what in ("spectrum", "rows")]
    kept = ["wasserstein", "relative_wasserstein", "spread", *kinds]
    found = {name: numbers[name](samples) for name in kept}
    return {
        channel: {name: float(values[i]) for name, values in found.items()}
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
    """Both of them under names of their own; for one channel they are one."""
    if channels == 1:
        return add(name, name, _mean)
    add(f"{name}_mean", name, _mean)
    return add(f"{name}_worst", name, _worst)


class _Scorer:
    """Numbers of samples against the last reference that was asked for."""

    def __init__(self, channels: Sequence[str], axes: Sequence[tuple[str, str]]) -> None:
        self.channels, self.axes = tuple(channels), tuple(axes)
        self._source: Sequence[Any] | None = None
        self._items: list[Any] = []  # held, so that no other item comes to have one's id
        self._found: _Against | None = None

    def score(
        self,
        samples: Sequence[Any],
        reference: Sequence[Any],
        *,
        number: str,
        reduce: Callable[[Array], float],
    ) -> float:
        return reduce(self.against(reference).numbers[number](samples))

    def against(self, reference: Sequence[Any]) -> _Against:
        """What was found in a reference; found anew where it is not the one of last time."""
        if self._found is None or not self._same(reference):
            self._found = None  # so that two are never held
            self._source, self._items = reference, list(reference)
            self._found = _Against(self._items, self.channels, self.axes)
        return self._found

    def _same(self, reference: Sequence[Any]) -> bool:
        if self._source is not reference:
            return False
        if not isinstance(reference, list):  # (whose items may be read anew each time)
            return True
        return len(reference) == len(self._items) and all(map(is_, reference, self._items))


class _Against:
    """Summaries of one reference, and of the samples that were held against it so far."""

    def __init__(
        self, reference: list[Any], channels: tuple[str, ...], axes: tuple[tuple[str, str], ...]
    ) -> None:
        self.shape = _shape(reference, channels, axes)
        rng = np.random.default_rng(0)
        values = _values(reference, self.shape)
        real = [values[i] for i in spaced(len(values), REFERENCE)]
        self.scale = scale = Scale(real, rng)
        num = len(channels)
        self.marginals = Marginals(scale.sample, max(32, min(256, 2048 // num)))
        self.spread, self.correlations = Spread(num), Correlations(num, rng)
        self.spectra = {
            axis: Spectra(real, i, kind, scale, rng) for i, (axis, kind) in enumerate(axes)
        }
        self.patches = Patches(real, [kind for _, kind in axes], scale, rng, bins=64)
        self.nearest = Nearest(values, scale)
        self._rows: dict[int, int] = {}
        self._held: list[Any] = []
        self._summaries: FieldSummaries = {}
        sums = [self._summarise(block) for block in _blocks(real)]
        self.num_real = len(real)
        self._real = {k: np.sum([s[k].sum(axis=0) for s in sums], axis=0) for k in sums[0]}
        self.numbers: dict[str, Callable[[Sequence[Any]], Array]] = {
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
            self.numbers[f"spectrum.{axis}"] = partial(self._spectrum, axis)
            self.numbers[f"rows.{axis}"] = partial(self._num_rows, axis)

    def _wasserstein(self, samples: Sequence[Any]) -> Array:
        return self.marginals.distances(*self._totals("marginals", samples))

    def _spread(self, samples: Sequence[Any]) -> Array:
        return self.spread.ratios(*self._totals("spread", samples))

    def _spectrum(self, axis: str, samples: Sequence[Any]) -> Array:
        logs = self.spectra[axis].log_ratios(*self._totals(f"spectrum.{axis}", samples))
        known = np.isfinite(logs)
        return divided(np.abs(np.where(known, logs, 0)).sum(axis=1), known.sum(axis=1))

    def _num_rows(self, axis: str, samples: Sequence[Any]) -> Array:
        return self.spectra[axis].num_rows(self._totals(f"spectrum.{axis}", samples)[0])

    def _correlation_error(self, samples: Sequence[Any]) -> Array:
        a, b = map(self.correlations.of_total, self._totals("correlations", samples))
        return np.abs(a - b)

    def _sliced_wasserstein(self, samples: Sequence[Any]) -> Array:
        return self.patches.marginals.distances(*self._totals("patches", samples))

    def _missing_error(self, samples: Sequence[Any]) -> Array:
        a, b = self._totals("spread", samples)
        return np.abs(self.spread.missing(a, len(samples)) - self.spread.missing(b, self.num_real))

    def _nearest_ratio(self, samples: Sequence[Any]) -> Array:
        return divided(_median(self._distances(samples)), self.nearest.typical)

    def _copied_share(self, samples: Sequence[Any]) -> Array:
        distances = self._distances(samples)
        known = np.isfinite(distances)
        near = distances[known] < COPY * self.nearest.typical
        return divided(near.sum(), int(known.sum()) if np.isfinite(self.nearest.typical) else 0)

    def _distances(self, samples: Sequence[Any]) -> Array:
        rows = self._remember(samples)
        return self._summaries["nearest"][rows, 0]

    def _totals(self, name: str, samples: Sequence[Any]) -> tuple[Array, Array]:
        """Sums of a summary over the samples and over the real items."""
        rows = self._remember(samples)
        summaries = self._summaries[name]
        weights = np.bincount(rows, minlength=len(summaries)).astype(np.float32)
        return weights @ summaries, self._real[name]

    def _remember(self, samples: Sequence[Any]) -> Array:
        """Where the summaries of samples stand; those of new ones are made."""
        items = list(samples)
        if not items:
            raise DataError("no samples to score")
        new = {id(item): item for item in items if id(item) not in self._rows}
        if len(self._held) + len(new) > REMEMBERED and self._held:
            self._rows, self._held, self._summaries = {}, [], {}
            new = {id(item): item for item in items}
        if new:
            self._append(list(new.values()))
        return np.array([self._rows[id(item)] for item in items], int)

    def _append(self, items: list[Any]) -> None:
        made = [self._summarise(block) for block in _blocks(_values(items, self.shape))]
        for name in made[0]:
            old = [self._summaries[name]] if name in self._summaries else []
            self._summaries[name] = np.concatenate([*old, *(found[name] for found in made)])
        self._rows |= {id(item): len(self._held) + i for i, item in enumerate(items)}
        self._held += items

    def _summarise(self, items: Sequence[Array]) -> FieldSummaries:
        drawn = self.scale.of(items)
        return {
            "marginals": self.marginals.of_values(drawn),
            "spread": self.spread.of_values(drawn),
            "correlations": self.correlations.of_values(drawn),
            "patches": self.patches.of(items),
            "nearest": self.nearest.of_values(drawn)[:, None],
        } | {f"spectrum.{axis}": spectra.of(items) for axis, spectra in self.spectra.items()}


def _blocks(items: Sequence[Array]) -> Iterator[Sequence[Array]]:
    for i in range(0, len(items), BLOCK):
        yield items[i : i + BLOCK]


def _shape(
    items: Sequence[Any], channels: tuple[str, ...], axes: tuple[tuple[str, str], ...]
) -> tuple[int, ...]:
    """The shape of the items' values, which must be one of these channels and axes."""
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
                f"scores compare items of one shape"
            )
    return values


def _median(values: Array) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else float("nan")


def _log(ratios: Array) -> Array:
    """Log of ratios, NaN where there are none, and no less than that of a millionth."""
    return np.log(np.fmax(ratios, 1e-6) + 0 * ratios)
